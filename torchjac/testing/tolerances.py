"""What counts as equal, per dtype: the only place that says so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Tolerance", "precision", "tolerance"]


class Tolerance(NamedTuple):
    """A product may differ by ``atol`` plus ``rtol`` times the sum of its terms' magnitudes."""

    rtol: float
    atol: float


# About the square root of the rounding error: far above what rounding does in well-scaled code,
# far below any wrong derivative worth the name.
_TOLERANCES = {
    torch.float64: Tolerance(rtol=1e-8, atol=1e-10),
    torch.float32: Tolerance(rtol=1e-3, atol=3e-5),
    torch.float16: Tolerance(rtol=3e-2, atol=1e-2),
    torch.bfloat16: Tolerance(rtol=1e-1, atol=5e-2),
}


def tolerance(
    tensors: Iterable[Tensor], rtol: float | None = None, atol: float | None = None
) -> Tolerance:
    """The tolerance of the coarsest dtype among ``tensors``, unless the caller gave another."""
    found = max(
        (_TOLERANCES.get(tensor.dtype, _TOLERANCES[torch.bfloat16]) for tensor in tensors),
        default=_TOLERANCES[torch.float64],
    )
    return Tolerance(found.rtol if rtol is None else rtol, found.atol if atol is None else atol)


def precision(tensors: Iterable[Tensor]) -> float:
    """The relative rounding error of the coarsest dtype among ``tensors``."""
    double = torch.finfo(torch.float64).eps
    return max((torch.finfo(tensor.dtype).eps for tensor in tensors), default=double)
