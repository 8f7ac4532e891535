"""What a plan decides: look at the function, work out the ways there are, count or measure, choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from torchjac.errors import StructureError
from torchjac.evaluation.programs.linear import LinearGraph
from torchjac.evaluation.programs.tracing import UntraceableError
from torchjac.evaluation.surroundings import has_values
from torchjac.planning.compressed import Compression
from torchjac.planning.memory import Record
from torchjac.planning.plans.candidates import Candidate, linearized, passes_of, traced
from torchjac.planning.plans.tuning import measured
from torchjac.planning.plans.waists import Waist, find_waist
from torchjac.planning.problem import Problem
from torchjac.planning.sparsity import find_pattern
from torchjac.planning.ways import Way, compressed_ways

__all__ = ["Design", "design", "without_trace"]

# A pattern is looked for unasked up to so many entries.
_MOST_ENTRIES = 1 << 24
# Costs are counted, not measured: among those that are so close, fewer passes decide.
_CLOSE = 1.25
_CHEAPEST = "the cheapest, counted"
_FEWEST = "the fewest passes of those that are about the cheapest, counted"
# Of measured times.
_NOISE = 1.05


@dataclass
class Design:
    """What was found, what was considered, and what was chosen."""

    chosen: Candidate
    considered: list[Candidate]
    compression: Compression | None
    """The pattern that was given or found, whether or not its colours were chosen."""
    waist: Waist | None
    reason: str
    notes: list[str] = field(default_factory=list)
    linear: LinearGraph | None = None
    """What was traced."""

    @property
    def asks_for_strides(self) -> bool:
        """Whether it holds for arguments with these strides alone."""
        return self.linear is not None and self.linear.asks_for_strides


def design(problem: Problem, record: Record, *, tune: bool) -> Design:
    """Work out the ways that the options leave, and choose one."""
    notes: list[str] = []
    try:
        _refuse_inner_forward(record)
        linear = linearized(problem)
    except UntraceableError as error:
        return without_trace(problem, record, str(error))
    found = problem.compression or _pattern(problem, record, notes)
    waist = _waist(problem, linear)
    colored = dataclasses.replace(problem, compression=found)
    considered = [
        *(traced(problem, linear, way, _words(way)) for way in _dense_ways(problem, record)),
        *(traced(colored, linear, way, _color_words(found, way)) for way in _color_ways(colored)),
    ]
    if waist is not None:
        way = Way("reverse", problem.chunk_size != 1, record.ways[0].inner)
        name = f"through a waist of {waist.narrowest}: {waist.bracketing}"
        considered.append(traced(problem, linear, way, name, waist))
    ready = [candidate for candidate in considered if candidate.program is not None]
    if not ready:
        refusals = {candidate.refusal for candidate in considered}
        return without_trace(problem, record, "; ".join(map(str, refusals)))
    least = min(map(_counted, ready))
    close = [candidate for candidate in ready if _counted(candidate) <= _CLOSE * least]
    chosen = min(close, key=lambda one: (one.passes, _counted(one)))
    reason = _CHEAPEST if _counted(chosen) == least else _FEWEST
    if tune and has_values(problem.primals):
        place = considered.index(chosen)
        untraced = [_untraced(problem, record, way) for way in _dense_ways(problem, record)]
        considered = measured(problem, record, [*considered, *untraced])
        chosen, reason = _fastest(considered, considered[place], reason)
    return Design(chosen, considered, found, waist, reason, notes, linear)


def _fastest(
    considered: Sequence[Candidate], counted: Candidate, reason: str
) -> tuple[Candidate, str]:
    """The fastest by measure; but what was counted stays where the difference could be noise."""
    timed = [candidate for candidate in considered if candidate.seconds is not None]
    best = min(timed, key=lambda one: one.seconds or 0.0)
    if counted.seconds is not None and counted.seconds <= _NOISE * (best.seconds or 0.0):
        return counted, f"{reason}, and no slower than others, measured"
    return best, "the fastest, measured"


def without_trace(
    problem: Problem, record: Record, reason: str, found: Design | None = None
) -> Design:
    """Keep to what sizes tell, where the function cannot be traced or its trace not be trusted."""
    plain = _plain(problem, record)
    considered = [*(found.considered if found else ()), plain]
    return Design(plain, considered, problem.compression, None, f"by sizes alone: {reason}")


def _refuse_inner_forward(record: Record) -> None:
    if record.ways[0].inner == "forward":
        raise UntraceableError(
            "the mode asks for forward mode inside, and what is traced are backward passes"
        )


def _plain(problem: Problem, record: Record) -> Candidate:
    """What is done without a plan."""
    way = record.next_way
    return _by_sizes(problem, record, way, _words(way), problem.compression is not None)


def _untraced(problem: Problem, record: Record, way: Way) -> Candidate:
    """A way through the function itself, for its time to be taken."""
    return _by_sizes(problem, record, way, f"{_words(way)}, not traced")


def _by_sizes(
    problem: Problem, record: Record, way: Way, name: str, colored: bool = False
) -> Candidate:
    passes = passes_of(problem, way, record.output_counts)
    asked = problem.chunk_size if way.vectorised else 1
    size = passes if asked in ("auto", None) else min(passes, int(asked))
    return Candidate(name, way, passes, size, colored)


def _words(way: Way) -> str:
    return f"{way.mode} mode"


def _color_words(compression: Compression | None, way: Way) -> str:
    assert compression is not None
    coloring = compression.coloring(way)
    symmetric = "star" if coloring.max_terms == 1 else "acyclic"
    kinds = {"symmetric": symmetric, "bidirectional": "row and column"}
    kind = kinds.get(coloring.by, coloring.by[:-1])
    many = "colours" if coloring.num_colors != 1 else "colour"
    return f"{way.mode} mode, {coloring.num_colors} {kind} {many}"


def _pattern(problem: Problem, record: Record, notes: list[str]) -> Compression | None:
    """Look for a pattern that nobody asked for, where one could help."""
    if problem.batched:
        return None
    n, m = sum(primal.numel() for primal in problem.primals), sum(record.output_counts)
    rows = m if problem.order == 1 else m * n
    if min(rows, n) <= 1 or rows * n > _MOST_ENTRIES:
        return None
    try:
        pattern, constants = find_pattern(problem, warn=False)
    except StructureError as error:
        notes.append(f"no pattern: {error}")
        return None
    if constants:
        notes.append(
            "the pattern would depend on the values of captured tensors, so it is not used; "
            "sparsity='detect' uses it"
        )
        return None
    return Compression(
        pattern,
        symmetric=problem.order == 2 and m == 1,
        name=problem.name,
        forward_cost=problem.work.forward_cost(pattern.nnz),
    )


def _waist(problem: Problem, linear: LinearGraph) -> Waist | None:
    if problem.compression is not None or problem.mode != "auto":
        return None
    samples = problem.primals[0].shape[0] if problem.batched else None
    return None if samples == 0 else find_waist(linear, samples)


def _dense_ways(problem: Problem, record: Record) -> list[Way]:
    if problem.compression is not None:
        return []
    first, vectorised = record.ways[0], problem.chunk_size != 1
    ways = [Way("reverse", vectorised, first.inner), Way("forward", vectorised, first.inner)]
    if problem.mode != "auto":
        return [way for way in ways if way.direction == first.direction]
    return ways


def _color_ways(problem: Problem) -> list[Way]:
    """The ways of a colouring that takes fewer passes than there are rows and columns."""
    compression = problem.compression
    if compression is None:
        return []
    vectorised, most = problem.chunk_size != 1, min(compression.pattern.shape)
    if problem.order == 2:
        ways = [way for way in problem.ways(1) if way.vectorised == vectorised][:1]
    else:
        ladder = compressed_ways(problem.mode, compression.chosen, vectorise=vectorised)
        ways = [w for w in ladder if w.vectorised == vectorised and compression.is_wanted(w)]
    if problem.sparsity is not None:
        return ways
    return [way for way in ways if 2 * compression.coloring(way).num_colors <= most]


def _counted(candidate: Candidate) -> int:
    assert candidate.cost is not None
    return candidate.cost.time
