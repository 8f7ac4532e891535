"""A call like one before: one pass, and nothing asked that has been answered.

What stands around a small function takes as long as to evaluate it and to differentiate it, so it is left
out where it is known what would come of it. Whatever is not as it was then is left to `solve`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from torch import Tensor

from torchjac.errors import TorchjacError
from torchjac.evaluation.engines import Engine, Graph, linearize, record
from torchjac.evaluation.evaluator import columns_at_once, rows_at_once
from torchjac.evaluation.surroundings import (
    exclusively,
    is_eager,
    is_out_of_memory,
)
from torchjac.foundations.compiler import uncompiled
from torchjac.foundations.seeds import Seeds
from torchjac.planning.fallback import is_refusal
from torchjac.planning.memory import recall
from torchjac.planning.problem import Answer
from torchjac.planning.ways import Way

__all__ = ["repeated"]


class Repeatable(Protocol):
    """A flat function at a point, of which something may be known."""

    primals: list[Tensor]
    is_sure: bool
    outcome: Any

    def signature(self) -> Hashable:
        """What makes another call the same."""

    def __call__(
        self, leaves: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]: ...


def repeated(call: Repeatable) -> Answer | None:
    """The answer to a call whose like has been answered and checked, if one pass gives it."""
    if not is_eager():
        return None
    known = recall(call.signature())
    if known is None or known.repeats is None:
        return None
    way, seeds = known.repeats
    for primal in call.primals:
        if primal.is_inference():
            return None
    is_forward = way.direction == "forward"
    try:
        if not is_forward and (call.is_sure or seeds.total == 1):  # as in `attempt`
            return _read_off(record(call, call.primals), call, way, seeds)
        with exclusively(is_forward), uncompiled(not is_forward):
            engine = linearize(call, call.primals, way.direction)
            return _read_off(engine, call, way, seeds)
    except TorchjacError:
        raise
    except Exception as error:
        if is_refusal(error) or is_out_of_memory(error):
            return None  # there are other ways
        raise


def _read_off(engine: Engine, call: Repeatable, way: Way, seeds: Seeds) -> Answer | None:
    graph = engine if isinstance(engine, Graph) else None
    if graph is None:
        leaves = columns_at_once(engine, seeds)
    elif seeds.layout.fits(graph.values):
        leaves = [rows_at_once(graph, seeds)]
    else:
        return None  # the outputs have other sizes now
    return Answer(way, seeds.total, leaves, engine.values, engine.carried, call.outcome, graph)
