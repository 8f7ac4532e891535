"""A call like one before: one pass, and nothing asked that has been answered.

What stands around a small function takes as long as to evaluate it and to differentiate it, so it is left
out where it is known what would come of it. Whatever is not as it was then is left to `solve`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from torch import Tensor

from torchjac.evaluation.engines import Engine, Push, record
from torchjac.evaluation.evaluator import columns_at_once, products_at_once, rows_at_once
from torchjac.evaluation.surroundings import Draw, is_eager, is_out_of_memory, lock
from torchjac.foundations.compiler import uncompiled
from torchjac.foundations.seeds import Seeds
from torchjac.planning.compressed import Compression
from torchjac.planning.memory import Memory, Record
from torchjac.planning.problem import Answer
from torchjac.planning.sparsity import still_holds
from torchjac.planning.ways import Way
from torchjac.structure.blocks import SparseBlock

__all__ = ["repeated"]


class Repeatable(Protocol):
    """A flat function at a point, of which something may be known."""

    primals: list[Tensor]
    memory: Memory
    is_sure: bool
    outcome: Any
    begun: Engine | Exception | None

    def signature(self) -> Hashable:
        """What makes another call the same."""

    def __call__(
        self, leaves: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]: ...


def repeated(call: Repeatable) -> Answer | None:
    """The answer to a call whose like has been answered and checked, if one pass gives it.

    If it does not, ``call.begun`` is what has come of the evaluation: nobody evaluates again for that.
    """
    if not is_eager():
        return None
    known = call.memory.recall(call.signature())
    if known is None or known.repeats is None:
        return None
    if known.compression is not None and not _holds(known.compression, call):
        return None
    for primal in call.primals:
        if primal.is_inference():
            return None
    try:
        if known.repeats[0].direction == "forward":
            return _forward(call, known, *known.repeats)
        if call.is_sure or known.repeats[1].total == 1:  # as in `attempt`
            return _reverse(call, known, *known.repeats)
        with uncompiled():
            return _reverse(call, known, *known.repeats)
    except Exception as error:  # noqa: BLE001 - `solve` says whose it is, and whether there are other ways
        call.begun = error
        return None


def _holds(compression: Compression, call: Repeatable) -> bool:
    """Whether a pattern is certainly one of the function as it is now."""
    return call.is_sure and still_holds(compression, call.primals)


def _reverse(call: Repeatable, known: Record, way: Way, seeds: Seeds) -> Answer | None:
    graph = record(call, call.primals)
    if not seeds.layout.fits(graph.values):  # they have other sizes now
        call.begun = graph
        return None
    leaves: Sequence[Sequence[Tensor | SparseBlock]]
    try:
        if known.compression is None:
            leaves = [rows_at_once(graph, seeds)]
        else:
            leaves = _recovered(known.compression, way, graph, seeds)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        call.begun = graph
        return None
    return Answer(way, seeds.total, leaves, graph.values, graph.carried, call.outcome, graph)


def _forward(call: Repeatable, known: Record, way: Way, seeds: Seeds) -> Answer | None:
    if not seeds.layout.fits(call.primals):  # parameters may be of another dtype now
        return None
    draw = Draw(call.primals)
    leaves: Sequence[Sequence[Tensor | SparseBlock]]
    try:
        with lock:
            push = Push(call, call.primals, constants=known.keeps_constants, eager=True)
            if known.compression is None:
                leaves = columns_at_once(push, seeds)
            else:
                leaves = _recovered(known.compression, way, push, seeds)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        draw.again()
        return None
    return Answer(way, seeds.total, leaves, push.values, push.carried, call.outcome, None)


def _recovered(
    compression: Compression, way: Way, engine: Engine, seeds: Seeds
) -> list[list[SparseBlock]]:
    products = {engine.direction: products_at_once(engine, seeds)}
    return compression.blocks(way, products, engine.values, engine.primals)
