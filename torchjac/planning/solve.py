"""From a problem to its answer: recall, choose a way, run it, fall back, check.

This is the one path that every transform of a function takes.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch

from torchjac.errors import PatternError, SparsityMismatchError, TorchjacError, UnsupportedError
from torchjac.evaluation.engines import linearize
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.graphs import describe
from torchjac.evaluation.surroundings import (
    Draw,
    compiling,
    has_values,
    inside_transform,
    inside_vmap,
    is_out_of_memory,
    out_of_inference,
)
from torchjac.foundations.seeds import Seeds
from torchjac.planning.attempt import attempt, read_off, to_check
from torchjac.planning.compressed import Compression
from torchjac.planning.fallback import Refusals, is_of_the_call, is_refusal, warn_slower
from torchjac.planning.look import evaluate_plainly, look
from torchjac.planning.memory import Alike, Record, recall_alike, remember_alike
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.sparsity import compress, still_holds
from torchjac.planning.verify import is_telling, verified
from torchjac.planning.ways import Way

__all__ = ["first_look", "solve"]

_MOST_VISITS = 3


def solve(problem: Problem) -> Answer:
    """Compute what ``problem`` asks for."""
    if compiling() or torch._C._len_torch_dispatch_stack():
        return _traced(problem)
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return solve(problem)
    problem.primals = out_of_inference(problem.primals)
    if problem.layout is not torch.strided and inside_transform():
        _refuse_layout(problem)
    key = problem.signature()
    record = problem.memory.recall(key) or _of_its_like(problem, key)
    if problem.slower is None:
        return _solve(problem, key, record)
    if record is not None and record.slower:
        problem.function = problem.slower
        return _solve(problem, key, record)
    try:
        return _solve(problem, key, record)
    except Exception as error:
        if is_of_the_call(error):
            raise  # anything else may come from the vmap around the function
        problem.function = problem.slower
        answer = _solve(problem, key, None)
        warn_slower(problem.name, error, len(problem.primals[0]))
        return answer


def _solve(problem: Problem, key: Hashable, record: Record | None) -> Answer:
    draw = None
    if record is not None and record.compression is not None:
        problem.is_settled = _is_settled(problem, key, record)
        record = None if _is_outdated(problem, record.compression) else record
    is_new = record is None
    if record is None or to_check(problem, record.next_way, record):
        draw = Draw(problem.primals)
        problem.keep_state()
        problem.begun = None
    keep = None
    detects = problem.sparsity == "detect"
    is_compared = draw is not None and problem.sparsity is not None
    if is_compared and (is_new or not detects) and not problem.is_sure():
        keep = problem.noted(key, not is_new)
    if record is None:
        record = first_look(problem, draw or Draw(problem.primals))
        problem.memory.remember(key, record)
        _note_likeness(problem, key, record)
        problem.is_settled, problem.is_guest = True, False
        if keep is not None and detects:
            keep(record)
    problem.compression = record.compression
    try:
        answer = _first_that_works(problem, record, draw)
        if draw is None or not to_check(problem, answer.way, record):
            record.repeats = _to_repeat(problem, record)
            return answer
        # What the answer is compared with must not be written over it.
        known, apart = record, replace(problem, into=None, shown=None, ranks=None)
        right = verified(problem, answer, known, draw, lambda way: attempt(apart, way, known))
        if keep is not None and is_telling(answer):
            keep(record)  # from here on the function is compared instead
        return right
    except (SparsityMismatchError, PatternError):
        if is_new or not detects:
            raise
    # What was detected for an earlier call is not true any more: something that the signature cannot
    # tell has changed.
    if draw is not None:
        draw.again()
    return _solve(problem, key, None)


def _to_repeat(problem: Problem, record: Record) -> tuple[Way, Seeds] | None:
    """The way and its seeds, if all that is left for calls like this one is one pass; see `repeated`."""
    way = record.next_way
    is_right = problem.check == "never" or (problem.check == "first" and way in record.checked)
    is_plain = problem.order == 1 and problem.recorded is None and not record.slower
    if not is_right or not is_plain or way.both or problem.is_guest or not problem.is_settled:
        return None
    seeds = record.prepared.get((way, way.direction))
    if seeds is None or len(seeds.counts) != 1 or not seeds.total:
        return None
    return way, seeds


def _of_its_like(problem: Problem, key: Hashable) -> Record | None:
    """What is known of the same code over other tensors, if those that its pattern depends on are the same.

    A step of an implicit solver has another right-hand side every time. What comes again and again is worth
    being looked at by itself; until then it is compared as well, for a function may read a tensor where
    nobody sees it.
    """
    if problem.sparsity != "detect" or not problem.is_sure() or not has_values(problem.primals):
        return None
    likeness, tensors = problem.likeness()
    alike = recall_alike(likeness)
    if alike is None or not alike.serves(tensors):
        return None
    record = problem.memory.recall(alike.key)
    if record is None or record.compression is None or not record.compression.is_true_to_constants:
        return None
    last, times = record.guest
    record.guest = (key, times + 1 if key == last else 1)
    problem.is_guest = record.guest[1] <= _MOST_VISITS
    return record if problem.is_guest else None


def _note_likeness(problem: Problem, key: Hashable, record: Record) -> None:
    if problem.sparsity != "detect" or record.compression is None or not problem.is_sure():
        return
    likeness, tensors = problem.likeness()
    decisive = record.compression.places_of_constants(tensors)
    if decisive is not None:
        remember_alike(likeness, Alike(key, tensors, decisive))


def _is_settled(problem: Problem, key: Hashable, record: Record) -> bool:
    """Whether a pattern that was right once is certainly one of the function as it is now.

    A pattern is one of the function's numbers and constants too. Where the signature cannot tell these (an
    attribute of a module, an array), nor anybody has watched them, every call is compared.
    """
    if problem.is_guest or not (problem.is_sure() or problem.is_unchanged(key, record)):
        return False
    compression = record.compression
    if compression is None or problem.sparsity != "detect":
        return True
    return still_holds(compression, problem.primals)


def _is_outdated(problem: Problem, compression: Compression) -> bool:
    """Whether a pattern has to be detected anew: it is wrong, or may be and cannot be compared."""
    if problem.sparsity != "detect" or problem.is_guest:
        return False
    return compression.is_stale or not (problem.is_settled or has_values(problem.primals))


def first_look(problem: Problem, draw: Draw) -> Record:
    """See the function for the first time; what it raises here is its own and comes out as it is."""
    if problem.recorded is not None:
        values = problem.recorded.values
        counts, largest = tuple(value.numel() for value in values), describe(values)[1]
    else:
        with draw.aside():
            seen = look(lambda primals: problem.function(primals)[0], problem.primals)
            counts, largest, problem.work = seen
    slower = problem.function is problem.slower
    if problem.sparsity is not None:
        with draw.aside():
            problem.compression = compress(problem, counts)
    ways = problem.ways(problem.rows(counts))
    return Record(counts, largest, ways, slower, compression=problem.compression)


def _first_that_works(problem: Problem, record: Record, draw: Draw | None) -> Answer:
    """Take the first way that PyTorch has not refused before, and if it refuses, those after it."""
    way = record.next_way
    try:
        return attempt(problem, way, record)
    except TorchjacError:
        raise
    except Exception as error:
        # Whatever PyTorch, or a rule of the user's, raises under a transform.
        if not is_refusal(error):
            raise
        _blame(problem)
        refused = error
    if record.keeps_constants and (way.direction == "forward" or way.both):
        # Then as PyTorch does it, and nobody has to be told.
        record.keeps_constants = False
        if draw is not None:
            draw.again()
        return _first_that_works(problem, record, draw)
    return _fall_back(problem, record, draw, Refusals(problem.name, way, refused))


def _fall_back(problem: Problem, record: Record, draw: Draw | None, refusals: Refusals) -> Answer:
    for rank in range(record.refused + 1, len(record.ways)):
        way = record.ways[rank]
        if refusals.rule_out(way):
            continue
        if draw is not None:
            draw.again()
        try:
            answer = attempt(problem, way, record)
        except TorchjacError:
            raise
        except Exception as error:  # as above
            if is_out_of_memory(error):
                raise
            refusals.add(way, error)
            continue
        record.refused, record.repeats = rank, None
        refusals.warn(answer.way, answer.passes)
        return answer
    raise refusals.error() from refusals.first


def _blame(problem: Problem) -> None:
    """Evaluate the function plainly: if it raises there too, the exception is the function's own."""
    with Draw(problem.primals).aside():
        evaluate_plainly(lambda primals: problem.function(primals)[0], problem.primals)


def _refuse_layout(problem: Problem) -> None:
    """PyTorch cannot batch sparse tensors, nor differentiate CSR tensors through torch.func."""
    if problem.layout is torch.sparse_csr or inside_vmap():
        raise UnsupportedError(
            f"{problem.name}(layout={problem.layout}): PyTorch's transforms (vmap, grad, ...) cannot handle "
            f"such a result. Use layout=torch.strided within them."
        )


def _traced(problem: Problem) -> Answer:
    """Compute under a compiler or a dispatch mode: nothing to remember, compare or fall back on."""
    vectorise = problem.chunk_size != 1
    if problem.sparsity is not None:
        return _traced_sparse(problem)
    if problem.mode != "auto":
        return attempt(problem, problem.ways(1)[0], None)
    # A reverse evaluation tells the sizes of the outputs, and is the one to use in most cases.
    way = Way("reverse", vectorise, "reverse" if problem.order == 2 else None)
    function = problem.differentiated(way)
    engine = linearize(function, problem.primals, "reverse")
    values = engine.values
    if isinstance(function, Jacobian):
        values = engine.carried[: function.num_values]
    best = problem.ways(problem.rows([value.numel() for value in values]))[0]
    return (
        read_off(problem, way, function, engine, None)
        if best == way
        else attempt(problem, best, None)
    )


def _traced_sparse(problem: Problem) -> Answer:
    if compiling():
        raise UnsupportedError(
            f"{problem.name}(sparsity=...): a pattern cannot be detected or coloured while torch.compile "
            f"traces the call. Compile func instead, or use sparsity=None here."
        )
    counts = [value.numel() for value in problem.function(problem.primals)[0]]
    problem.compression = compress(problem, counts)
    return attempt(problem, problem.ways(problem.rows(counts))[0], None)
