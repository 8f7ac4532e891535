"""Products with one side of a Jacobian: the ways to make them, what to take next, and the check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from torch import Tensor

from torchjac.errors import DerivativeMismatchWarning, TorchjacFallbackWarning, UnsupportedError
from torchjac.evaluation.probes import tolerance
from torchjac.evaluation.surroundings import compiling, has_values
from torchjac.planning.fallback import is_of_a_backward, is_refusal, reason_of, warn_user

__all__ = ["Agrees", "Multiply", "Progress", "Route", "Rung"]

Multiply: TypeAlias = Callable[[Tensor, bool], Tensor]
"""From a matrix with k columns to its product, with the columns vmapped or one after another."""
Agrees: TypeAlias = Callable[[Tensor, Tensor, bool], bool]
"""Whether a product of a matrix, with its columns vmapped or not, agrees with a trusted pass."""


class Rung(NamedTuple):
    """One way to make products."""

    says: str
    """What it is, and what a product costs."""
    multiply: Multiply


@dataclass
class Progress:
    """What earlier products have found out."""

    at: int = 0
    """The step that works here."""
    checked: set[bool] = field(default_factory=set)
    """Whether products of one column, and of several, have been checked."""


class _Step(NamedTuple):
    rung: Rung
    vectorised: bool

    def __str__(self) -> str:
        return self.rung.says + ("" if self.vectorised else ", one column at a time")


class Route:
    """Products with one side of a Jacobian, by the first way that works here.

    A way that PyTorch refuses is left for good, with a warning: vmapped columns for one column at a
    time, and that for the next rung. The first product of a kind is checked, and where it disagrees the
    next way that agrees is taken.

    Args:
        name: the call that the user made, for messages.
        rungs: best first.
        agrees: the check.
        progress: kept from product to product.
    """

    def __init__(
        self, name: str, rungs: Sequence[Rung], agrees: Agrees, progress: Progress
    ) -> None:
        self._name, self._agrees, self._progress = name, agrees, progress
        self._steps = [_Step(rung, vectorised) for rung in rungs for vectorised in (True, False)]

    def multiply(self, matrix: Tensor) -> Tensor:
        """The product with a matrix of at least one column."""
        progress = self._progress
        if compiling():
            return self._steps[0].rung.multiply(matrix, True)
        at, product, refused = self._first_that_works(matrix, progress.at)
        if refused:
            progress.at = at
            self._warn(refused, at)
        several = matrix.shape[1] > 1
        if several in progress.checked or not has_values([matrix, product]):
            return product
        progress.at, product = self._verified(matrix, at, product)
        progress.checked.add(several)
        return product

    def _first_that_works(
        self, matrix: Tensor, start: int
    ) -> tuple[int, Tensor, list[tuple[int, Exception]]]:
        """The first step from ``start`` on that PyTorch does not refuse, its product, and those refused."""
        refused: list[tuple[int, Exception]] = []
        several = matrix.shape[1] > 1
        for at in self._rest(start, several=several):
            rung, vectorised = self._steps[at]
            try:
                return at, rung.multiply(matrix, vectorised), refused
            except Exception as error:
                if not is_refusal(error):
                    raise
                refused.append((at, error))
        for at, raised in refused:
            if is_of_a_backward(raised) and not (several and self._steps[at].vectorised):
                raise raised  # the user's own, which a plain pass raises too
        reasons = self._reasons(refused)
        raise UnsupportedError(
            f"{self._name}: PyTorch can make this product in no way ({reasons}). The function itself runs: "
            f"replace the op that is named, or make the operator anew if a parameter has changed since."
        ) from (refused[0][1] if refused else None)

    def _rest(self, start: int, *, several: bool) -> list[int]:
        """The steps from ``start`` on that differ for such a matrix: a single column needs no vmap."""
        rest = range(start, len(self._steps))
        return [at for at in rest if several or at == start or self._steps[at].vectorised]

    def _verified(self, matrix: Tensor, at: int, product: Tensor) -> tuple[int, Tensor]:
        """A product if it agrees with a trusted pass, else the next one that does."""
        if self._agrees(matrix, product, self._steps[at].vectorised):
            return at, product
        blamed = f"{self._name}: a product made by {self._steps[at]} disagrees with one plain backward pass"
        later = at
        while later + 1 < len(self._steps):
            try:
                later, other, _ = self._first_that_works(matrix, later + 1)
            except Exception as error:
                if isinstance(error, UnsupportedError) or is_of_a_backward(error):
                    break
                raise
            if not self._agrees(matrix, other, self._steps[later].vectorised):
                continue
            if _same(product, other):
                return at, product  # no more than rounding after all
            warn_user(
                f"{blamed}. A derivative rule that it uses is wrong, or hides what it does from autograd: "
                f"one of PyTorch's own, or of a custom autograd.Function. Taken instead, for this "
                f"operator: {self._steps[later]}.",
                DerivativeMismatchWarning,
            )
            return later, other
        warn_user(
            f"{blamed}, and so does every other way. It stands: a backward rule of func may be no linear "
            f"map (a hook that clips, say).",
            DerivativeMismatchWarning,
        )
        return at, product

    def _reasons(self, refused: Sequence[tuple[int, Exception]]) -> str:
        return "; ".join(f"{self._steps[at]}: {reason_of(error)}" for at, error in refused)

    def _warn(self, refused: Sequence[tuple[int, Exception]], at: int) -> None:
        warn_user(
            f"{self._name}: PyTorch refused the faster way ({self._reasons(refused)}). Taken instead, for "
            f"this operator: {self._steps[at]}.",
            TorchjacFallbackWarning,
        )


def _same(one: Tensor, other: Tensor) -> bool:
    close = tolerance([one, other])
    scale = float(other.detach().abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0
    difference = (one.detach() - other.detach()).abs()
    return bool((difference <= close * scale).all())
