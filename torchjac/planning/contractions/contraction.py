"""What is asked of a contraction, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from torchjac.evaluation.engines import FlatFunction
from torchjac.evaluation.forms import Kind
from torchjac.foundations.identity import Identity
from torchjac.foundations.strides import dense_stride, is_dense
from torchjac.planning.captured.bindings import CONSTANTS
from torchjac.planning.captured.traces import KeptTrace, Reached
from torchjac.planning.contractions.colors import Colors
from torchjac.planning.memory import Known, Record
from torchjac.planning.problem import Problem
from torchjac.planning.ways import Way

__all__ = [
    "FORWARD_LAPLACIAN",
    "Contraction",
    "Findings",
    "ForwardLaplacian",
    "Marks",
    "Method",
    "Remembered",
]

# Functions of one code that are known at a time.
_MOST = 4
# How much longer a pause is than the one before.
_LONGER = 16

Method = Literal["exact", "hutchinson", "hutch++"]


class ForwardLaplacian(Way):
    """The way that takes no product with a Hessian."""

    __slots__ = ()

    def __str__(self) -> str:
        return "the forward Laplacian"


FORWARD_LAPLACIAN = ForwardLaplacian("forward", True, "forward")
"""All second derivatives summed on the way: no Hessian, and no product with one."""


@dataclass
class Contraction:
    """A function at a point, and what is wanted of its derivative."""

    problem: Problem
    """The function, the point, the order of the derivative and the size of the chunks."""
    kind: Kind
    validate: Callable[[Sequence[Tensor]], None]
    """Refuses outputs that the contraction is not defined for."""
    reached: Reached
    arguments: Sequence[Any]
    """All leaves of the arguments."""
    method: Method = "exact"
    num_samples: int = 0
    generator: torch.Generator | None = None
    return_error: bool = False

    @property
    def function(self) -> FlatFunction:
        return self.problem.function

    @property
    def primals(self) -> Sequence[Tensor]:
        return self.problem.primals

    @property
    def pushes(self) -> bool:
        """Whether a forward Laplacian would answer it."""
        return self.problem.order == 2 and self.kind == "trace" and self.method != "hutch++"

    @property
    def portable(self) -> bool:
        """Whether an argument is a tensor or a constant, and hides nothing."""
        return all(isinstance(leaf, (Tensor, *CONSTANTS)) for leaf in self.arguments)

    @property
    def lies_plain(self) -> bool:
        """Whether the tensors lie in memory as those that are traced do: a function may look at that."""
        return all(map(_lies_plain, (*self.arguments, *self.primals)))

    def key(self) -> Hashable:
        """What makes another call the same as this one, but for the numbers that come along."""
        return (self.problem.signature(), self.method == "exact", torch.get_default_dtype())

    def described(self) -> Hashable | None:
        """What is found and traced holds for; None if nobody can tell."""
        reached = self.reached.describe() if self.portable else None
        return None if reached is None else (reached, *map(_described, self.arguments))


def _lies_plain(argument: Any) -> bool:
    if not isinstance(argument, Tensor) or argument.dim() < 2 or not is_dense(argument):
        return True
    if argument.is_contiguous():
        return True
    # What the function gets is a copy.
    return dense_stride(argument) == torch.empty(argument.shape, device="meta").stride()


def _described(argument: Any) -> Hashable:
    if not isinstance(argument, Tensor):
        return (type(argument), repr(argument))
    if not is_dense(argument):  # the places of its entries are a part of what the function is
        return Identity(argument)
    return None if _lies_plain(argument) else dense_stride(argument)


@dataclass
class Marks(Known):
    """What comparisons have told of the ways, by which `checked` and `unsettled` go."""

    wrong: set[Way] = field(default_factory=set)
    """The ways that failed."""


def _unmarked() -> Marks:
    return Marks()  # Dynamo refuses the class itself as a default factory


@dataclass
class Findings:
    """What holds of a function for as long as it reaches what it did."""

    outcome: Any = None
    """How the outputs go back into trees."""
    colors: Colors | None = None
    """Inputs that can share a seed."""
    is_sure: bool = False
    """Whether another function that is described the same is the same."""
    lasts: bool = True
    """Whether the next call can have them."""
    trace: KeptTrace | None = None
    """The function, ready for a forward Laplacian."""
    marks: Marks = field(default_factory=_unmarked)
    """Of the colours, and of the ways through the trace."""


@dataclass
class Remembered(Record):
    """What earlier calls of one signature found out."""

    samples: int = 1
    """Of the vmaps around the first call, for which `largest` is."""
    marks: Marks = field(default_factory=_unmarked)
    """Of the ways that are right, or not, whatever the function captured."""
    line: Record = field(default_factory=lambda: Record((1,), 0, ()))
    """What comparisons with a difference of gradients have told."""
    findings: dict[Hashable, Findings] = field(default_factory=dict)
    """By the description of what the function reached; None is that of what cannot be told."""
    is_dense: bool = False
    """Whether there are no colours."""
    missed: int = 0
    """How often, of late, the function was not as it had been."""
    pause: int = 0
    """For so many calls nothing is described, detected or traced."""

    def recalled(self, asked: Contraction) -> Findings | None:
        """What is known of the function as it is now; None if it has to be looked at.

        A captured number that changes with every call makes another function of it every time. Then
        ever longer pauses come between two looks. Meanwhile every input has a seed: colours of another
        function can be right for the values at a point and wrong for their derivatives there.
        """
        pushes = asked.pushes and not self.refused
        if self.is_dense and not pushes:
            return Findings(lasts=False)
        if self.pause:
            self.pause -= 1
            return Findings(lasts=False)
        found = self.findings.get(asked.described())
        if found is None or (found.colors is not None and found.colors.compression.is_stale):
            return None
        if found.is_sure:
            self.missed = 0
        return found

    def keep(self, description: Hashable | None, found: Findings) -> None:
        """Note what was found, and forget the oldest findings."""
        self.findings.pop(description, None)
        while len(self.findings) >= _MOST:
            self.findings.pop(next(iter(self.findings)), None)  # threads may do so at once
        self.findings[description] = found
        self.pause = _LONGER**self.missed - 1
        self.missed += 1

    def drop(self, found: Findings) -> None:
        """Forget colours that turned out wrong."""
        self.findings = {key: kept for key, kept in self.findings.items() if kept is not found}
