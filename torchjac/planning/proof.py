"""A plan held against products that share nothing with how it was made: when asked, and in calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from torchjac.errors import DerivativeMismatchWarning, PlanError
from torchjac.evaluation.cancellation import rounding_of_terms
from torchjac.evaluation.engines import Graph
from torchjac.evaluation.probes import adjoint_probe, difference_probe, forward_probe
from torchjac.evaluation.surroundings import Draw, has_values, out_of_inference
from torchjac.planning.fallback import warn_user
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.verify import agrees_with_backward, recorded, trusted_function

if TYPE_CHECKING:
    from torchjac.planning.plan import Plan

__all__ = ["ALWAYS", "LOADED", "stands", "verify"]


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


def _disagreements(
    problem: Problem, answer: Answer, graph: Graph, draw: Draw, slack: float = 0.0
) -> list[str]:
    """What the answer disagrees with by more than rounding and ``slack``, in words."""
    function, found = trusted_function(problem), []
    how: Any = {"batched": problem.batched, "slack": slack}
    if adjoint_probe(graph, answer.leaves, **how) is not None:
        found.append("one plain backward pass")
    with draw.aside():
        if not forward_probe(function, problem.primals, answer.leaves, **how):
            found.append("one plain forward pass")

    def replayed(primals: Any) -> Any:
        with draw.aside(), torch.no_grad():
            return function(primals)

    if not difference_probe(replayed, problem.primals, answer.leaves, **how):
        found.append("a difference of gradients" if problem.order == 2 else "a central difference")
    return found
