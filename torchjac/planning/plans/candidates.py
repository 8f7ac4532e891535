"""The ways that a plan considers, each traced, simplified and counted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchjac.errors import TorchjacError
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.programs.folding import fold
from torchjac.evaluation.programs.linear import LinearGraph, linear_graph
from torchjac.evaluation.programs.products import use_faster_products
from torchjac.evaluation.programs.program import Program, new_bytes
from torchjac.evaluation.programs.simplify import simplify
from torchjac.evaluation.programs.tracing import (
    UntraceableError,
    as_functional,
    captured_tensors,
    trace,
)
from torchjac.foundations.layout import Layout
from torchjac.planning.attempt import attempt
from torchjac.planning.chunks import (
    CPU_WORKING_SET,
    available_memory,
    bytes_per_pass,
    choose_chunk_size,
)
from torchjac.planning.compressed import Compression
from torchjac.planning.plans.costs import Cost, cost_of
from torchjac.planning.plans.waists import Waist, multiplied, prepare_factors
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.ways import Way
from torchjac.structure.blocks import BlockIndex, SparseBlock

__all__ = ["Candidate", "inputs_of", "linearized", "passes_of", "runs_of", "traced", "with_program"]

# Chunks are written out one after another, and a graph of many is slow to make.
_MOST_CHUNKS = 32
_MOST_OPERATIONS = 20_000


@dataclass(frozen=True)
class Candidate:
    """One way to a derivative, worked out as far as it can be without running it."""

    name: str
    way: Way
    passes: int
    chunk_size: int
    """Seeds that go into one pass."""
    colored: bool = False
    """Whether its seeds are those of a colouring."""
    waist: Waist | None = None
    program: Program | None = None
    blocks: tuple[BlockIndex | None, ...] = ()
    """For every leaf that the program returns, where its entries lie if it is sparse."""
    num_values: int = 0
    cost: Cost | None = None
    refusal: str | None = None
    """Why there is no program."""
    seconds: float | None = None
    """Measured."""

    @property
    def is_along(self) -> bool:
        """Whether it takes the traced backward pass as it is."""
        return self.way.direction == "reverse" and not self.way.both and self.waist is None

    def chunks_of(self, runs: Sequence[int]) -> int:
        """How many chunks the seeds of so many runs are sent in."""
        return sum(-(-seeds // max(self.chunk_size, 1)) for seeds in runs)

    def is_bare(self, give: Callable[[Any, Answer], Any], call: Any, outcome: Any) -> bool:
        """Whether the first tensor that the program returns is what ``give`` hands out, as it is."""
        if len(self.blocks) != 1 or self.blocks[0] is not None or call.options.has_aux:
            return False
        marker = torch.empty(0, device="cpu")
        return give(call, self.answer([marker] * (1 + self.num_values), 1, outcome)) is marker

    def answer(self, returned: Sequence[Tensor], width: int, outcome: Any) -> Answer:
        """Read what the program returned; ``width`` input leaves stand side by side."""
        count = len(self.blocks)
        leaves = [
            tensor if index is None else SparseBlock(index, tensor)
            for index, tensor in zip(self.blocks, returned, strict=False)
        ]
        rows = [leaves[at : at + width] for at in range(0, count, width)]
        values = returned[count : count + self.num_values]
        carried = returned[count + self.num_values :]
        return Answer(self.way, self.passes, rows, values, carried, outcome, None)


def inputs_of(problem: Problem) -> list[Tensor]:
    """The tensors that the program of a problem takes."""
    return [*problem.primals, *(problem.others()[0] if problem.others else ())]


def linearized(problem: Problem) -> LinearGraph:
    """Trace the function of a problem with one backward pass, or raise `UntraceableError`."""
    assert problem.others is not None
    others, substituted = problem.others()

    def function(tensors: Sequence[Tensor]) -> Any:
        flat = substituted(tensors)
        if problem.order == 1:
            return flat
        return Jacobian(flat, "reverse", vectorise=problem.chunk_size != 1)

    return linear_graph(function, problem.primals, others)


def traced(
    problem: Problem, linear: LinearGraph, way: Way, name: str, waist: Waist | None = None
) -> Candidate:
    """Work one way out: run its seeds through the linear graph, under trace."""
    counts = [node.meta["val"].numel() for node in linear.values]
    first = dataclasses.replace(problem, order=1)  # a gradient's elements are outputs here
    passes = waist.passes if waist else passes_of(first, way, counts)
    colored = problem.compression is not None
    whole = Candidate(name, way, passes, passes, colored, waist)
    most = max(runs_of(whole, problem.compression))
    chunked = _chunk_size(problem, linear, most)
    found = []
    # All at once first: most of what identity seeds cost vanishes, and then chunks save nothing.
    for size in dict.fromkeys([chunked if problem.chunk_size != "auto" else most, chunked]):
        candidate = dataclasses.replace(whole, chunk_size=max(size, 1))
        try:
            found.append(with_program(problem, linear, candidate))
        except UntraceableError as error:
            found.append(dataclasses.replace(candidate, refusal=str(error)))
            continue
        if found[-1].program is not None and found[-1].program.peak_bytes <= CPU_WORKING_SET:
            break
    return min(reversed(found), key=_time)


def _time(candidate: Candidate) -> float:
    return math.inf if candidate.cost is None else candidate.cost.time


def with_program(problem: Problem, linear: LinearGraph, candidate: Candidate) -> Candidate:
    """Trace the derivative in the way of ``candidate``, or raise `UntraceableError`."""
    chunks = candidate.chunks_of(runs_of(candidate, problem.compression))
    if chunks > _MOST_CHUNKS or chunks * len(linear.linear) > _MOST_OPERATIONS:
        raise UntraceableError(f"it takes {chunks} chunks")
    blocks: list[BlockIndex | None] = []
    counts: list[int] = []
    n = len(problem.primals)

    def derivative(*tensors: Tensor) -> tuple[Tensor, ...]:
        here = dataclasses.replace(
            problem,
            primals=tensors[:n],
            point=linear.at(tensors),
            chunk_size=candidate.chunk_size,
        )
        if candidate.waist is not None:
            answer = multiplied(here, candidate.way, candidate.waist)
        else:
            answer = attempt(here, candidate.way, None)
        leaves = [_flat(leaf, problem) for row in answer.leaves for leaf in row]
        blocks[:] = [index for _, index in leaves]
        handed_out = (*answer.values, *answer.carried) if problem.wants_value else ()
        counts[:] = [len(answer.values) if problem.wants_value else 0]
        return (*[leaf for leaf, _ in leaves], *handed_out)

    if candidate.waist is not None:
        prepare_factors(candidate.waist)
    else:
        _prepare_seeds(problem, linear, candidate.way)
    graph = _traced_graph(derivative, inputs_of(problem))
    theirs = {id(tensor) for tensor in captured_tensors(linear.graph).values()}
    fold(graph, lambda tensor: id(tensor) not in theirs)
    cost = cost_of(graph.graph.nodes)
    use_faster_products(graph)
    program = Program(graph)
    room = available_memory(problem.primals[0].device) // 2
    if program.peak_bytes > room:
        raise UntraceableError(f"it needs {program.peak_bytes >> 20} MiB at once")
    return dataclasses.replace(
        candidate,
        program=program,
        blocks=tuple(blocks),
        num_values=counts[0],
        cost=cost,
    )


def _traced_graph(derivative: Callable[..., Any], tensors: Sequence[Tensor]) -> Any:
    try:
        graph = as_functional(trace(derivative, tensors))
    except TorchjacError as error:
        raise UntraceableError(str(error)) from error
    simplify(graph)
    return graph


def _flat(leaf: Tensor | SparseBlock, problem: Problem) -> tuple[Tensor, BlockIndex | None]:
    if not isinstance(leaf, SparseBlock):
        return leaf, None
    if problem.layout is not torch.strided:
        return leaf.values, leaf.where
    return leaf.laid_out(problem.layout), None


def passes_of(problem: Problem, way: Way, output_counts: Sequence[int]) -> int:
    """How many seeds ``way`` takes, for a function with outputs of so many elements."""
    if problem.compression is not None:
        return problem.compression.coloring(way).num_colors
    if way.direction == "forward":
        return Layout(problem.primals, batched=problem.batched).total
    rows = problem.rows(output_counts)
    return rows if problem.order == 1 else rows * sum(p.numel() for p in problem.primals)


def runs_of(candidate: Candidate, compression: Compression | None) -> tuple[int, ...]:
    """How many seeds share an engine: there are several through a waist, and where colours go both ways."""
    if candidate.waist is not None:
        return candidate.waist.bracketing.runs
    if candidate.colored and candidate.way.both and compression is not None:
        coloring = compression.coloring(candidate.way)
        return coloring.num_column_colors, coloring.num_row_colors
    return (candidate.passes,)


def _chunk_size(problem: Problem, linear: LinearGraph, passes: int) -> int:
    if problem.chunk_size != "auto":
        return min(passes, problem.chunk_size or passes) or 1
    largest = max(map(new_bytes, linear.linear), default=0)
    elements = sum(primal.numel() for primal in problem.primals)
    itemsize = max(primal.element_size() for primal in problem.primals)
    held = bytes_per_pass(largest, elements, itemsize)
    return choose_chunk_size(passes, held, problem.primals[0].device)


def _prepare_seeds(problem: Problem, linear: LinearGraph, way: Way) -> None:
    if problem.compression is not None:
        values = [node.meta["val"] for node in linear.values]
        problem.compression.prepare(way, values, problem.primals, problem.layout)
