"""What a plan says of itself when it is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchjac.evaluation.programs.program import new_bytes
from torchjac.planning.captured.bindings import noun
from torchjac.planning.plans.candidates import Candidate, runs_of
from torchjac.structure.components import count_components

if TYPE_CHECKING:
    from torchjac.planning.plans.plan import Plan

__all__ = ["explain"]

aten = torch.ops.aten

# Of the entries: a picture of more would show nothing.
_FULL = 0.5
# Of the work: where more is left, the passes are what runs.
_MOST = 0.5
# They put entries where they belong.
_PLACES = {
    *(aten.zeros.default, aten.full.default, aten.eye.default, aten.diag_embed.default),
    *(aten.index_copy.default, aten.index_put.default, aten.clone.default, aten.cat.default),
}


def explain(plan: Plan) -> str:
    """Say what was found, what was considered at what cost, what was chosen and why, and how it runs."""
    parts = [_title(plan), *_found(plan), *_considered(plan), *_chosen(plan), *_runs(plan)]
    return "\n".join(parts)


def _title(plan: Plan) -> str:
    n = sum(primal.numel() for primal in plan._problem.primals)
    what = {"jac": "Jacobian", "batched_jac": "per-sample Jacobians", "hessian": "Hessian"}
    lines = [
        f"Plan: {what[plan._transform.name]} of {noun(plan._transform.func)} by {n:,} elements"
    ]
    lines += [f"  {line}" for line in plan._fields.lines()]
    lines += [f"  loaded: {plan._loaded}"] if plan._loaded else []
    return "\n".join(lines)


def _found(plan: Plan) -> list[str]:
    found, lines = plan._design, ["found"]
    if found.compression is not None:
        pattern = found.compression.pattern
        rows, columns = pattern.shape
        density = pattern.nnz / max(rows * columns, 1)
        lines.append(
            f"  pattern   {rows:,} × {columns:,} with {pattern.nnz:,} nonzeros ({density:.2%}), "
            f"{_blocks(plan)}"
        )
        if density < _FULL:
            lines += [f"            {line}" for line in pattern.picture(lines=8).splitlines()]
    if found.waist is not None:
        sizes = " → ".join(f"{size:,}" for size in found.waist.bracketing.sizes)
        lines.append(f"  waist     {found.waist.narrowest:,} elements ({sizes})")
    lines += [f"  note      {note}" for note in found.notes]
    return lines if len(lines) > 1 else [*lines, "  nothing that saves passes"]


def _blocks(plan: Plan) -> str:
    pattern = plan.pattern
    assert pattern is not None
    parts = count_components(pattern)
    return f"{parts:,} independent parts" if parts > 1 else "all connected"


def _considered(plan: Plan) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("", "way", "passes", "flops", "bytes", "operations", "estimated", "measured")
    ]
    rows += [_row(plan, candidate) for candidate in plan._design.considered]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["considered"]
    for row in rows:
        cells = [
            text.ljust(width) if at < 2 else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    lines += [
        f"  not {candidate.name}: {candidate.refusal}"
        for candidate in plan._design.considered
        if candidate.refusal
    ]
    return lines


def _row(plan: Plan, candidate: Candidate) -> tuple[str, ...]:
    mark = "▶" if candidate is plan._design.chosen else ""
    cost = candidate.cost
    counted = ("", "", "", "")
    if cost is not None:
        counted = (
            _short(cost.flops),
            _short(cost.nbytes),
            str(cost.operations),
            _time(cost.time * 1e-12),
        )
    measured = "" if candidate.seconds is None else _time(candidate.seconds)
    return (mark, candidate.name, f"{candidate.passes:,}", *counted, measured)


def _chosen(plan: Plan) -> list[str]:
    chosen, lines = plan._design.chosen, ["chosen"]
    lines.append(f"  {chosen.name}, {plan._design.reason}")
    others = [
        candidate.cost.time
        for candidate in plan._design.considered
        if candidate.cost is not None and candidate is not chosen
    ]
    if chosen.cost is not None and others:
        lines.append(f"  at {chosen.cost.time / min(others):.2g} of the cost of the next best")
    return lines


def _runs(plan: Plan) -> list[str]:
    chosen = plan._design.chosen
    runs = runs_of(chosen, plan._design.compression)
    chunks = chosen.chunks_of(runs)
    what = f"{chosen.passes:,} {'pass' if chosen.passes == 1 else 'passes'}"
    what += f" ({' + '.join(f'{seeds:,}' for seeds in runs)})" if len(runs) > 1 else ""
    how = "at once" if len(runs) == 1 else "each at once"
    how = how if chunks <= len(runs) else f"in {chunks} chunks of {chosen.chunk_size:,}"
    lines = ["runs", f"  {what}, {how}"]
    if plan._program is None:
        lines.append("  through the function itself, as the transform does without a plan")
        return lines
    if (left := _left(plan)) < _MOST:
        lines.append(
            f"  about {left:.0%} of that is left: the zeros of the seeds are worked in already"
        )
    kind = "compiled" if plan._compiled else "operation by operation"
    lines.append(
        f"  as a graph of {plan._program.num_operations} operations, {kind}; "
        f"about {_short(plan._program.peak_bytes)}B at the peak"
    )
    return lines


def _left(plan: Plan) -> float:
    """The part of what passes with an identity write that the graph still writes, places not counted."""
    chosen, linear, program = plan._design.chosen, plan._design.linear, plan._program
    if chosen.colored or chosen.waist is not None or linear is None or program is None:
        return 1.0
    whole = chosen.passes * sum(map(new_bytes, linear.linear))
    written = [node for node in program.graph.graph.nodes if node.target not in _PLACES]
    return sum(map(new_bytes, written)) / max(whole, 1)


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def _time(seconds: float) -> str:
    for unit in ("s", "ms", "µs"):
        if seconds >= 1:
            return f"{seconds:.3g} {unit}"
        seconds *= 1000
    return f"{seconds:.3g} ns"
