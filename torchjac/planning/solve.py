"""From a problem to its answer: recall, choose a way, run it, fall back, check.

This is the one path that every transform of a function takes.
"""

from __future__ import annotations

import torch

from torchjac.errors import TorchjacError
from torchjac.evaluation.engines import Engine, FlatFunction, Graph, linearize
from torchjac.evaluation.evaluator import assemble, run
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.graphs import describe
from torchjac.evaluation.surroundings import (
    Draw,
    compiling,
    exclusively,
    has_values,
    is_out_of_memory,
)
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds
from torchjac.planning.chunks import bytes_per_pass, choose_chunk_size
from torchjac.planning.fallback import Refusals, warn_slower
from torchjac.planning.look import look
from torchjac.planning.memory import Record, recall, remember
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.verify import verified
from torchjac.planning.ways import Way

__all__ = ["solve"]


def solve(problem: Problem) -> Answer:
    """Compute what ``problem`` asks for."""
    if compiling() or torch._C._len_torch_dispatch_stack():
        return _traced(problem)
    key = problem.signature()
    record = recall(key)
    fresh = record is None or problem.check == "always" or not record.checked
    draw = Draw(problem.primals) if fresh else None
    if record is None:
        record = _first_look(problem, draw or Draw(problem.primals))
        remember(key, record)
    elif record.slower and problem.slower is not None:
        problem.function = problem.slower
    answer = _first_that_works(problem, record, draw)
    if answer.to_check:
        trusted = answer.way.trusted
        answer = verified(
            problem,
            answer,
            record,
            draw or Draw(problem.primals),
            lambda: _attempt(problem, trusted, record),
        )
    return answer


def _to_check(problem: Problem, way: Way, record: Record | None) -> bool:
    if record is None or problem.check == "never":
        return False
    pending = problem.check == "always" or way not in record.checked
    return pending and has_values(problem.primals)


def _first_look(problem: Problem, draw: Draw) -> Record:
    """See the function for the first time; what it raises here is its own and comes out as it is."""
    slower = False
    if problem.recorded is not None:
        values = problem.recorded.values
        counts, largest = tuple(value.numel() for value in values), describe(values)[1]
    else:
        with draw.aside():
            counts, largest, slower = _looked(problem)
    return Record(counts, largest, problem.ways(problem.rows(counts)), slower)


def _looked(problem: Problem) -> tuple[tuple[int, ...], int, bool]:
    try:
        return *look(lambda: problem.function(problem.primals)[0]), False
    except TorchjacError:
        raise
    except Exception as error:
        slower = problem.slower
        if slower is None or is_out_of_memory(error):
            raise
        counts, largest = look(lambda: slower(problem.primals)[0])
        problem.function = slower
        warn_slower(problem.name, error, len(problem.primals[0]))
        return counts, largest, True


def _first_that_works(problem: Problem, record: Record, draw: Draw | None) -> Answer:
    """Try the ways in order, from the first that PyTorch has not refused before."""
    ways = (record.ways[0].trusted,) if record.distrusted else record.ways[record.refused :]
    refusals = Refusals(problem.name)
    for rank, way in enumerate(ways):
        if refusals.rule_out(way):
            continue
        if refusals and draw is not None:
            draw.again()
        try:
            answer = _attempt(problem, way, record)
        except TorchjacError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if not refusals:
                _blame(problem)
            refusals.add(way, error)
            continue
        if refusals:
            record.refused += rank
            refusals.warn(answer.way, answer.passes)
        return answer
    raise refusals.error() from refusals.first


def _blame(problem: Problem) -> None:
    """Evaluate the function plainly: if it raises there too, the exception is the function's own."""
    with Draw(problem.primals).aside(), torch.no_grad():
        problem.function(problem.primals)


def _traced(problem: Problem) -> Answer:
    """Compute under a compiler or a dispatch mode: nothing to remember, compare or fall back on."""
    vectorise = problem.chunk_size != 1
    if problem.mode != "auto":
        return _attempt(problem, problem.ways(1)[0], None)
    # A reverse evaluation tells the sizes of the outputs, and is the one to use in most cases.
    way = Way("reverse", vectorise, "reverse" if problem.order == 2 else None)
    function = problem.differentiated(way)
    engine = linearize(function, problem.primals, "reverse")
    values = engine.values
    if isinstance(function, Jacobian):
        values = engine.carried[: function.num_values]
    best = problem.ways(problem.rows([value.numel() for value in values]))[0]
    return _read_off(problem, way, function, engine, None) if best == way else _attempt(problem, best, None)


def _attempt(problem: Problem, way: Way, record: Record | None) -> Answer:
    """Compute the answer in one particular way, or raise what PyTorch raises."""
    if way.direction == "forward" and not any(primal.numel() for primal in problem.primals):
        # Without inputs there is no forward pass that could tell what the outputs are.
        way = way._replace(direction="reverse")
    function = problem.differentiated(way)
    with exclusively(way.direction == "forward"):
        engine = problem.recorded or linearize(function, problem.primals, way.direction)
        return _read_off(problem, way, function, engine, record)


def _read_off(
    problem: Problem, way: Way, function: FlatFunction, engine: Engine, record: Record | None
) -> Answer:
    """Run the seeds through ``engine`` and put what comes out into the leaves of the Jacobian."""
    reverse = engine.direction == "reverse"
    layout = Layout(engine.values if reverse else engine.primals, batched=problem.batched)
    size = _chunk_size(problem, way, layout.total, record)
    graph = engine if isinstance(engine, Graph) else None
    to_check = _to_check(problem, way, record)
    if graph is not None and to_check:
        graph.retain_graph = True
    redraw = None
    if not reverse and size is not None and size < layout.total and not compiling():
        redraw = Draw(problem.primals).again
    blocks = run(engine, IdentitySeeds(layout), size, before_chunk=redraw)
    leaves = assemble(blocks, engine, problem.primals, batched=problem.batched)
    values, carried = engine.values, engine.carried
    if isinstance(function, Jacobian):
        values, carried = carried[: function.num_values], carried[function.num_values :]
    return Answer(way, layout.total, leaves, values, carried, graph, to_check)


def _chunk_size(problem: Problem, way: Way, passes: int, record: Record | None) -> int | None:
    if not way.vectorised:
        return 1
    if problem.chunk_size != "auto":
        return problem.chunk_size
    if record is None:
        return None
    n = sum([primal.numel() for primal in problem.primals])
    m, itemsize = sum(record.output_counts), max([p.element_size() for p in problem.primals])
    if way.inner is None:
        held = bytes_per_pass(record.largest, n + m, itemsize)
    else:
        # The gradient's intermediate results too, once for every row of an inner vmap.
        held = bytes_per_pass(2 * record.largest, n, itemsize) * max(m, 1)
    return choose_chunk_size(passes, held, problem.primals[0].device)
