"""One way, tried: from an engine through seeds and passes to the leaves of the answer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchjac.evaluation.divided import divided
from torchjac.evaluation.engines import (
    Direction,
    Engine,
    FlatFunction,
    Graph,
    Push,
    linearize,
)
from torchjac.evaluation.evaluator import Places, assemble, places_in, run
from torchjac.evaluation.repetitions import Repetitions
from torchjac.evaluation.surroundings import (
    Draw,
    exclusively,
    has_values,
    inside_transform,
)
from torchjac.foundations.compiler import uncompiled
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds, Seeds
from torchjac.planning.chunks import always_fits, bytes_per_pass, choose_chunk_size
from torchjac.planning.compressed import Compression
from torchjac.planning.memory import Record
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.ways import Way
from torchjac.structure.blocks import SparseBlock

__all__ = ["attempt", "read_off", "to_check"]


def attempt(problem: Problem, way: Way, record: Record | None) -> Answer:
    """Compute the answer in one particular way, or raise what PyTorch raises."""
    if not problem.primals[0].numel() and not any(p.numel() for p in problem.primals):
        # Without inputs there is no forward pass that could tell what the outputs are.
        way = Way("reverse", way.vectorised, way.inner and "reverse")
    function = problem.differentiated(way)
    if problem.compression is not None:
        return _compressed(problem, way, function, problem.compression, record)
    # Whatever a signature tells all of is not compiled.
    if way.direction == "reverse" and (problem.is_sure() or _is_plain(problem, way, record)):
        engine = _engine(problem, function, "reverse", record)
        return read_off(problem, way, function, engine, record)
    # Forward passes see to that by themselves.
    with exclusively(way.direction == "forward"), uncompiled(way.direction == "reverse"):
        engine = _engine(problem, function, way.direction, record)
        return read_off(problem, way, function, engine, record)


def _is_plain(problem: Problem, way: Way, record: Record | None) -> bool:
    """Whether backward passes are plain ones, all that a compiled function allows."""
    if way.inner is not None:
        return False
    return not way.vectorised or (record is not None and problem.rows(record.output_counts) == 1)


def _engine(
    problem: Problem, function: FlatFunction, direction: Direction, record: Record | None
) -> Engine:
    if problem.point is not None:
        return problem.point.engine(direction, problem.primals)
    begun = problem.take_begun()
    if begun is not None and begun.direction == direction:
        return begun
    if problem.recorded is not None:
        return problem.recorded
    constants = record is None or record.keeps_constants
    return linearize(function, problem.primals, direction, constants=constants)


def read_off(
    problem: Problem, way: Way, function: FlatFunction, engine: Engine, record: Record | None
) -> Answer:
    """Run the seeds through ``engine`` and put what comes out into the leaves of the Jacobian."""
    blocks, passes = _multiplied(problem, way, engine, record)
    leaves = assemble(blocks, engine, problem.primals, batched=problem.batched)
    return _answer(problem, way, function, engine, leaves, passes)


def _compressed(
    problem: Problem,
    way: Way,
    function: FlatFunction,
    compression: Compression,
    record: Record | None,
) -> Answer:
    """Run the seeds of the colours through one engine, or both, and read the entries off."""
    products: dict[Direction, list[Tensor]] = {}
    passes, draw = 0, Draw(problem.primals) if way.both else None
    seen = Repetitions()
    for direction in compression.directions(way):
        if products and draw is not None:
            draw.again()
        is_forward = direction == "forward"
        with exclusively(is_forward), uncompiled(not is_forward):
            engine = _engine(problem, function, direction, record)
            (products[direction],), more = _multiplied(problem, way, engine, record)
            passes += more
        seen.see(engine.values)
    seen.refuse_others()
    blocks = compression.blocks(way, products, engine.values, problem.primals)
    return _answer(problem, way, function, engine, blocks, passes)


def _multiplied(
    problem: Problem, way: Way, engine: Engine, record: Record | None
) -> tuple[list[list[Tensor]], int]:
    """All seeds through ``engine``, and how many they were."""
    seeds, size = _prepare(problem, way, engine, record)
    if isinstance(engine, Graph) and record is not None and to_check(problem, way, record):
        engine.outlives_passes = True
    places, ranks = _places(problem), problem.ranks
    if ranks is not None and problem.compression is not None:
        ranks.facts |= problem.compression.digests(way)
        return divided(ranks, engine, seeds, size, shown=problem.shown), seeds.total
    blocks = run(engine, seeds, size, places=places, shown=problem.shown)
    if record is not None and isinstance(engine, Push):
        record.keeps_constants &= engine.keeps_constants
    return blocks, seeds.total


def _places(problem: Problem) -> Places | None:
    into = problem.into
    if into is None or problem.compression is not None:
        return None
    return lambda engine: places_in(into(engine.values), engine, batched=problem.batched)


def _answer(
    problem: Problem,
    way: Way,
    function: FlatFunction,
    engine: Engine,
    leaves: Sequence[Sequence[Tensor | SparseBlock]],
    passes: int,
) -> Answer:
    values, carried = engine.values, engine.carried
    count = getattr(function, "num_values", None)
    if count is not None:
        values, carried = carried[:count], carried[count:]
    return Answer(way, passes, leaves, values, carried, problem.outcome(), engine.graph)


def to_check(problem: Problem, way: Way, record: Record) -> bool:
    """Whether the options want what ``way`` finds compared with a trusted answer, and it can be."""
    if problem.check == "never":
        # Numbers are not compared; but what was detected is no promise of the user's.
        return (
            problem.sparsity == "detect" and not problem.is_settled and has_values(problem.primals)
        )
    if problem.check == "first" and way in record.checked and problem.is_settled:
        return False
    return has_values(problem.primals)


def _prepare(
    problem: Problem, way: Way, engine: Engine, record: Record | None
) -> tuple[Seeds, int | None]:
    """The seeds, and how many of them go into one pass; remembered where that cannot change."""
    leaves = engine.values if engine.direction == "reverse" else engine.primals
    key = (way, engine.direction)
    if record is not None and key in record.prepared and record.prepared[key].layout.fits(leaves):
        return record.prepared[key], None
    layout = Layout(leaves, batched=problem.batched)
    seeds: Seeds = IdentitySeeds(layout)
    if problem.compression is not None:
        seeds = problem.compression.seeds(way, engine.direction, layout)
    if not way.vectorised:
        return seeds, 1
    if problem.chunk_size not in ("auto", None):
        return seeds, int(problem.chunk_size)
    if record is None:
        return seeds, None
    fits, size = True, seeds.total
    if problem.chunk_size is not None:
        held = _bytes_per_pass(problem, way, record)
        fits = seeds.total == 1 or always_fits(seeds.total, held)  # one cannot be divided
        if not fits:
            device, anew = problem.primals[0].device, engine.evaluates_anew
            size = choose_chunk_size(seeds.total, held, device, anew=anew)
    # A tensor that is made inside a transform belongs to it.
    if size >= seeds.total and not inside_transform():
        seeds.keep_if_small()
        if fits:
            record.prepared[key] = seeds
    return seeds, size


def _bytes_per_pass(problem: Problem, way: Way, record: Record) -> int:
    n = sum(primal.numel() for primal in problem.primals)
    m, itemsize = sum(record.output_counts), max(p.element_size() for p in problem.primals)
    if way.inner is None:
        return bytes_per_pass(record.largest, n + m, itemsize)
    # The gradient's intermediate results too, once for every row of an inner vmap.
    return bytes_per_pass(2 * record.largest, n, itemsize) * max(m, 1)
