"""Making a plan: look, trace, choose, and check the choice on the arguments at hand."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchjac.errors import (
    DerivativeMismatchWarning,
    PlanError,
)
from torchjac.evaluation.programs.tracing import UntraceableError
from torchjac.evaluation.surroundings import (
    Draw,
    has_values,
    nothing_around,
    out_of_inference,
)
from torchjac.foundations.pytree import flatten
from torchjac.planning.captured.captures import Captures
from torchjac.planning.fallback import is_of_the_call, warn_slower
from torchjac.planning.memory import Memory, Record
from torchjac.planning.plans.candidates import inputs_of
from torchjac.planning.plans.design import Design, design, without_trace
from torchjac.planning.plans.fields import Arguments, Fields
from torchjac.planning.plans.plan import Plan, Transform
from torchjac.planning.plans.proof import ALWAYS, try_out
from torchjac.planning.problem import Problem
from torchjac.planning.solve import first_look
from torchjac.planning.ways import Way

__all__ = ["assembled", "captures_of", "make_plan"]


def make_plan(
    transform: Transform, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, tune: bool
) -> Plan:
    """Plan a transform for such arguments.

    The function is evaluated a few times and traced once. Nothing is checked where the arguments have
    no values.
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return make_plan(transform, args, kwargs, tune=tune)
    if not nothing_around(autocast=True):
        raise PlanError(
            f"{transform.name}(...).plan: a plan cannot be made within vmap, grad, torch.compile or a mode "
            f"of torch's dispatch. Make it outside, and call it there; or call the transform itself."
        )
    call, problem = transform.ask(args, kwargs)
    problem.primals = out_of_inference(problem.primals)
    captures = captures_of(transform, args, kwargs)
    draw = Draw(problem.primals)
    record = _seen(problem, draw)
    found = _designed(problem, record, captures, draw, tune)
    if found.chosen.colored and problem.sparsity is None and found.compression is not None:
        problem.sparsity = found.compression.pattern
        record.compression = found.compression
        record.ways = dataclasses.replace(problem, compression=found.compression).ways(
            problem.rows(record.output_counts)
        )
    if found.chosen.program is None:
        record.ways = (found.chosen.way, *[w for w in record.ways if w != found.chosen.way])
    plan = assembled(transform, call, problem, found, args, kwargs, captures, record)
    if found.chosen.program is None and not any(map(_is_backward, record.ways)):
        # PyTorch may have no forward rule, and nobody should learn of that at the first call.
        with draw.aside():
            plan.answer(args, kwargs)
    return plan


def _seen(problem: Problem, draw: Draw) -> Record:
    """The first look, sample by sample where PyTorch cannot vmap the function; see `solve`."""
    try:
        return first_look(problem, draw)
    except Exception as error:
        if problem.slower is None or is_of_the_call(error):
            raise
        problem.function = problem.slower
        record = first_look(problem, draw)
        warn_slower(problem.name, error, len(problem.primals[0]))
        return record


def _is_backward(way: Way) -> bool:
    """Whether it is made of backward passes alone, which PyTorch has for all that it differentiates."""
    return way.direction == "reverse" and way.inner != "forward"


def captures_of(transform: Transform, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Captures:
    """What the function of a transform reaches, and the arguments that are no tensors."""
    func = transform.func
    while isinstance(func, Plan):
        func = func._transform.func
    constants = [leaf for leaf in flatten((args, kwargs))[0] if not isinstance(leaf, Tensor)]
    return Captures.of(functools.partial(func, *constants) if constants else func)


def assembled(
    transform: Transform,
    call: Any,
    problem: Problem,
    found: Design,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    captures: Captures,
    record: Record,
) -> Plan:
    """Put a plan together, once all is known."""
    chosen, key = found.chosen, object()
    problem.signature = lambda: key
    problem.memory = Memory()  # its own, for it may be one of many
    problem.memory.remember(key, record)
    bare = chosen.program is not None and chosen.is_bare(transform.give, call, problem.outcome())
    return Plan(
        transform,
        call,
        problem,
        found,
        Fields(args, kwargs, strides=found.asks_for_strides),
        captures,
        Arguments(args, kwargs, inputs_of(problem), is_bare=bare, strides=found.asks_for_strides),
        chosen.program,
        record,
        _doubts={ALWAYS} if problem.check == "always" else set(),
    )


def _designed(
    problem: Problem, record: Record, captures: Captures, draw: Draw, tune: bool
) -> Design:
    """The design, of which the chosen way has stood the test on the arguments at hand."""
    if not nothing_around():
        reason = "autocast is on, whose casts a trace would hold where it is off or another one"
        return without_trace(problem, record, reason)
    if not captures.is_sure:
        reason = f"func reaches something that cannot be watched: {captures.unsure_of}"
        return without_trace(problem, record, reason)
    if changed := captures.changed():
        return without_trace(problem, record, f"func changes what it reaches: {changed}")
    found = design(problem, record, tune=tune)
    if changed := captures.changed():
        return without_trace(problem, record, f"func changes what it reaches: {changed}")
    if found.chosen.program is None or not has_values(problem.primals):
        return found
    return _proven(problem, record, found, draw)


def _proven(problem: Problem, record: Record, found: Design, draw: Draw) -> Design:
    """The design with the first way that stands the test: the chosen one, or else one along the trace.

    Transposed, a formula can divide by what it masked before, as that of ``std`` does where nothing
    varies. As it was traced it is what plain backward passes compute.
    """
    along = [
        candidate
        for candidate in found.considered
        if candidate is not found.chosen and candidate.program is not None and candidate.is_along
    ]
    reason, ways = "", [found.chosen, *along]
    for candidate in ways:
        tried = dataclasses.replace(found, chosen=candidate)
        with warnings.catch_warnings():
            if candidate is not ways[-1]:
                warnings.simplefilter("ignore", DerivativeMismatchWarning)
            try:
                try_out(problem, record, tried, draw)
            except UntraceableError as error:
                reason = reason or str(error)
                continue
        if reason:
            tried.reason = f"along the trace, since against it {reason}"
        return tried
    return without_trace(problem, record, reason, found)
