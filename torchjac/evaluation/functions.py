"""Flat functions: maps from a list of tensors to a list of tensors, which is all that engines know."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchjac.evaluation.engines import Direction, FlatFunction, linearize
from torchjac.evaluation.evaluator import assemble, run
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds

__all__ = ["Jacobian"]


class Jacobian:
    """The Jacobian of a flat function as a flat function itself: a Hessian is the Jacobian of one.

    Its outputs are the leaves ``J[output][input]``, outputs outermost. It carries the outputs of the
    inner function, and then whatever that one carries, so that one evaluation serves for all.
    """

    def __init__(self, function: FlatFunction, direction: Direction, *, vectorise: bool) -> None:
        self._function, self._direction, self._vectorise = function, direction, vectorise
        self.captures_primals = getattr(function, "captures_primals", False)
        self.num_values = 0
        """How many of the carried tensors are outputs of the inner function; known once evaluated."""

    def __call__(self, primals: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        engine = linearize(self._function, primals, self._direction)
        layout = Layout(engine.values if self._direction == "reverse" else primals)
        blocks = run(engine, IdentitySeeds(layout), None if self._vectorise else 1)
        leaves = assemble(blocks, engine, primals, batched=False)
        self.num_values = len(engine.values)
        return tuple(leaf for row in leaves for leaf in row), (*engine.values, *engine.carried)
