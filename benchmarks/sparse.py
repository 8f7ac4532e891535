"""Sparse Jacobians, side by side: ``python -m benchmarks.sparse``.

What is done once, detection and colouring, and what is done at every call, the evaluation, are timed
apart, each in turn with its peers. The peers run in JAX, compiled; they are left out, with a line that
says so, where they are not installed.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torchjac

from . import colorings
from .__main__ import RESULTS
from .memory import cap_memory
from .race import FULL, OURS, QUICK, Effort, Entrant, one_line, take_turns
from .report import header, readable
from .sparse_workloads import SPARSE_WORKLOADS, TORCH, SparseWorkload, jax_arrays

try:
    import asdex
    import jax
    import sparsejac
    from jax import numpy as jnp
except ImportError as missing:
    MISSING = f"The peers asdex and sparsejac were left out: {missing}."
else:
    MISSING = ""

PLAN = "plan"
DENSE, ASDEX, SPARSEJAC, PASSES = "dense", "asdex, jitted", "sparsejac, jitted", "vmapped passes"
DENSE_LIMIT = 8192  # a dense Jacobian of more inputs takes minutes, and gigabytes
SLOW = 5.0  # seconds; a peer that takes longer once is not asked again


@dataclass
class Line:
    """One workload at one size: seconds by phase and entrant, and how many colours each found."""

    workload: SparseWorkload
    size: int
    inputs: int
    nnz: int = 0
    colors: dict[str, int] = field(default_factory=dict)
    phases: dict[str, dict[str, float]] = field(default_factory=dict)
    raised: dict[str, str] = field(default_factory=dict)

    def ratio(self, phase: str, peer: str, own: str = OURS) -> float | None:
        """Time of torchjac, or of its plan, over the time of a peer, if both have one."""
        seconds = self.phases.get(phase, {})
        return seconds[own] / seconds[peer] if own in seconds and peer in seconds else None


def measured(
    runs: dict[str, Callable[[], Any]], effort: Effort, line: Line, *, collecting: bool = False
) -> dict[str, float]:
    """Time the entrants in turn; whoever raises, or is very slow, is timed once or not at all."""
    entrants, seconds = [], {}
    for name, run in runs.items():
        start = time.perf_counter()
        try:
            run()
        except Exception as error:
            line.raised[name] = one_line(error)
            continue
        cold = time.perf_counter() - start
        if cold > SLOW:
            seconds[name] = cold
        else:
            entrants.append(Entrant(name, run, cold))
    take_turns(entrants, effort, collecting=collecting)
    return seconds | {entrant.name: statistics.median(entrant.seconds) for entrant in entrants}


def race(workload: SparseWorkload, size: int, effort: Effort) -> Line:
    """Detect, colour and evaluate, everybody in turn."""
    torch.manual_seed(0)
    n = workload.inputs(size)
    func, x = workload.build(TORCH, size), torch.randn(n)
    line = Line(workload, size, n)
    hessian = workload.kind == "hessian"
    find = torchjac.hessian_sparsity if hessian else torchjac.jac_sparsity
    by = "symmetric" if hessian else "auto"
    pattern = find(func)(x)
    coloring = torchjac.color(pattern, by)
    line.nnz, line.colors[OURS] = pattern.nnz, coloring.num_colors

    transform = torchjac.hessian if hessian else torchjac.jac
    derivative = transform(func, sparsity=pattern, layout=torch.sparse_coo)
    detections: dict[str, Callable[[], Any]] = {OURS: lambda: find(func)(x)}
    colorings: dict[str, Callable[[], Any]] = {OURS: lambda: torchjac.color(fresh(pattern), by)}
    plan = derivative.plan(x)
    evaluations: dict[str, Callable[[], Any]] = {OURS: lambda: derivative(x), PLAN: lambda: plan(x)}
    if n <= DENSE_LIMIT:
        dense = torch.func.hessian if hessian else torch.func.jacfwd
        evaluations[DENSE] = lambda: dense(func)(x)
    used = coloring if hessian else torchjac.color(pattern, "columns")
    evaluations[PASSES] = functools.partial(passes, func, x, used, hessian)
    if not MISSING:
        add_peers(line, x, derivative(x), detections, colorings, evaluations)
    with torch.no_grad():
        line.phases["detection"] = measured(detections, effort, line, collecting=True)
        line.phases["colouring"] = measured(colorings, effort, line, collecting=True)
        line.phases["evaluation"] = measured(evaluations, effort, line)
    return line


def fresh(pattern: torchjac.SparsityPattern) -> torchjac.SparsityPattern:
    """The same pattern with nothing worked out about it yet."""
    return torchjac.SparsityPattern.from_coo(pattern.rows, pattern.cols, pattern.shape)


def passes(
    func: Callable[[Tensor], Tensor], x: Tensor, coloring: torchjac.Coloring, hessian: bool
) -> Tensor:
    """As many vmapped products as there are colours, and nothing else: the least that is needed."""
    inner = torch.func.grad(func) if hessian else func
    seeds = torch.ones(coloring.num_colors, x.numel())
    return torch.func.vmap(lambda v: torch.func.jvp(inner, (x,), (v,))[1])(seeds)


def add_peers(
    line: Line,
    x: Tensor,
    expected: Tensor,
    detections: dict[str, Callable[[], Any]],
    colorings: dict[str, Callable[[], Any]],
    evaluations: dict[str, Callable[[], Any]],
) -> None:
    """Enter the peers that run in JAX, each verified first."""
    hessian = line.workload.kind == "hessian"
    func, at = line.workload.build(jax_arrays(), line.size), jnp.asarray(x.numpy())
    find = asdex.hessian_sparsity if hessian else asdex.jacobian_sparsity
    paint = (
        asdex.hessian_coloring_from_sparsity if hessian else asdex.jacobian_coloring_from_sparsity
    )
    make = asdex.hessian_from_coloring if hessian else asdex.jacobian_from_coloring
    pattern = find(func, at)
    coloring = paint(pattern)
    line.colors[ASDEX] = coloring.num_colors
    detections[ASDEX], colorings[ASDEX] = lambda: find(func, at), lambda: paint(pattern)
    compiled = jax.jit(make(func, coloring))
    verify(line, ASDEX, compiled(at), expected)
    evaluations[ASDEX] = lambda: jax.block_until_ready(compiled(at))
    if not hessian:
        rival = jax.jit(sparsejac.jacfwd(func, pattern.to_bcoo()))
        verify(line, SPARSEJAC, rival(at), expected)
        evaluations[SPARSEJAC] = lambda: jax.block_until_ready(rival(at))


def verify(line: Line, name: str, got: Any, expected: Tensor) -> None:
    """Refuse a peer that has other numbers: both are applied to the same vector."""
    vector = torch.randn(expected.shape[1], generator=torch.Generator().manual_seed(1))
    theirs = torch.from_numpy(jax.device_get(got @ jnp.asarray(vector.numpy())).copy())
    ours = expected @ vector
    if not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-3 * float(ours.abs().max())):
        raise RuntimeError(f"{name} and torchjac differ at {line.workload.name}, {line.size}")


INTRODUCTION = """\
Ratios are the time of torchjac over the time of the peer, medians of one interleaved run: below 1
torchjac is the faster one. Detection and colouring are done once for a signature, evaluation at every
call. *dense* is `torch.func.jacfwd` or `hessian`; *vmapped passes* are as many JVPs as there are
colours of columns, through `torch.func`, on seeds that are all ones, without entries being recovered.
Everybody's transform is made once; torchjac runs eagerly, asdex and sparsejac are compiled by `jax.jit`.
*plan* is the evaluation by ``.plan(x)``, operation by operation ([compiled plans](plans.md)).
Times belong to the machine and mean nothing by themselves."""

COLOURS = """\
How many colours each finds on the same patterns, fewer being fewer passes. *auto* may mix columns and
rows; with *4 terms* an entry of a symmetric matrix may be put together from four products."""

HEAD = [
    "workload",
    "inputs",
    "nnz",
    "colours",
    "of asdex",
    "detection",
    "to asdex",
    "colouring",
    "to asdex",
    "both to asdex",
    "evaluation",
    f"to {DENSE}",
    f"to {PASSES}",
    f"to {ASDEX}",
    f"to {SPARSEJAC}",
    PLAN,
    f"to {PASSES}",
]


def markdown(lines: list[Line], threads: int) -> str:
    """Return the report."""
    rows = [HEAD, ["---", *["--:"] * (len(HEAD) - 1)], *map(row, lines)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    remarks = "\n".join(
        f"- {line.workload.name}, {line.inputs} inputs, {name} raised: {why}"
        for line in lines
        for name, why in line.raised.items()
    )
    title = "# Sparse Jacobians and Hessians, side by side"
    parts = [title, header(threads), INTRODUCTION, table, remarks, MISSING]
    parts += ["## Colours", COLOURS, colorings.table(None if MISSING else asdex)]
    return "\n\n".join(part for part in parts if part) + "\n"


def row(line: Line) -> list[str]:
    def own(phase: str, entrant: str = OURS) -> str:
        seconds = line.phases[phase].get(entrant)
        return "" if seconds is None else readable(seconds)

    def to(phase: str, peer: str, entrant: str = OURS) -> str:
        ratio = line.ratio(phase, peer, entrant)
        return "" if ratio is None else f"{ratio:.3g}"

    once = [line.phases["detection"], line.phases["colouring"]]
    both = ""
    if all(ASDEX in phase for phase in once):
        both = f"{sum(p[OURS] for p in once) / sum(p[ASDEX] for p in once):.2g}"
    return [
        line.workload.name,
        str(line.inputs),
        str(line.nnz),
        str(line.colors[OURS]),
        str(line.colors.get(ASDEX, "")),
        own("detection"),
        to("detection", ASDEX),
        own("colouring"),
        to("colouring", ASDEX),
        both,
        own("evaluation"),
        *(to("evaluation", peer) for peer in (DENSE, PASSES, ASDEX, SPARSEJAC)),
        own("evaluation", PLAN),
        to("evaluation", PASSES, PLAN),
    ]


def save_plot(lines: list[Line], path: Path) -> None:
    """Draw how each phase grows with the number of inputs, on logarithmic axes."""
    from matplotlib import pyplot as plt

    phases = ("detection", "colouring", "evaluation")
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.5), sharey=True, layout="constrained")
    names = dict.fromkeys(line.workload.name for line in lines)
    for axis, phase in zip(axes, phases, strict=True):
        for number, name in enumerate(names):
            grown = [line for line in lines if line.workload.name == name]
            for entrant, style in ((OURS, "-o"), (ASDEX, "--x")):
                points = [(g.inputs, g.phases[phase].get(entrant)) for g in grown]
                points = [point for point in points if point[1] is not None]
                if len(points) > 1:
                    label = name if entrant == OURS else None
                    axis.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label)
        axis.set(xscale="log", yscale="log", title=phase, xlabel="inputs")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[0].legend(title="torchjac —, asdex - -", fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="workloads with this in the name")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cap_memory()
    warnings.simplefilter("ignore")
    lines = []
    for workload in SPARSE_WORKLOADS:
        if options.only and not any(o.lower() in workload.name.lower() for o in options.only):
            continue
        for size in workload.sizes:
            line = race(workload, size, QUICK if options.quick else FULL)
            print(" | ".join(row(line)), flush=True)
            lines.append(line)
    options.out.mkdir(parents=True, exist_ok=True)
    report = markdown(lines, options.threads)
    (options.out / "sparse.md").write_text(report, encoding="utf-8")
    save_plot(lines, options.out / "sparse.png")
    print(f"\n{report}")


if __name__ == "__main__":
    main()
