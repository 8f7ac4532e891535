"""What is asked of a contraction, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from torchjac.evaluation.engines import FlatFunction
from torchjac.evaluation.forms import Kind
from torchjac.planning.captured.traces import KeptTrace, Reached
from torchjac.planning.contractions.colors import Colors
from torchjac.planning.memory import Record
from torchjac.planning.problem import Problem
from torchjac.planning.ways import Way

__all__ = ["FORWARD_LAPLACIAN", "Contraction", "ForwardLaplacian", "Method", "Remembered"]

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
    method: Method = "exact"
    num_samples: int = 0
    generator: torch.Generator | None = None
    return_error: bool = False
    portable: bool = True
    """Whether all arguments that are no tensors are told by the signature."""

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

    def key(self) -> Hashable:
        """What makes another call the same as this one."""
        key = (self.problem.signature(), self.method == "exact", torch.get_default_dtype())
        if not self.pushes or not self.portable:
            return key
        return (*key, self.reached.describe())


@dataclass
class Remembered(Record):
    """What earlier calls of one signature found out."""

    outcome: Any = None
    """How the outputs go back into trees."""
    samples: int = 1
    """Of the vmaps around the first call, for which `largest` is."""
    colors: Colors | None = None
    """Inputs that can share a seed."""
    trace: KeptTrace | None = None
    """The function, ready for a forward Laplacian."""
    wrong: set[Way] = field(default_factory=set)
    """The ways that a check has failed of."""
