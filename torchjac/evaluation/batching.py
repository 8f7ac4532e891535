"""One level of vmap over a stack of seeds.

`torch.func.vmap` spends 45 µs per call on trees and validation, as much as the whole derivative of a
small function takes; the four primitives it is made of cost 2. Under a compiler the public function
is used, because that is what the compiler knows how to trace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchjac.evaluation.surroundings import compiling, exclusively

__all__ = ["vectorised"]

_functorch = torch._C._functorch  # type: ignore[attr-defined]


@functools.cache
def _load_decompositions() -> None:
    # The first public call registers the vmap decompositions that backward formulas need.
    with exclusively():
        torch.func.vmap(torch.neg)(torch.zeros(1))


def vectorised(
    product: Callable[[list[Tensor]], list[Tensor | None]], seeds: Sequence[Tensor]
) -> list[Tensor | None]:
    """Apply ``product`` to every slice of ``seeds`` along dim 0, in one go.

    Random operations draw once for all slices. A None that ``product`` returns stays None.
    """
    if compiling():
        return list(torch.func.vmap(lambda *one: tuple(product(list(one))), randomness="same")(*seeds))
    _load_decompositions()
    size = seeds[0].shape[0]
    level = _functorch._vmap_increment_nesting(size, "same")
    try:
        batched = [_functorch._add_batch_dim(stack, 0, level) for stack in seeds]
        return [
            None if one is None else _functorch._remove_batch_dim(one, level, size, 0)
            for one in product(batched)
        ]
    finally:
        _functorch._vmap_decrement_nesting()
