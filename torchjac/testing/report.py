"""What a check says: a summary when all is right, the place and the numbers when it is not."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchjac.errors import TorchjacError

__all__ = ["CheckReport", "DerivativeError", "Mismatch", "Place"]


@dataclass(frozen=True)
class Place:
    """One entry of a tree of tensors: the leaf as a user writes it, and the index within it."""

    leaf: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.leaf} {list(self.index)}" if self.index else self.leaf


@dataclass(frozen=True)
class Mismatch:
    """One entry of a Jacobian or Hessian that is wrong, and what says so."""

    found_by: str
    """The probe, and how much of its product disagreed."""
    output: Place | None
    inputs: tuple[Place, ...]
    got: float
    """What the derivative under test holds there; a product where no entry could be named."""
    expected: dict[str, float]
    """The same number by every independent way that there is."""
    tolerance: float
    hints: tuple[str, ...] = ()

    def __str__(self) -> str:
        of = f"at {self.output}" if self.output else "at some output entry"
        by = " and ".join(str(place) for place in self.inputs) or "some input entry"
        width = max(map(len, ("got", *self.expected)))
        lines = [f"{of}, by {by}:", f"    {'got':<{width}}  {self.got:.10g}"]
        lines += [f"    {name:<{width}}  {value:.10g}" for name, value in self.expected.items()]
        lines += [f"    allowed difference {self.tolerance:.3g}; found by the {self.found_by}"]
        lines += [f"    {hint}" for hint in self.hints]
        return "\n".join(lines)


class DerivativeError(TorchjacError, AssertionError):
    """A checked derivative is wrong. `mismatches` holds the entries that the message names."""

    def __init__(self, message: str, mismatches: tuple[Mismatch, ...] = ()) -> None:
        super().__init__(message)
        self.mismatches = mismatches


@dataclass(frozen=True)
class CheckReport:
    """What a check that passed has looked at."""

    where: str
    shape: tuple[int, ...]
    """Outputs and inputs, counted in entries; a Hessian counts its inputs twice."""
    closeness: dict[str, float] = field(default_factory=dict)
    """Per probe, the largest difference seen as a fraction of what was allowed."""
    notes: tuple[str, ...] = ()
    """What could not be compared, and why."""

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape))
        seen = ", ".join(f"{name} {ratio:.2g}" for name, ratio in self.closeness.items())
        lines = [
            f"{self.where}: {size} right; difference / allowed: {seen or 'nothing to compare'}"
        ]
        return "\n".join([*lines, *(f"    note: {note}" for note in self.notes)])
