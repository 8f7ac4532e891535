"""Small matrix products as multiplications and sums, which a compiler fuses with what is around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["is_small", "with_small_products"]

aten = torch.ops.aten

Decomposition: TypeAlias = Callable[..., Any]

# A call of BLAS costs about what a kernel needs for so many multiplications,
_MOST_MULTIPLICATIONS = 4096
# and a loop over more summands than this is what BLAS is for.
_MOST_SUMMANDS = 16


def is_small(count: int, rows: int, inner: int, columns: int) -> bool:
    """Whether ``count`` products of ``(rows, inner)`` with ``(inner, columns)`` are better fused."""
    return inner <= _MOST_SUMMANDS and count * rows * inner * columns <= _MOST_MULTIPLICATIONS


def with_small_products(table: dict[Any, Decomposition]) -> dict[Any, Decomposition]:
    """A table of decompositions, with those of small matrix products put before its own."""

    def before(op: Any, rule: Decomposition) -> Decomposition:
        def decompose(*args: Any, **kwargs: Any) -> Any:
            result = rule(*args, **kwargs)
            if result is NotImplemented and op in table:
                return table[op](*args, **kwargs)
            return result

        return decompose

    rules: dict[Any, Decomposition] = {
        aten.mm.default: _mm,
        aten.bmm.default: _mm,
        aten.addmm.default: _addmm,
        aten.baddbmm.default: _addmm,
    }
    return {**table, **{op: before(op, rule) for op, rule in rules.items()}}


def _mm(left: Tensor, right: Tensor) -> Any:
    *batch, rows, inner = left.shape
    columns = right.shape[-1]
    if is_small(math.prod(batch), rows, inner, columns) and left.is_floating_point():
        # (*batch, rows, inner, 1) * (*batch, 1, inner, columns) -> (*batch, rows, columns)
        return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)
    return NotImplemented


def _addmm(term: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = NotImplemented if beta == 0 else _mm(left, right)
    if product is NotImplemented:
        return NotImplemented  # with a beta of 0, NaNs in the term do not count
    scaled = product if alpha == 1 else alpha * product
    return scaled + (term if beta == 1 else beta * term)
