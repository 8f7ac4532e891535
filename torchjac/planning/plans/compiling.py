"""A plan's program through the compiler."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchjac.errors import (
    PlanError,
    PlanMismatchError,
    SparsityMismatchError,
    UnsupportedError,
)
from torchjac.evaluation.probes import tolerance
from torchjac.evaluation.programs.compiled import compile_graph
from torchjac.evaluation.programs.folding import folded_for_compiler
from torchjac.evaluation.programs.program import Program
from torchjac.evaluation.programs.tracing import UntraceableError
from torchjac.evaluation.surroundings import Draw, defaults, has_values
from torchjac.planning.plans.candidates import Candidate, inputs_of
from torchjac.planning.plans.costs import estimated_time
from torchjac.planning.plans.fields import Arguments
from torchjac.planning.plans.proof import try_out
from torchjac.planning.plans.tuning import race

if TYPE_CHECKING:
    from torchjac.planning.plans.plan import Plan

__all__ = ["compiled"]


def compiled(plan: Plan) -> Plan:
    """The same plan with its program compiled, and tried out on the arguments it was made for.

    What was tuned was timed operation by operation, and compiled another way may be faster.
    """
    if plan._compiled:
        return plan
    rivals = _rivals(plan)
    if plan._program is None and not rivals:
        raise UnsupportedError(
            f"{plan._name}.compile(): this plan has no graph that could be compiled, because its way runs "
            f"func itself ({plan._design.reason}). Call it as it is, or write func so that it can be traced."
        )
    own = [] if plan._program is None else [_compiled(plan)]
    made = [*own, *[rival for rival in map(_compiled_rival, rivals) if rival is not None]]
    if not made:  # only rivals, and all of them failed; say of the first how
        return _compiled(rivals[0])
    return made[0] if len(made) == 1 else _fastest(made)


def _compiled(plan: Plan) -> Plan:
    program = plan._program
    assert program is not None
    plan._refuse_misfits(program)
    if defaults() != program.defaults:
        then, now = map(_words, (program.defaults, defaults()))
        raise PlanMismatchError(
            f"{plan._name}.compile(): new tensors are {now} by default, and the plan is for {then}. Compile "
            f"it under the defaults that it was made under, or make a new plan."
        )
    tensors = plan._arguments.laid_out(plan._arguments.planned)
    graph = folded_for_compiler(program.graph)
    made = Program(graph, compile_graph(graph, tensors))
    if has_values(tensors):
        _compare(plan, program, made, tensors)
    return dataclasses.replace(plan, _program=made, _compiled=True)


def _words(defaults: tuple[torch.dtype, torch.device | None, bool]) -> str:
    dtype, device, deterministic = defaults
    return f"{dtype} on {device}" + (", by deterministic algorithms," if deterministic else "")


def _compiled_rival(plan: Plan) -> Plan | None:
    try:
        return _compiled(plan)
    except (PlanError, UnsupportedError):
        return None


def _rivals(plan: Plan) -> list[Plan]:
    """Of a tuned plan, the plan by the cheapest of the other ways, calls of operations not counted."""
    design = plan._design
    if not any(candidate.seconds for candidate in design.considered):
        return []
    others = [c for c in design.considered if c is not design.chosen and c.program is not None]
    for candidate in sorted(others, key=_compiled_cost):
        try:
            return [_by_way(plan, candidate)]
        except (SparsityMismatchError, UntraceableError):
            continue
    return []


def _compiled_cost(candidate: Candidate) -> int:
    assert candidate.cost is not None
    return estimated_time(candidate.cost.flops, candidate.cost.nbytes, 0)


def _by_way(plan: Plan, candidate: Candidate) -> Plan:
    """The plan by another of the ways that it considered, or `UntraceableError` if that is not right."""
    problem, found = plan._problem, dataclasses.replace(plan._design, chosen=candidate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is not taken then
        try_out(problem, plan._record, found, Draw(problem.primals))
    bare = candidate.is_bare(plan._transform.give, plan._call, problem.outcome())
    given, strides = plan._fields.given, found.asks_for_strides
    arguments = Arguments(*given, inputs_of(problem), is_bare=bare, strides=strides)
    return dataclasses.replace(
        plan, _design=found, _program=candidate.program, _arguments=arguments
    )


def _fastest(plans: Sequence[Plan]) -> Plan:
    def run(plan: Plan) -> None:
        assert plan._program is not None
        plan._program(*plan._arguments.laid_out(plan._arguments.planned))

    with Draw(plans[0]._arguments.planned).aside(), torch.no_grad():
        seconds = race([partial(run, plan) for plan in plans], [True] * len(plans))
    timed = [(taken, at) for at, taken in enumerate(seconds) if taken is not None]
    best = plans[min(timed)[1] if timed else 0]
    reason = f"the fastest of {len(plans)} that were compiled, measured"
    return dataclasses.replace(best, _design=dataclasses.replace(best._design, reason=reason))


def _compare(plan: Plan, program: Program, made: Program, tensors: Sequence[Tensor]) -> None:
    draw = Draw(tensors)
    with draw.aside():
        expected = program(*tensors)
    with draw.aside():
        got = made(*tensors)
    for one, other in zip(got, expected, strict=True):
        rtol = tolerance([other])
        a, b = one.detach().double(), other.detach().double()
        scale = b.abs().nan_to_num(0, 0, 0).max().item() if b.numel() else 0.0
        if a.shape != b.shape or not torch.allclose(
            a, b, rtol=rtol, atol=rtol * scale, equal_nan=True
        ):
            worst = (a - b).abs().nan_to_num().max().item() if a.shape == b.shape else float("nan")
            raise PlanError(
                f"{plan._name}.compile(): the compiled derivative is off by {worst:.1e} where the largest "
                f"entry is {scale:.1e}. Inductor got an operation wrong; use the plan as it is."
            )
