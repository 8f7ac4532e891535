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

from torchjac.evaluation.operands import Constants

__all__ = ["pushed", "pushed_by_jvp"]

Tensors: TypeAlias = "tuple[Tensor, ...]"
Evaluation: TypeAlias = Callable[..., "tuple[Tensors, Tensors]"]
Pushed: TypeAlias = "tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]"

_functorch: Any = torch._C._functorch
_transforms: Any = eager_transforms
_forward: Any = forward_ad
_make_dual: Any = torch._VF._make_dual
_unpack_dual: Any = torch._VF._unpack_dual


def pushed(
    function: Evaluation,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    constants: Constants | None = None,
) -> Pushed:
    """Evaluate ``function`` on dual numbers.

    Args:
        function: takes as many tensors, and returns the outputs and what else has to come along.
        primals: where; at least one.
        tangents: along what.
        constants: what keeps them apart, if anything does.

    Returns:
        The outputs, their tangents, and the rest.
    """
    with _Level() as level:
        duals = []
        for primal, tangent in zip(primals, tangents, strict=True):
            duals.append(_make_dual(primal, tangent, level=0))
        if constants is None:
            outputs, rest = function(*duals)
        else:
            with constants.of(level):
                outputs, rest = function(*duals)
        unwrap = _functorch._unwrap_for_grad
        values, products = [], []
        for output in outputs:
            primal, tangent = _unpack_dual(output, level=0)
            value = unwrap(primal, level)
            values.append(value)
            products.append(torch.zeros_like(value) if tangent is None else unwrap(tangent, level))
        return values, products, [unwrap(tensor, level) for tensor in rest] if rest else ()


def pushed_by_jvp(
    function: Evaluation, primals: Sequence[Tensor], tangents: Sequence[Tensor]
) -> Pushed:
    """The same by the public function, of tangents that are laid out as their primals are."""
    # A compiler copies others, for fixed sizes alone.
    values, products, carried = torch.func.jvp(  # type: ignore[misc]
        function, tuple(primals), tuple([t.contiguous() for t in tangents]), has_aux=True
    )
    return values, products, carried


class _Level:
    """A level of `torch.func.jvp`. The outermost one opens the only level of dual numbers that there is."""

    def __enter__(self) -> int:
        level: int = _functorch._jvp_increment_nesting()
        _transforms.JVP_NESTING += 1
        if _transforms.JVP_NESTING == 1:
            try:
                _forward._current_level = torch._C._enter_dual_level()
            except RuntimeError:  # within a level of the user's
                _transforms.JVP_NESTING -= 1
                _functorch._jvp_decrement_nesting()
                raise
        self._enabled = torch._C._is_fwd_grad_enabled()
        torch._C._set_fwd_grad_enabled(True)
        return level

    def __exit__(self, *raised: object) -> None:
        torch._C._set_fwd_grad_enabled(self._enabled)
        if _transforms.JVP_NESTING == 1:
            torch._C._exit_dual_level(level=_forward._current_level)
            _forward._current_level -= 1
        _transforms.JVP_NESTING -= 1
        _functorch._jvp_decrement_nesting()
