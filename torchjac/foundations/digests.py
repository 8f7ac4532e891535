"""A few sums over the numbers of a tensor, by which processes tell whether they have the same.

NOTE [Digests]
Two processes that compute the same do not round the same: the order of a sum may depend on threads, and on
a GPU on the moment. So no hash of the bits will do, and of sums it matters how rounding adds up in them. With
weights that change sign at random, a relative error ε of every number x, however they go together, comes
to about ε‖x‖ in the weighted sum; other numbers (another network, another dropout mask) come to about ‖x‖.
In a plain sum the errors can come to ε·√n·‖x‖, which in bfloat16 is no less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Digest", "digest"]

# So many numbers at a time: the copy in double precision stays in the cache.
_STRETCH = 2**14
# In bfloat16 one sum would miss other numbers once in six times.
_SUMS = 8


class Digest(NamedTuple):
    """The sum of a tensor's numbers, weighted sums, and what these may be off by through rounding."""

    total: float
    weighted: tuple[float, ...]
    slack: float

    def agrees(self, other: Digest) -> bool:
        """Whether two tensors may be the same but for rounding."""
        slack = max(self.slack, other.slack)
        pairs = zip(self.weighted, other.weighted, strict=True)
        return all(abs(one - another) <= slack for one, another in pairs)

    def __str__(self) -> str:
        return f"numbers that sum to {self.total:.6g}"


def digest(tensor: Tensor, unit: float = 0.0) -> Digest:
    """Sum a tensor up, by NOTE [Digests].

    Args:
        tensor: real numbers of any dtype.
        unit: the size of the terms that its numbers may be what is left of. Rounding is taken to be of the
            size of a number itself, or of such a term if that is larger.
    """
    flat = tensor.detach().reshape(-1)
    total, squares, *weighted = _sums(flat, Tensor.double)
    if not math.isfinite(squares):
        total, squares, *weighted = _sums(flat, _tame)
    exact = 2.0**-52
    if tensor.is_floating_point():
        # What was computed twice can differ by more than a rounding of float64.
        exact = max(torch.finfo(tensor.dtype).eps, 1e-13)
    size = math.sqrt(squares) + unit * math.sqrt(len(flat))
    return Digest(total, tuple(weighted), min(256 * exact, 0.125) * size)


def _sums(flat: Tensor, as_double: Callable[[Tensor], Tensor]) -> list[float]:
    """The sum, that of the squares, and the weighted ones."""
    weights = _weights(min(len(flat), _STRETCH), flat.device)
    sums = torch.zeros(2 + _SUMS, dtype=torch.float64, device=flat.device)
    for k, part in enumerate(flat.split(_STRETCH)):
        numbers = as_double(part)
        # Stretches that have changed places make a difference too.
        weighted = weights[:, : len(numbers)] @ numbers * (2 + math.cos(k))
        sums += torch.cat([numbers.sum()[None], (numbers @ numbers)[None], weighted])
    found: list[float] = sums.tolist()
    return found


def _weights(count: int, device: torch.device) -> Tensor:
    """Numbers between -1 and 1 that jump about, ``(sums, count)``; by integers, for all machines alike."""
    row, at = torch.arange(_SUMS, device=device)[:, None], torch.arange(count, device=device)
    jumps = (634_961 + 102_654 * row) * at * at + (918_227 + 73_851 * row) * at + 401_399 * row
    return (jumps % 2**20).double() / 2**19 - 1


def _tame(part: Tensor) -> Tensor:
    """Scaled down, so that no sum overflows, and with numbers for what is none, which outweigh the rest."""
    return part.double().mul(2.0**-600).nan_to_num(1e130, 2e130, -2e130)
