"""A derivative divided over the ranks of a mesh: every rank runs a share of the seeds.

============================  =======================================  ====================
what is divided               a rank's share                           communicated
============================  =======================================  ====================
rows, in reverse mode         the Jacobian of its part of the outputs  a report
columns, in forward mode      the Jacobian by its part of the inputs   a report
colours of a sparse pattern   the products of its colours              the products as well
samples of a batch            the Jacobians of its samples             a report
============================  =======================================  ====================

All ranks have to decide alike, with nothing sent: so they remember what they decide on together apart from
what one of them may have found out alone, and a rank without a share makes a pass all the same, lest it
miss that PyTorch refuses it.

A share of a dense Jacobian is itself the Jacobian of a function: of the same one with its outputs, or
its inputs, narrowed. So it is chosen, chunked, checked and made again in the way that any other is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchjac.errors import TorchjacFallbackWarning, UnsupportedError
from torchjac.evaluation.engines import Direction
from torchjac.evaluation.narrowed import Columns, Part, Rows
from torchjac.evaluation.surroundings import Draw, out_of_inference
from torchjac.foundations.digests import digest
from torchjac.foundations.ranks import Ranks, Split
from torchjac.planning.fallback import is_of_a_backward, warn_user
from torchjac.planning.memory import Record
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.solve import first_look, solve
from torchjac.planning.ways import Way

__all__ = ["samples_of", "solve_samples", "solve_shared", "tell_values", "together"]

_Result = TypeVar("_Result")


def together(ranks: Ranks, work: Callable[[], _Result]) -> _Result:
    """Do this rank's work, and return its result if all ranks have done theirs alike."""
    try:
        result = work()
    except BaseException as error:  # an interrupt too: the others would wait for this rank
        if not ranks.parted:
            ranks.meet("done", error)
        raise
    ranks.meet("done")
    return result


def solve_shared(problem: Problem, ranks: Ranks) -> Answer:
    """Compute this rank's share of a derivative, in `DTensor` leaves."""
    plainly = problem.signature
    problem.signature = lambda: ("shared", ranks.rank, ranks.size, plainly())
    if problem.sparsity is not None:
        return _colors(problem, ranks)
    record = _seen(problem)
    way = record.next_way
    try:
        answer = _share(problem, ranks, way)
    except Exception as error:
        rest = [w for w in record.ways[record.refused :] if w.direction != way.direction]
        if not (rest and (isinstance(error, UnsupportedError) or is_of_a_backward(error))):
            raise
        way = rest[0]
        answer = _share(problem, ranks, way)
        record.instead = way
        warn_user(
            f"{problem.name}: {str(error).partition(' The function itself')[0]} Taken instead, here and at "
            f"later calls with such arguments: {way}.",
            TorchjacFallbackWarning,
        )
    ranks.facts["the mode"] = way.direction
    tell_values(ranks, answer.values)
    return answer


def tell_values(ranks: Ranks, values: Sequence[Tensor], of: str = "") -> None:
    """Have the ranks compare what they evaluated: it differs where what func captured or drew does."""
    for k, value in enumerate(values):
        ranks.facts[f"the shape of output {k}{of}"] = tuple(value.shape)
        ranks.facts[f"the dtype of output {k}{of}"] = str(value.dtype)
        # Residuals at a solution are what rounding left of terms that we do not see; say, of size one.
        ranks.facts[f"the value of output {k}{of}"] = digest(value, unit=1.0)


def _seen(problem: Problem) -> Record:
    """What is known of the whole problem; looked at once, and remembered."""
    key = problem.signature()
    record = problem.memory.recall(key)
    if record is None:
        record = first_look(problem, Draw(problem.primals))
        problem.memory.remember(key, record)
    return record


def _share(problem: Problem, ranks: Ranks, way: Way) -> Answer:
    """This rank's share in one direction, as the Jacobian of a narrowed function."""
    direction, part = way.direction, _part(problem, ranks, way.direction)
    mode = direction if way.inner is None else f"{direction}-over-{way.inner}"
    key = problem.signature()
    own = replace(
        problem,
        # By itself it is only looked at; it is part of a gradient that is narrowed in its outputs.
        function=problem.function
        if problem.order == 2 and direction == "reverse"
        else part.of(problem.function),
        whole=problem.function,
        part=part,
        primals=part.primals,
        mode=mode,
        signature=lambda: ("share", mode, key),
    )
    answer = solve(own)
    answer.leaves = [
        [
            ranks.sharded(leaf, part.split(o, i, leaf))
            for i, leaf in enumerate(row)
            if isinstance(leaf, Tensor)
        ]
        for o, row in enumerate(answer.leaves)
    ]
    return answer


def _part(problem: Problem, ranks: Ranks, direction: Direction) -> Part:
    if direction == "reverse":
        return Rows(ranks, problem.primals)
    return Columns(problem.primals, [ranks.split(primal.shape) for primal in problem.primals])


def _colors(problem: Problem, ranks: Ranks) -> Answer:
    """A sparse derivative: the products are divided, and then everybody has all of it."""
    problem.ranks = ranks
    answer = solve(problem)
    if problem.layout is torch.strided:
        answer.leaves = [[_own_rows(ranks, leaf) for leaf in row] for row in answer.laid_out()]
    tell_values(ranks, answer.values)
    return answer


def _own_rows(ranks: Ranks, leaf: Tensor) -> Tensor:
    split = ranks.split(leaf.shape)
    return ranks.sharded(leaf if split is None else split.of(leaf), split)


def samples_of(ranks: Ranks, total: int, *, promised: bool) -> Split:
    """This rank's samples of so many.

    It computes one where no sample is left for it, to know what there is none of; and two where it has
    only the user's word that they do not influence each other, which takes two to be seen.
    """
    return Split(0, total, ranks.share(total), least=2 if promised else 1)


def solve_samples(problem: Problem, ranks: Ranks, split: Split, first: Problem) -> Answer:
    """The derivative of this rank's samples, in `DTensor` leaves along the batch.

    Args:
        problem: of the samples that this rank computes.
        ranks: who the batch is divided over.
        split: how.
        first: of the first sample alone. Where the ranks make different things of that, func has captured,
            or drawn, different things.
    """
    draw = Draw(problem.primals)
    answer = solve(problem)
    if problem.promised and draw.has_moved():
        raise UnsupportedError(
            f"{problem.name}(device_mesh=...): func draws random numbers for the whole batch, and every rank "
            f"evaluates its own samples only, so that no two of them would draw alike. Draw them before, and "
            f"pass them as an argument."
        )
    with draw.aside():
        values, _ = (first.slower or first.function)(out_of_inference(first.primals))
    tell_values(ranks, values, " for the first sample")
    answer.leaves = [[_of_batch(ranks, leaf, split) for leaf in row] for row in answer.leaves]
    answer.values = [_of_batch(ranks, value, split) for value in answer.values]
    if not problem.promised:  # integer outputs and auxiliary tensors are of samples too
        answer.carried = [_of_batch(ranks, more, split) for more in answer.carried]
    return answer


def _of_batch(ranks: Ranks, leaf: Any, split: Split) -> Tensor:
    return ranks.sharded(leaf.detach(), split)
