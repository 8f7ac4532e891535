"""One level of vmap over a stack of seeds.

`torch.func.vmap` spends 45 µs per call on trees and validation, as much as the whole derivative of a
small function takes; the four primitives it is made of cost 2. Under a compiler the public function
is used, because that is what the compiler knows how to trace.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchjac.evaluation.surroundings import compiling, exclusively
from torchjac.foundations.seeds import Chunk

__all__ = ["load_forward_rules", "vectorised", "vectorised_beside", "vectorised_eagerly"]

Product: TypeAlias = Callable[[Chunk], Sequence["Tensor | None"]]

_functorch: Any = torch._C._functorch


@functools.cache
def load_forward_rules() -> None:
    """Have PyTorch load its forward-mode decompositions, about which it warns users of today."""
    with exclusively(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.neg, (torch.zeros(1),), (torch.zeros(1),))


@functools.cache
def _load_batching_rules() -> None:
    # The first public call registers the vmap decompositions that backward formulas need.
    with exclusively():
        torch.func.vmap(torch.neg)(torch.zeros(1))


def vectorised(product: Product, seeds: Chunk) -> list[Tensor | None]:
    """Apply ``product`` to every seed of a chunk, in one go.

    Random operations draw once for all seeds. A None that ``product`` returns stays None.
    """
    return _traceably(product, seeds) if compiling() else vectorised_eagerly(product, seeds)


def _traceably(product: Product, seeds: Chunk) -> list[Tensor | None]:
    leaves = list(seeds)

    def positional(*one: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(product(dict(zip(leaves, one, strict=True))))

    return list(torch.func.vmap(positional, randomness="same")(*seeds.values()))


def vectorised_beside(
    product: Callable[[Chunk], tuple[Sequence[Tensor | None], Sequence[Tensor]]],
    seeds: Chunk,
    traced: bool,
) -> tuple[list[Tensor | None], list[Tensor]]:
    """The same for a ``product`` that gives something beside which is the same for every seed.

    ``traced`` is whether a compiler looks on.
    """
    count = 0
    beside: list[Tensor] = []

    def alone(one: Chunk) -> Sequence[Tensor | None]:
        nonlocal beside, count
        products, others = product(one)
        count = len(products)
        if traced:
            return [*products, *others]
        get_level = _functorch.maybe_get_level
        level = get_level(next(iter(one.values())))
        beside = [other if get_level(other) != level else _of_any_seed(other) for other in others]
        return products

    stacks = _traceably(alone, seeds) if traced else vectorised_eagerly(alone, seeds)
    return stacks[:count], beside or [stack[0] for stack in stacks[count:] if stack is not None]


def _of_any_seed(tensor: Tensor) -> Tensor:
    """A tensor out of the innermost vmap, which for the most part none is a part of."""
    within: Tensor = _functorch.get_unwrapped(tensor)
    return within.select(_functorch.maybe_get_bdim(tensor), 0)


def vectorised_eagerly(product: Product, seeds: Chunk) -> list[Tensor | None]:
    """The same where no compiler can be tracing."""
    _load_batching_rules()
    size = next(iter(seeds.values())).shape[0]
    level = _functorch._vmap_increment_nesting(size, "same")
    try:
        batched = {}
        for leaf, stack in seeds.items():
            batched[leaf] = _functorch._add_batch_dim(stack, 0, level)
        stacks: list[Tensor | None] = []
        for one in product(batched):
            stacks.append(one if one is None else _functorch._remove_batch_dim(one, level, size, 0))
        return stacks
    finally:
        _functorch._vmap_decrement_nesting()
