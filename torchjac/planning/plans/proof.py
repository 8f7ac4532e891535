"""A plan held against products that share nothing with how it was made: when asked, and in calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from torchjac.errors import DerivativeMismatchWarning, PlanError, SparsityMismatchError
from torchjac.evaluation.cancellation import rounding_of_terms
from torchjac.evaluation.engines import Graph
from torchjac.evaluation.nans import has_stray_nan
from torchjac.evaluation.probes import (
    adjoint_probe,
    are_alike,
    difference_probe,
    forward_is_off,
    forward_probe,
)
from torchjac.evaluation.programs.tracing import UntraceableError
from torchjac.evaluation.surroundings import Draw, has_values, out_of_inference
from torchjac.planning.attempt import attempt
from torchjac.planning.fallback import reason_of, warn_user
from torchjac.planning.look import evaluate_plainly
from torchjac.planning.memory import Record
from torchjac.planning.plans.candidates import inputs_of
from torchjac.planning.plans.design import Design
from torchjac.planning.plans.fields import as_dense
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.verify import agrees_with_backward, recorded, replayed, verified

if TYPE_CHECKING:
    from torchjac.planning.plans.plan import Plan

__all__ = ["ALWAYS", "LOADED", "stands", "try_out", "verify"]


def verify(plan: Plan, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Compare, or raise `PlanError`."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            verify(plan, args, kwargs)
        return
    problem = _problem(plan, args, kwargs)
    if not has_values(problem.primals):
        raise PlanError(
            f"{plan._name}.verify: there are no values to compare on fake tensors, nor within vmap, grad, "
            f"torch.compile or a dispatch mode. Verify outside."
        )
    draw = Draw(problem.primals)
    answer, graph = _compared(plan, args, kwargs, problem, draw)
    if graph is None:
        raise PlanError(
            f"{plan._name}.verify: func gives other values than the plan, or has no plain backward pass; "
            f"there is nothing to compare with. Make a new plan."
        )
    disagrees = _disagreements(problem, answer, graph, draw)
    if disagrees:
        # Where all that there was has cancelled, two right answers have no digit in common.
        slack = rounding_of_terms(graph)
        disagrees = _disagreements(problem, answer, graph, draw, slack)
    if disagrees:
        raise PlanError(
            f"{plan._name}.verify: the derivative disagrees with {' and '.join(disagrees)}. If that is a "
            f"difference alone, func may hold a derivative back on purpose (detach, no_grad) or have a "
            f"kink here; else please report it. torchjac.testing.check_jac shows where."
        )
    function = replayed(problem, draw)
    if has_stray_nan(function, graph, answer.leaves, batched=problem.batched):
        raise PlanError(
            f"{plan._name}.verify: the derivative is nan where neither the plain backward pass of the row "
            f"nor the plain forward pass of the column is. Please report it. torchjac.testing.check_jac "
            f"shows where."
        )


def stands(plan: Plan, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the derivative agrees with one plain backward pass, here and now; True without values.

    Raises:
        PlanError: it does not, and the plan was loaded.
    """
    problem = _problem(plan, args, kwargs)
    if not has_values(problem.primals):
        return True
    draw = Draw(problem.primals)
    answer, graph = _compared(plan, args, kwargs, problem, draw)
    if graph is not None and agrees_with_backward(graph, answer.leaves, batched=problem.batched):
        plan._doubts.discard(LOADED)
        return True
    if plan._loaded:
        raise PlanError(
            f"{plan._name}: the derivative disagrees with one plain backward pass. The plan was loaded "
            f"{plan._loaded}: the file has been changed, or its plan does not hold here any more. Make a new "
            f"plan, and save that."
        )
    warn_user(
        f"{plan._name}: the derivative disagrees with one plain backward pass. It was made again without "
        f"the plan. Make a new plan, or please report it.",
        DerivativeMismatchWarning,
    )
    return False


LOADED, ALWAYS = "loaded", "always"
"""Why results are compared: the first one since the plan was loaded; every one, as ``check`` says."""


def _problem(plan: Plan, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Problem:
    """The problem of a call, cut off from whatever it could be differentiated by."""
    _, problem = plan._transform.ask(args, kwargs)
    primals = [primal.detach() for primal in out_of_inference(problem.primals)]
    return dataclasses.replace(problem, primals=primals)


def _compared(
    plan: Plan, args: tuple[Any, ...], kwargs: Mapping[str, Any], problem: Problem, draw: Draw
) -> tuple[Answer, Graph | None]:
    """What the plan says, and what plain autograd records to compare it with, if it gives the same."""
    with draw.aside(), torch.no_grad():
        answer = plan.answer(args, kwargs)
    return answer, recorded(problem, answer, draw)


_FORWARD = "one plain forward pass"


def _disagreements(
    problem: Problem, answer: Answer, graph: Graph, draw: Draw, slack: float = 0.0
) -> list[str]:
    """What the answer disagrees with by more than rounding and ``slack``, in words."""
    function, found = replayed(problem, draw), []
    how: Any = {"batched": problem.batched, "slack": slack}
    if adjoint_probe(graph, answer.leaves, **how) is not None:
        found.append("one plain backward pass")
    if not forward_probe(function, problem.primals, answer.leaves, **how):
        found.append(_FORWARD)
    with torch.no_grad():
        if not difference_probe(function, problem.primals, answer.leaves, **how):
            found.append(
                "a difference of gradients" if problem.order == 2 else "a central difference"
            )
        # Forward rules are wrong more often: a pass that a difference refutes too counts for nothing.
        if found == [_FORWARD] and forward_is_off(function, problem.primals):
            return []
    return found


def try_out(problem: Problem, record: Record, found: Design, draw: Draw) -> None:
    """Compare what the chosen program returns with the function itself, or raise `UntraceableError`."""
    chosen, tensors, record = found.chosen, as_dense(inputs_of(problem)), record.apart()
    assert chosen.program is not None
    assert found.linear is not None
    try:
        with draw.aside():
            returned = chosen.program(*tensors)
    except Exception as error:
        # The function itself has been evaluated here: PyTorch told the trace of other results than it gives.
        raise UntraceableError(f"what was traced does not run: {reason_of(error)}") from error
    answer = chosen.answer(returned, len(problem.primals), problem.outcome())
    with draw.aside(), torch.no_grad():
        answer.values, answer.carried = found.linear.at(tensors).evaluated()
    with draw.aside():
        values = evaluate_plainly(lambda primals: problem.function(primals)[0], problem.primals)
    if not are_alike(answer.values, values):
        raise UntraceableError(
            "func gave other values than its trace, so it depends on something that is not an argument: "
            "a state, the time, a generator of its own"
        )
    if problem.check == "never":
        return
    here = dataclasses.replace(problem, compression=found.compression if chosen.colored else None)
    try:
        kept = verified(here, answer, record, draw, lambda way: attempt(here, way, record))
    except SparsityMismatchError as error:
        if problem.sparsity is not None:
            raise
        raise UntraceableError(
            f"the pattern that was found is not that of the derivative ({error})"
        ) from error
    if kept is not answer:
        raise UntraceableError("the traced derivative disagreed with plain backward passes")
