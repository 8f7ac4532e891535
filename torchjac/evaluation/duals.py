"""One level of forward mode.

`torch.func.jvp` spends as much on trees and validation as a small function takes; what it is made of is
called here by itself. Under a compiler the public function is used, because that is what the compiler knows
how to trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from torchjac.evaluation.surroundings import compiling
from torchjac.foundations.compiler import uncompiled

__all__ = ["pushed"]

Tensors: TypeAlias = "tuple[Tensor, ...]"

_functorch: Any = torch._C._functorch
_transforms: Any = eager_transforms
_forward: Any = forward_ad


def pushed(
    function: Callable[..., tuple[Tensors, Tensors]],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Evaluate ``function`` on dual numbers.

    Args:
        function: takes as many tensors, and returns the outputs and what else has to come along.
        primals: where; at least one.
        tangents: along what.

    Returns:
        The outputs, their tangents, and the rest.
    """
    if compiling():
        values, products, carried = torch.func.jvp(  # type: ignore[misc]
            function, tuple(primals), tuple(tangents), has_aux=True
        )
        return values, products, carried
    with (
        uncompiled(),
        _transforms.jvp_increment_nesting() as level,
        _forward._set_fwd_grad_enabled(True),
        # There is one for the whole process; a level within another one uses that.
        _Dual(needed=_transforms.JVP_NESTING == 1),
    ):
        duals = map(_forward.make_dual, primals, tangents)
        outputs, rest = function(*duals)
        pairs = [_forward.unpack_dual(output) for output in outputs]
        unwrap = _functorch._unwrap_for_grad
        return (
            [unwrap(primal, level) for primal, _ in pairs],
            [
                torch.zeros_like(unwrap(primal, level))
                if tangent is None
                else unwrap(tangent, level)
                for primal, tangent in pairs
            ],
            [unwrap(tensor, level) for tensor in rest],
        )


class _Dual:
    """The level of forward mode, entered where it is needed."""

    def __init__(self, needed: bool) -> None:
        self._needed = needed

    def __enter__(self) -> None:
        if self._needed:
            _forward.enter_dual_level()

    def __exit__(self, *raised: object) -> None:
        if self._needed:
            _forward.exit_dual_level()
