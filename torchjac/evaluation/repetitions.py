"""Evaluations of one function at one point, of which every one has to give the same values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.surroundings import has_values

__all__ = ["Repetitions"]


class Repetitions:
    """Sees the values of one evaluation after another, and refuses to mix products of different ones.

    They differ where a function draws from a generator that cannot be set back. The comparisons are left on
    the device, so that no evaluation waits for the one before; `refuse_others` waits for all of them.
    """

    def __init__(self) -> None:
        self._first: Sequence[Tensor] = ()
        self._is_other: Tensor | None = None

    def see(self, values: Sequence[Tensor]) -> None:
        """Take down what an evaluation gave."""
        if not has_values(values):
            return
        if not self._first:
            self._first = [value.detach() for value in values]
            return
        for value, known in zip(values, self._first, strict=True):
            if value.shape != known.shape:
                raise _refusal()
            a, b = value.detach().double(), known.double()
            is_other = ~torch.isclose(a, b, rtol=1e-2, atol=1e-4, equal_nan=True).all()
            before = self._is_other
            self._is_other = is_other if before is None else before | is_other.to(before.device)

    def refuse_others(self) -> None:
        """Raise if an evaluation gave other values than the first; to be called after the last one."""
        if self._is_other is not None and bool(self._is_other):
            raise _refusal()


def _refusal() -> RuntimeError:
    return RuntimeError(
        "func gave other values when it was evaluated again, so that the products do not belong together "
        "(a random generator of its own, or another thread that draws)"
    )
