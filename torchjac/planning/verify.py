"""The self-check: an answer is compared once per signature, and made again where it is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchjac.errors import DerivativeMismatchWarning, SparsityMismatchError
from torchjac.evaluation.cancellation import rounding_of_terms
from torchjac.evaluation.engines import FlatFunction, Graph, linearize
from torchjac.evaluation.probes import (
    adjoint_probe,
    agree,
    are_alike,
    difference_probe,
    have_differences,
    plain_forward,
    rounding,
    tolerance,
)
from torchjac.evaluation.surroundings import Draw, is_out_of_memory
from torchjac.planning.coupling import refuse_coupling
from torchjac.planning.fallback import warn_user
from torchjac.planning.memory import Record
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.ways import Way
from torchjac.structure.blocks import SparseBlock

__all__ = ["agrees_with_backward", "is_telling", "recorded", "replayed", "verified"]

# Calls that are compared although those before have not shown anything wrong.
_MOST_UNSETTLED = 3


def verified(
    problem: Problem, answer: Answer, record: Record, draw: Draw, again: Callable[[Way], Answer]
) -> Answer:
    """Return ``answer`` if it stands the check, else one that ``again`` makes in a way that does.

    A Jacobian is compared with one plain backward pass, a Hessian with that and with a difference of
    gradients. Where two answers differ by no more than rounding after all, nothing is said.
    """
    reason = _disagreement(problem, answer, draw)
    if reason is not None and problem.compression is not None:
        _refuse_pattern(problem, answer, again, draw)
    if reason is not None or _settles(problem, answer, record):
        record.checked.add(answer.way)
    if reason is None:
        return answer
    trusted = answer.way.trusted
    best = answer
    for way in [trusted, *record.ways] if problem.order == 2 else [trusted]:
        if way != trusted and _is_finite(best):
            break  # a difference finds fault with what plain backward passes mean: they have the word
        replaced = None if way == answer.way else _made_again(again, way, draw)
        if replaced is None:
            continue
        if problem.order == 2 and not _survives_difference(problem, replaced, draw):
            best = replaced if way == trusted else best
            continue
        if _same(problem, answer, replaced, draw):
            return answer
        record.instead = way
        record.checked.add(way)
        remedy = f"The result was made again, {way} ({replaced.passes} passes)"
        _warn(problem, answer, reason, remedy)
        return replaced
    _warn(
        problem,
        answer,
        reason,
        "Plain backward passes say the same, so it stands: either the function holds a derivative back "
        "on purpose (detach, no_grad, a straight-through rule), or a double backward is wrong",
    )
    return best


def _settles(problem: Problem, answer: Answer, record: Record) -> bool:
    """Whether an answer that stood the check stands for those at other points.

    All zero, or not finite, it would have stood as well if a rule were wrong: people warm up with zeros. The
    next calls are compared in its place, but not for ever.
    """
    nothing_compared = problem.order == 1 and answer.way == answer.way.trusted
    if nothing_compared or is_telling(answer):
        return True
    record.unsettled += 1
    return record.unsettled > _MOST_UNSETTLED


def is_telling(answer: Answer) -> bool:
    """Whether there are numbers in it that would have been others if it were wrong."""
    return _is_finite(answer) and _is_any(answer)


def _is_finite(answer: Answer) -> bool:
    return all(bool(_numbers(leaf).isfinite().all()) for row in answer.leaves for leaf in row)


def _is_any(answer: Answer) -> bool:
    return any(bool(_numbers(leaf).any()) for row in answer.leaves for leaf in row)


def _numbers(leaf: Tensor | SparseBlock) -> Tensor:
    return (leaf.values if isinstance(leaf, SparseBlock) else leaf).detach().reshape(-1)


def _laid_out(leaf: Tensor | SparseBlock) -> Tensor:
    whole = leaf.laid_out(torch.strided) if isinstance(leaf, SparseBlock) else leaf
    return whole.detach().reshape(-1)


def _refuse_pattern(
    problem: Problem, answer: Answer, again: Callable[[Way], Answer], draw: Draw
) -> None:
    """Raise `SparsityMismatchError` if even plain backward passes do not fit into the pattern.

    An entry that the pattern lacks is added to others of its row or column, so it shows in a random
    product; and where plain passes with the pattern's seeds disagree with one that uses none, nothing
    but the pattern can be wrong.
    """
    trusted = answer.way.trusted
    plain = answer if answer.way == trusted else _made_again(again, trusted, draw)
    graph = None if plain is None else plain.graph or recorded(problem, plain, draw)
    if plain is None or graph is None:
        return
    wrong = adjoint_probe(graph, plain.leaves, batched=False, slack=rounding_of_terms(graph))
    if wrong is None:
        return
    places = [
        f"{at[:8].tolist()}{' and more' if len(at) > 8 else ''} of input leaf {leaf}"
        for leaf, at in enumerate(wrong)
        if len(at)
    ]
    remedy = (
        "The pattern was detected: either func does something else whenever it is called (it draws from "
        "Python's random, or counts its calls), or this is a mistake of torchjac, to be reported"
        if problem.sparsity == "detect"
        else "Add the entries that it lacks, or pass sparsity='detect'"
    )
    rows, columns = problem.compression.pattern.shape if problem.compression else (0, 0)
    raise SparsityMismatchError(
        f"{problem.name}(sparsity=...): the derivative has entries outside the pattern "
        f"({rows}×{columns}). It shows in the columns {'; '.join(places)}. {remedy}; sparsity=None "
        f"computes the derivative without a pattern."
    )


def _made_again(again: Callable[[Way], Answer], way: Way, draw: Draw) -> Answer | None:
    try:
        with draw.aside():
            return again(way)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None  # PyTorch refuses that way


def _disagreement(problem: Problem, answer: Answer, draw: Draw) -> str | None:
    """Say what the answer disagrees with, or None."""
    if problem.promised or problem.compression or answer.way != answer.way.trusted:
        # A graph with forward mode inside would only be compared with itself.
        graph = None if answer.way.inner == "forward" else answer.graph
        graph = graph or recorded(problem, answer, draw)
        if problem.promised:
            _refuse_coupling(problem, graph, draw)
        if graph is not None and not _stands_backward(problem, answer, graph):
            return "one plain backward pass"
    if problem.order == 2 and not _survives_difference(problem, answer, draw):
        slack = _rounding(problem, answer, draw)
        if not slack or not _survives_difference(problem, answer, draw, slack):
            return "a difference of gradients"
    return None


def _refuse_coupling(problem: Problem, graph: Graph | None, draw: Draw) -> None:
    """By backward passes, or where PyTorch has none by forward ones."""

    def pulled(cotangents: Sequence[Tensor]) -> Sequence[Tensor | None]:
        assert graph is not None
        return graph.multiply(dict(enumerate(cotangents)), last=False)

    def pushed(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        found = plain_forward(replayed(problem, draw), problem.primals, tangents)
        return () if found is None else found[1]

    if graph is not None:
        try:
            refuse_coupling(problem.name, graph.values, pulled)
        except RuntimeError as error:
            if problem.recorded is not None or is_out_of_memory(error):
                raise
        else:
            return
    refuse_coupling(problem.name, problem.primals, pushed)


def _rounding(problem: Problem, answer: Answer, draw: Draw) -> float:
    """What products may be off by where all that there was has cancelled; 0 if nobody can tell."""
    graph = recorded(problem, answer, draw)
    try:
        return 0.0 if graph is None else rounding_of_terms(graph)
    except Exception:  # noqa: BLE001 - plain backward refuses the function
        return 0.0


def _stands_backward(problem: Problem, answer: Answer, graph: Graph) -> bool:
    try:
        return agrees_with_backward(graph, answer.leaves, batched=problem.batched)
    except Exception as error:
        # With vmap around the function that is a reason to do without it; see `solve`. Otherwise
        # plain backward refuses the function, and there is nothing to compare with.
        if problem.slower is not None or is_out_of_memory(error):
            raise
        return True


def agrees_with_backward(
    graph: Graph, leaves: Sequence[Sequence[Tensor | SparseBlock]], *, batched: bool
) -> bool:
    """Whether leaves agree with one plain backward pass, but for what is left where terms cancel."""

    def agree_within(slack: float) -> bool:
        return adjoint_probe(graph, leaves, batched=batched, slack=slack) is None

    return agree_within(0.0) or agree_within(rounding_of_terms(graph))


def trusted_function(problem: Problem) -> FlatFunction:
    """The function that the leaves are the Jacobian of, as plain backward passes give it."""
    if problem.order == 1:
        return problem.function
    return problem.outer("reverse", vectorise=False)


def replayed(problem: Problem, draw: Draw) -> FlatFunction:
    """The same, to be evaluated at other points too, each time at the caller's random state."""
    function = trusted_function(problem)
    keeping = getattr(problem.function, "keeping_parameters", contextlib.nullcontext)

    def evaluated(primals: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        with draw.aside(), keeping():
            return function(primals)

    return evaluated


def recorded(problem: Problem, answer: Answer, draw: Draw) -> Graph | None:
    """Record a graph to compare a forward answer with; None if that cannot be done.

    A function that gives other values the second time draws from a generator that cannot be set
    back; there is nothing to compare then.
    """
    function = trusted_function(problem)
    captured = getattr(function, "captures_primals", False)
    primals = problem.primals if captured else [primal.detach() for primal in problem.primals]
    try:
        with draw.aside():
            graph = linearize(function, primals, "reverse")
    except Exception:  # noqa: BLE001 - an op without a backward formula: forward mode is all there is
        return None
    assert isinstance(graph, Graph)
    # A Jacobian carries the outputs of its function first, and maybe more behind them.
    values = graph.carried if hasattr(function, "num_values") else graph.values
    return graph if are_alike(values[: len(answer.values)], answer.values) else None


def _survives_difference(problem: Problem, answer: Answer, draw: Draw, slack: float = 0.0) -> bool:
    if not have_differences(problem.primals):
        return True
    if not all(value.isfinite().all() for value in answer.values):
        return True  # outside its domain a function has no differences either
    function = replayed(problem, draw)
    try:
        with torch.no_grad():
            return difference_probe(
                function, problem.primals, answer.leaves, batched=problem.batched, slack=slack
            )
    except Exception:  # noqa: BLE001 - no value beside this point: nothing to compare with
        return True


def _same(problem: Problem, answer: Answer, other: Answer, draw: Draw) -> bool:
    """Whether two answers are the same but for rounding.

    Entries that are zero but for rounding can be off by any factor, and what rounding is depends on
    terms that have cancelled. So entries that are small beside the largest may differ, if a
    difference quotient finds nothing wrong either.
    """
    pairs = [
        (_numbers(leaf), _numbers(other_leaf))
        if isinstance(leaf, SparseBlock) == isinstance(other_leaf, SparseBlock)
        else (_laid_out(leaf), _laid_out(other_leaf))
        for row, other_row in zip(answer.leaves, other.leaves, strict=True)
        for leaf, other_leaf in zip(row, other_row, strict=True)
    ]
    everything = [*answer.values, *[expected for _, expected in pairs]]
    rtol, close, far = tolerance(everything), rounding(answer.values), 64 * rounding(everything)
    pairs = [pair for pair in pairs if pair[0].numel()]
    if all(agree(got, expected, expected.abs(), rtol, close) for got, expected in pairs):
        return True
    return all(
        agree(got, expected, expected.abs(), rtol, far) for got, expected in pairs
    ) and _survives_difference(problem, answer, draw)


def _warn(problem: Problem, answer: Answer, reason: str, remedy: str) -> None:
    warn_user(
        f"{problem.name}: the derivative computed in {answer.way} disagrees with {reason}. A derivative "
        f"rule that it uses is wrong (a batching or forward rule of a custom autograd.Function, or one of "
        f"PyTorch's own), or the function hides a derivative from one mode alone (no_grad, .data, a hook). "
        f"{remedy}. torchjac.testing.check_jac shows where the results differ.",
        DerivativeMismatchWarning,
    )
