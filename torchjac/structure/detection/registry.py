"""The rules: how each family of ops hands on the index sets of its operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from torchjac.structure.detection.index_sets import IndexSets, Rows

__all__ = ["RULES", "SHAPES", "WINDOWS", "Operation", "Result", "Rule", "rule"]


class Operation(Protocol):
    """One call of an op in the graph of the derivative, as a rule sees it.

    ``op["self"]`` is an argument by the name that the op's schema gives it, default included. Tensors
    are fake: they have a shape and no values.
    """

    func: Any
    """The overload that was called."""
    arguments: dict[str, Any]
    """All arguments by name, in the order of the schema."""
    outputs: Sequence[Tensor]
    """What it returned, flat."""

    @property
    def columns(self) -> int:
        """How many seed elements there are."""

    def __getitem__(self, name: str) -> Any: ...

    def sets(self, tensor: Any) -> IndexSets | None:
        """The sets of a tensor, one row per element in row-major order; None if independent."""

    def known(self, tensor: Any) -> Tensor | None:
        """The values of a tensor that follows from constants alone, on the CPU, or None."""

    def entries(self, matrix: Tensor) -> tuple[Rows, Rows] | None:
        """Rows and columns of the entries of a captured sparse matrix, on which the result then relies."""

    def windows(self, index: Tensor) -> IndexSets | None:
        """Where in a plane each of the indices can point; None if anywhere."""

    def rely_on(self, tensor: Any) -> None:
        """Note that the known values of a tensor shaped the result."""


Result: TypeAlias = "IndexSets | Sequence[IndexSets | None] | None"
"""Sets for the output, or for each of several; None where it is independent of the seeds."""

Rule: TypeAlias = Callable[[Operation], Result]

RULES: dict[str, Rule] = {}
"""By the name of the op without overload and without the underscore of an in-place variant."""

WINDOWS: dict[str, Callable[[Operation], IndexSets]] = {}
"""For ops that return indices as their second output: where in a plane each can point."""

SHAPES: dict[str, Callable[[Operation], Sequence[Tensor]]] = {}
"""For ops that PyTorch runs on values alone: their outputs without values.

Where the shapes follow from values after all, NotImplementedError is raised.
"""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the ops ``names``; ``aten::`` is implied.

    A rule is asked only where an operand depends on the seeds, and PyTorch computes with real values
    while it runs. Arguments that it was not made for it refuses with NotImplementedError: the op then
    counts as dense.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name if "::" in name else f"aten::{name}"] = function
        return function

    return register
