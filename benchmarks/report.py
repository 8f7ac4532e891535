"""What a run leaves behind: the tables in Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import torch

from .peers import PEERS
from .race import OURS, Outcome
from .workloads import Kind

TITLES: dict[Kind, str] = {"jac": "Jacobians", "hessian": "Hessians", "batched": "Batches"}

INTRODUCTION = """\
Ratios are the time of torchjac over the time of the peer, medians of one interleaved run: below 1
torchjac is the faster one. ± is the interquartile range of torchjac's own turns over their median:
where it is large the machine was busy, and the row is worth little. Times belong to the machine and
mean nothing by themselves."""

DETACHED = """\
† The peer does less: its result carries no graph to the parameters, where torchjac's (like
`jacrev`'s) can be differentiated further. "To best alike" leaves these peers out."""


def header(threads: int) -> str:
    """Return the line that says what was measured on what."""
    return (
        f"torchjac {version()}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{threads} thread{'s' * (threads > 1)} on {os.cpu_count()} cores, "
        f"{cpu_name()}, {platform.system()} {platform.machine()}"
    )


def version() -> str:
    """Return the version of the installed package, if it is one and not just a folder."""
    try:
        return metadata.version("torchjac")
    except metadata.PackageNotFoundError:
        return "from source"


def cpu_name() -> str:
    """Return the processor's name, which `platform.processor` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown CPU"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown CPU")


def markdown(outcomes: Sequence[Outcome], threads: int) -> str:
    """Return the whole report."""
    parts = ["# Dense Jacobians and Hessians, side by side", header(threads), INTRODUCTION]
    for kind, title in TITLES.items():
        if rows := [outcome for outcome in outcomes if outcome.workload.kind == kind]:
            parts += [f"## {title}", table(rows), *remarks(rows)]
    return "\n\n".join(parts) + "\n"


def table(outcomes: Sequence[Outcome]) -> str:
    """Return one table: a row per workload, a column per peer, geometric means below."""
    names = peer_names(outcomes[0].workload.kind)
    head = [
        "workload",
        "inputs",
        "outputs",
        "mode",
        "torchjac",
        "±",
        "best peer",
        "to best",
        "to best alike",
    ]
    lines = [head + [f"to {name}" for name in names]]
    lines.append(
        ["---", "--:", "--:", "---", "--:", "--:", "---", "--:", "--:"] + ["--:"] * len(names)
    )
    lines += [row(outcome, names) for outcome in outcomes]
    best = [mean(to_best(outcomes, alike=alike)) for alike in (False, True)]
    means = [mean(o.ratios[name] for o in outcomes if name in o.ratios) for name in names]
    lines.append(["geometric mean", "", "", "", "", "", "", *best, *means])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def row(outcome: Outcome, names: Sequence[str]) -> list[str]:
    mine = outcome.seconds.get(OURS)
    best, alike = outcome.best_peer(), outcome.best_peer(alike=True)
    return [
        outcome.workload.name,
        str(outcome.inputs),
        str(outcome.outputs),
        outcome.mode,
        "raised" if mine is None else readable(mine),
        "" if mine is None else f"{outcome.spread:.0%}",
        best or "",
        cell(outcome, best) if best else "",
        cell(outcome, alike) if alike else "",
        *(cell(outcome, name) for name in names),
    ]


def to_best(outcomes: Iterable[Outcome], *, alike: bool) -> list[float]:
    """Return the ratios to the best peer of each row that has one."""
    best = [(outcome, outcome.best_peer(alike=alike)) for outcome in outcomes]
    return [outcome.ratios[name] for outcome, name in best if name is not None]


def cell(outcome: Outcome, name: str) -> str:
    """Return the ratio to one peer, or in a word why there is none."""
    if name in outcome.raised:
        return "raised"
    if name in outcome.differs:
        return "differs"
    if name not in outcome.ratios:
        return ""
    return f"{outcome.ratios[name]:.2f}" + ("†" if name in outcome.detached else "")


def remarks(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what the cells had no room for."""
    bullets = []
    for outcome in outcomes:
        where = outcome.workload.name
        bullets += [f"- {where}, {name} raised: {why}" for name, why in outcome.raised.items()]
        bullets += [f"- {where}, {name} differs: {why}" for name, why in outcome.differs.items()]
        bullets += [f"- {where}, torchjac warned: {text}" for text in outcome.warned]
    notes = ["\n".join(bullets)] if bullets else []
    return notes + [DETACHED] * any(outcome.detached for outcome in outcomes)


def peer_names(kind: Kind) -> list[str]:
    return [peer.name for peer in PEERS if peer.kind == kind]


def mean(ratios: Iterable[float]) -> str:
    values = list(ratios)
    return f"**{statistics.geometric_mean(values):.2f}**" if values else ""


def readable(seconds: float) -> str:
    """Return a time with three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
