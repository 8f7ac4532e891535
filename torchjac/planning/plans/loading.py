"""A saved plan, held against a function and put together without looking anything up.

What does not fit is refused by a `PlanError` that says which field it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from torchjac.errors import TorchjacError
from torchjac.evaluation.programs.fingerprints import (
    code_fingerprint,
    graph_fingerprint,
    numbered,
    value_fingerprint,
)
from torchjac.evaluation.programs.linear import LinearGraph
from torchjac.evaluation.programs.tracing import UntraceableError, trace
from torchjac.evaluation.surroundings import out_of_inference
from torchjac.planning.compressed import Compression
from torchjac.planning.look import evaluate_plainly
from torchjac.planning.plans.candidates import Candidate, linearized, passes_of, with_program
from torchjac.planning.plans.design import Design
from torchjac.planning.plans.plan import Plan, Transform
from torchjac.planning.plans.planner import assembled, captures_of
from torchjac.planning.plans.proof import LOADED
from torchjac.planning.plans.saved import Saved
from torchjac.planning.plans.saving import kinds
from torchjac.planning.problem import Problem

__all__ = ["remade"]


def remade(saved: Saved, transform: Transform) -> Plan:
    """Make the plan again, for the function of a transform that was built with the saved options.

    The function is traced, and not evaluated. Nothing is detected, coloured or considered.
    """
    args, kwargs = saved.args, saved.kwargs
    try:
        call, problem = transform.ask(args, kwargs)
    except TorchjacError as error:
        raise saved.refuse(f"func does not fit the saved options ({error})") from error
    problem.primals = out_of_inference(problem.primals)
    _check_primals(saved, problem)
    captures = captures_of(transform, args, kwargs)
    try:
        found = _design(saved, transform, problem)
    except UntraceableError as error:
        why = f"func cannot be planned as it was: {error}{saved.other_versions}"
        raise saved.refuse(why) from error
    changed = captures.changed() or captures.unsure_of
    if saved.is_traced and changed:
        raise saved.refuse(f"func cannot be watched as it was: {changed}")
    plan = assembled(transform, call, problem, found, args, kwargs, captures, saved.record)
    made = ", ".join(f"{name} {version}" for name, version in saved.versions.items())
    doubts = plan._doubts if problem.check == "never" else plan._doubts | {LOADED}
    where = f"from {saved.path}, saved with {made}"
    return dataclasses.replace(plan, _loaded=where, _doubts=doubts)


def _check_primals(saved: Saved, problem: Problem) -> None:
    now = kinds(problem.primals)
    if len(now) != len(saved.primals):
        raise saved.refuse(
            f"func is differentiated by {len(now)} tensors, and the plan is for {len(saved.primals)}"
        )
    for at, (was, kind) in enumerate(zip(saved.primals, now, strict=True)):
        if was != kind:
            raise saved.refuse(
                f"tensor {at} that func is differentiated by is {kind}, and the plan is for {was}"
            )


def _design(saved: Saved, transform: Transform, problem: Problem) -> Design:
    """The saved design with its graphs, or `UntraceableError`."""
    linear, constants = _recognised(saved, transform, problem)
    chosen, waist, compression = saved.considered[saved.chosen], saved.waist, saved.compression
    if compression is not None and saved.relies_on_constants:
        compression = Compression(
            compression.pattern,
            constants,
            symmetric=compression.symmetric,
            name=problem.name,
            colorings=compression.colorings,
        )
    if waist is not None and linear is not None:
        nodes = list(linear.graph.graph.nodes)
        cuts = tuple([tuple([nodes[at] for at in cut]) for cut in saved.cuts])
        waist = dataclasses.replace(waist, cuts=cuts)
    if problem.sparsity is not None:
        problem.compression = compression
    elif chosen.colored and compression is not None:
        problem.sparsity = compression.pattern
    saved.record.compression = compression if problem.sparsity is not None else None
    considered = list(saved.considered)
    if linear is not None and saved.is_traced:
        colored = dataclasses.replace(problem, compression=compression if chosen.colored else None)
        chosen = dataclasses.replace(chosen, waist=waist if saved.through_waist else None)
        _check_passes(saved, colored, chosen)
        _see_outputs(problem)
        chosen = considered[saved.chosen] = with_program(colored, linear, chosen)
    return Design(chosen, considered, compression, waist, saved.reason, saved.notes, linear)


def _check_passes(saved: Saved, problem: Problem, chosen: Candidate) -> None:
    counts = saved.record.output_counts
    passes = chosen.waist.passes if chosen.waist else passes_of(problem, chosen.way, counts)
    if chosen.passes != passes:
        raise saved.refuse(f"its way takes {passes} passes, and {chosen.passes} are in the file")


def _recognised(
    saved: Saved, transform: Transform, problem: Problem
) -> tuple[LinearGraph | None, list[Tensor]]:
    """The trace of the function, if it is the one that was saved; and what its pattern depends on."""
    expected = saved.fingerprint
    if expected["of"] == "code":
        if code_fingerprint(transform.func) != expected["digest"]:
            raise saved.refuse(f"func has other code than it had{saved.other_versions}")
        return None, []
    linear = linearized(problem)
    if graph_fingerprint(linear.graph) != expected["digest"]:
        raise saved.refuse(
            f"func is another function: its trace has other operations, shapes, dtypes or "
            f"constants{saved.other_versions}"
        )
    captured = numbered(linear.graph)
    constants = [captured[at] for at in expected["by_value"]]
    if value_fingerprint(constants) != expected["values"]:
        raise saved.refuse("the tensors that func captured, and that shaped the pattern, changed")
    return linear, constants


def _see_outputs(problem: Problem) -> None:
    """Learn into what trees the outputs go, on tensors without values."""

    def values(*primals: Tensor) -> Any:
        return evaluate_plainly(lambda leaves: problem.function(leaves)[0], primals)

    trace(values, problem.primals)
