"""Products with one side of a Jacobian: the ways to make them, what to take next, and the check."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from torchjac.errors import DerivativeMismatchWarning, TorchjacFallbackWarning, UnsupportedError
from torchjac.evaluation.probes import tolerance
from torchjac.evaluation.surroundings import compiling
from torchjac.planning.fallback import is_of_a_backward, is_refusal, reason_of, warn_user
from torchjac.planning.memory import Known

__all__ = ["Agrees", "Memory", "Multiply", "Probe", "Route", "Rung", "is_telling"]

Multiply: TypeAlias = Callable[[Tensor, bool], Tensor]
"""From a matrix with k columns to its product, with the columns vmapped or one after another."""
Agrees: TypeAlias = Callable[[Tensor, Tensor], bool]
"""Whether a product of a matrix agrees with a trusted pass."""
Probe: TypeAlias = Callable[[int], Tensor]
"""A random matrix of so many columns."""


class Rung(NamedTuple):
    """One way to make products."""

    says: str
    """What it is, and what a product costs."""
    multiply: Multiply
    is_plain: bool = False
    """Whether it makes plain backward passes, but for columns that are vmapped."""
    vmaps: bool = True
    """Whether it can vmap columns."""


class Memory(NamedTuple):
    """What has been found out: by all operators of a signature, and by this one."""

    known: Known
    asked: set[Hashable]
    """The comparisons made at this point, those that told nothing included."""

    def wants(self, check: Hashable) -> bool:
        """Whether a comparison is still to be made."""
        return check not in self.known.checked and check not in self.asked

    def settle(self, check: Hashable, *, telling: bool) -> None:
        """Note that it was made."""
        self.asked.add(check)
        self.known.settle(check, telling=telling)


class _Step(NamedTuple):
    rung: Rung
    vectorised: bool

    def __str__(self) -> str:
        return self.rung.says + ("" if self.vectorised else ", one column at a time")

    def is_trusted(self, *, several: bool) -> bool:
        """Whether it is what everything else is held against."""
        return self.rung.is_plain and not (several and self.vectorised and self.rung.vmaps)


class Route:
    """Products with one side of a Jacobian, by the first way that works here.

    A way that PyTorch refuses is left for good, with a warning: vmapped columns for one column at a
    time, and that for the next rung. Before the first product of a kind, one with a random matrix is
    checked, for a vector of the user's may miss what is wrong; where it disagrees, the next way that
    agrees is taken.

    Args:
        name: the call that the user made, for messages.
        side: what is multiplied with; what is remembered is remembered of that.
        rungs: best first.
        probe: makes what the check multiplies with.
        agrees: the check, or None where there are no values to compare.
        memory: kept from product to product.
    """

    def __init__(
        self,
        name: str,
        side: str,
        rungs: Sequence[Rung],
        probe: Probe,
        agrees: Agrees | None,
        memory: Memory,
    ) -> None:
        self._name, self._side, self._probe = name, side, probe
        self._agrees, self._memory = agrees, memory
        self._steps = [_Step(rung, vectorised) for rung in rungs for vectorised in (True, False)]

    def multiply(self, matrix: Tensor) -> Tensor:
        """The product with a matrix of at least one column."""
        if compiling():
            return self._steps[0].rung.multiply(matrix, True)
        if self._agrees is not None and self._wants_check(self._at, several=matrix.shape[1] > 1):
            with torch.no_grad():
                self._check(self._agrees, several=matrix.shape[1] > 1)
        return self._first_that_works(matrix)

    @property
    def _at(self) -> int:
        """The step that works here, as far as is known."""
        return self._memory.known.steps.get(self._side, 0)

    def _go_on(self, at: int) -> None:
        self._memory.known.steps[self._side] = at

    def _first_that_works(self, matrix: Tensor) -> Tensor:
        at, product, refused = self._tried(matrix, self._at)
        if refused:
            self._go_on(at)
            self._warn(refused, at)
        return product

    def _tried(self, matrix: Tensor, start: int) -> tuple[int, Tensor, list[tuple[int, Exception]]]:
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

    def _key(self, at: int, *, several: bool) -> Hashable:
        return self._side, at, several

    def _wants_check(self, at: int, *, several: bool) -> bool:
        trusted = self._steps[at].is_trusted(several=several)
        return not trusted and self._memory.wants(self._key(at, several=several))

    def _check(self, agrees: Agrees, *, several: bool) -> None:
        """Hold the step that works here against a trusted pass, and go on to the next that agrees."""
        probe = self._probe(2 if several else 1)
        product = self._first_that_works(probe)
        at = self._at
        if not self._wants_check(at, several=several):
            return  # of those left after a refusal
        if agrees(probe, product):
            self._memory.settle(self._key(at, several=several), telling=is_telling(product))
            return
        blamed = f"{self._name}: a product made by {self._steps[at]} disagrees with one plain backward pass"
        found = self._next_that_agrees(probe, at, agrees)
        if found is None:
            warn_user(
                f"{blamed}, and so does every other way. It stands: a backward rule of func may be no linear "
                f"map (a hook that clips, say).",
                DerivativeMismatchWarning,
            )
        elif not _same(product, found[1]):  # else no more than rounding after all
            at = found[0]
            self._go_on(at)
            warn_user(
                f"{blamed}. A derivative rule that it uses is wrong, or hides what it does from autograd: "
                f"one of PyTorch's own, or of a custom autograd.Function. Taken instead, here and for "
                f"later operators of such arguments: {self._steps[at]}.",
                DerivativeMismatchWarning,
            )
        self._memory.settle(self._key(at, several=several), telling=True)

    def _next_that_agrees(
        self, probe: Tensor, after: int, agrees: Agrees
    ) -> tuple[int, Tensor] | None:
        at, several = after, probe.shape[1] > 1
        while at + 1 < len(self._steps):
            try:
                at, product, _ = self._tried(probe, at + 1)
            except Exception as error:
                if isinstance(error, UnsupportedError) or is_of_a_backward(error):
                    return None
                raise
            if self._steps[at].is_trusted(several=several) or agrees(probe, product):
                return at, product
        return None

    def _reasons(self, refused: Sequence[tuple[int, Exception]]) -> str:
        return "; ".join(f"{self._steps[at]}: {reason_of(error)}" for at, error in refused)

    def _warn(self, refused: Sequence[tuple[int, Exception]], at: int) -> None:
        warn_user(
            f"{self._name}: PyTorch refused the faster way ({self._reasons(refused)}). Taken instead, here "
            f"and for later operators of such arguments: {self._steps[at]}.",
            TorchjacFallbackWarning,
        )


def is_telling(product: Tensor) -> bool:
    """Whether a product that has passed a check stands for those at other points too.

    All zero, or not finite, it would have passed as well if a rule were wrong: people warm up with zeros.
    """
    return bool(product.isfinite().all()) and bool(product.any())


def _same(one: Tensor, other: Tensor) -> bool:
    close = tolerance([one, other])
    scale = float(other.detach().abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0
    difference = (one.detach() - other.detach()).abs()
    return bool((difference <= close * scale).all())
