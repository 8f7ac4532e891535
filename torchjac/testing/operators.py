"""What a random program is composed of: operators, as data."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

__all__ = ["Fields", "Operator", "Pick", "Shape"]

Shape: TypeAlias = "tuple[int, ...]"
Fields: TypeAlias = "dict[str, object]"
T = TypeVar("T")


class Pick(Protocol):
    """Chooses one of several options; a Hypothesis draw, or anything else."""

    def __call__(self, options: Sequence[T], /) -> T:
        """Return one of ``options``, of which there is at least one."""


def _always(*shapes: Shape) -> bool:
    return True


def _no_fields(pick: Pick, *shapes: Shape) -> Fields:
    return {}


def _largest(size: int, *bounds: float) -> float:
    return max(bounds)


@dataclass(frozen=True)
class Operator:
    """One differentiable step of a program.

    A template is Python source. ``{0}``, ``{1}``, ... stand for operands, other names for what
    ``fields`` picks, and ``{out}``, where it appears, for the result's own name; statements are
    then separated by semicolons.
    """

    name: str
    template: str
    fits: Callable[..., bool] = _always
    """Which shapes of operands it takes."""
    fields: Callable[..., Fields] = _no_fields
    """Picks dimensions, indices and the like, from ``pick`` and the operands' shapes."""
    bound: Callable[..., float] = _largest
    """The largest magnitude of the result, from the first operand's size and all bounds."""
    smooth: bool = True
    """Whether all derivatives exist everywhere; ties, zeros and borders are kinks of the others."""
    trap: int = 0
    """The order of derivative from which PyTorch is wrong, or refuses, in some mode; 0 for none."""

    @property
    def arity(self) -> int:
        """How many operands it takes."""
        fields = string.Formatter().parse(self.template)
        return len({name for _, name, _, _ in fields if name and name.isdigit()})
