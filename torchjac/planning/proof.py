"""A plan held against products that share nothing with how it was made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from torchjac.errors import PlanError
from torchjac.evaluation.cancellation import rounding_of_terms
from torchjac.evaluation.engines import Graph
from torchjac.evaluation.probes import adjoint_probe, difference_probe, forward_probe
from torchjac.evaluation.surroundings import Draw, has_values, out_of_inference
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.verify import recorded, trusted_function

if TYPE_CHECKING:
    from torchjac.planning.plan import Plan

__all__ = ["verify"]


def verify(plan: Plan, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Compare, or raise `PlanError`."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            verify(plan, args, kwargs)
        return
    _, problem = plan._transform.ask(args, kwargs)
    if not has_values(problem.primals):
        raise PlanError(
            f"{plan._name}.verify: there are no values to compare on fake tensors, nor within vmap, grad, "
            f"torch.compile or a dispatch mode. Verify outside."
        )
    primals = [primal.detach() for primal in out_of_inference(problem.primals)]
    problem = dataclasses.replace(problem, primals=primals)
    draw = Draw(problem.primals)
    with draw.aside(), torch.no_grad():
        answer = plan.answer(args, kwargs)
    graph = recorded(problem, answer, draw)
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
