"""One way, tried: from an engine through seeds and passes to the leaves of the answer."""

from __future__ import annotations

from torchjac.evaluation.engines import Engine, FlatFunction, Graph, linearize
from torchjac.evaluation.evaluator import assemble, run
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.surroundings import exclusively, has_values, inside_transform
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds
from torchjac.planning.chunks import always_fits, bytes_per_pass, choose_chunk_size
from torchjac.planning.memory import Record
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.ways import Way

__all__ = ["attempt", "read_off", "to_check"]


def attempt(problem: Problem, way: Way, record: Record | None) -> Answer:
    """Compute the answer in one particular way, or raise what PyTorch raises."""
    if not any(primal.numel() for primal in problem.primals):
        # Without inputs there is no forward pass that could tell what the outputs are.
        way = Way("reverse", way.vectorised, way.inner and "reverse")
    function = problem.differentiated(way)
    with exclusively(way.direction == "forward"):
        engine = problem.recorded or linearize(function, problem.primals, way.direction)
        return read_off(problem, way, function, engine, record)


def read_off(
    problem: Problem, way: Way, function: FlatFunction, engine: Engine, record: Record | None
) -> Answer:
    """Run the seeds through ``engine`` and put what comes out into the leaves of the Jacobian."""
    seeds, size = _prepare(problem, way, engine, record)
    graph = engine if isinstance(engine, Graph) else None
    if graph is not None and record is not None and to_check(problem, way, record):
        graph.outlives_passes = True
    blocks = run(engine, seeds, size)
    leaves = assemble(blocks, engine, problem.primals, batched=problem.batched)
    values, carried = engine.values, engine.carried
    if isinstance(function, Jacobian):
        values, carried = carried[: function.num_values], carried[function.num_values :]
    return Answer(way, seeds.total, leaves, values, carried, problem.outcome(), graph)


def to_check(problem: Problem, way: Way, record: Record) -> bool:
    """Whether the options want what ``way`` finds compared with a trusted answer, and it can be."""
    if problem.check == "never" or (problem.check == "first" and way in record.checked):
        return False
    return has_values(problem.primals)


def _prepare(
    problem: Problem, way: Way, engine: Engine, record: Record | None
) -> tuple[IdentitySeeds, int | None]:
    """The seeds, and how many of them go into one pass; remembered where that cannot change."""
    leaves = engine.values if engine.direction == "reverse" else engine.primals
    if record is not None and way in record.prepared and record.prepared[way].layout.fits(leaves):
        return record.prepared[way], None
    seeds = IdentitySeeds(Layout(leaves, batched=problem.batched))
    if not way.vectorised:
        return seeds, 1
    if problem.chunk_size not in ("auto", None):
        return seeds, int(problem.chunk_size)
    if record is None or problem.chunk_size is None:
        return seeds, None
    held = _bytes_per_pass(problem, way, record)
    if not always_fits(seeds.total, held):
        return seeds, choose_chunk_size(seeds.total, held, problem.primals[0].device)
    if not inside_transform():  # a tensor that is made inside a transform belongs to it
        seeds.keep_if_small()
        record.prepared[way] = seeds
    return seeds, None


def _bytes_per_pass(problem: Problem, way: Way, record: Record) -> int:
    n = sum(primal.numel() for primal in problem.primals)
    m, itemsize = sum(record.output_counts), max(p.element_size() for p in problem.primals)
    if way.inner is None:
        return bytes_per_pass(record.largest, n + m, itemsize)
    # The gradient's intermediate results too, once for every row of an inner vmap.
    return bytes_per_pass(2 * record.largest, n, itemsize) * max(m, 1)
