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
    with uncompiled(), _forward._set_fwd_grad_enabled(True), _Level() as level:
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


class _Level:
    """A level of `torch.func.jvp`. The outermost one opens the only level of dual numbers that there is."""

    def __enter__(self) -> int:
        level: int = _functorch._jvp_increment_nesting()
        _transforms.JVP_NESTING += 1
        if _transforms.JVP_NESTING == 1:
            _forward.enter_dual_level()
        return level

    def __exit__(self, *raised: object) -> None:
        if _transforms.JVP_NESTING == 1:
            _forward.exit_dual_level()
        _transforms.JVP_NESTING -= 1
        _functorch._jvp_decrement_nesting()
