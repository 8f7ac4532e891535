"""What a run leaves behind: the picture of the tables. The only importer of matplotlib."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .race import Outcome
from .report import TITLES, peer_names

# Okabe and Ito's palette, which colour-blind readers can tell apart; the shapes say the same again.
COLORS = ["#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "v", "D", "P", "X"]
INK, PALE = "#333333", "#DDDDDD"
LEAST = 0.02  # whoever takes fifty times as long, or more, is drawn here


def save_plot(outcomes: Sequence[Outcome], path: Path, subtitle: str) -> None:
    """Draw one panel of dots per kind of workload, ratios on a common logarithmic axis."""
    panels = [
        (title, rows)
        for kind, title in TITLES.items()
        if (rows := [o for o in outcomes if o.workload.kind == kind and o.ratios])
    ]
    if not panels:
        return
    # A panel is as tall as its rows or its legend, whichever needs more, and room for its title.
    legends = [0.7 * len(peer_names(rows[0].workload.kind)) for _, rows in panels]
    heights = [max(len(rows), tall) + 1.5 for (_, rows), tall in zip(panels, legends, strict=True)]
    figure, axes = plt.subplots(
        len(panels),
        figsize=(11, 0.32 * sum(heights) + 1.2),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, rows) in zip(axes[:, 0], panels, strict=True):
        draw_panel(axis, title, rows)
    axes[-1, 0].set_xlabel("time of torchjac / time of peer  (left of 1: torchjac is faster)")
    figure.suptitle(f"torchjac against its peers\n{subtitle}", fontsize=9, color=INK)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_panel(axis: Axes, title: str, rows: Sequence[Outcome]) -> None:
    """Draw one row of dots per workload, first one on top, joined by a line to be read across."""
    axis.set_title(title, loc="left", fontsize=11, color=INK)
    axis.set_xscale("log")
    axis.axvline(1, color=INK, linewidth=1, zorder=1)
    heights = range(len(rows), 0, -1)
    for height, outcome in zip(heights, rows, strict=True):
        reach = [*(drawn(ratio) for ratio in outcome.ratios.values()), 1.0]
        axis.plot([min(reach), max(reach)], [height, height], color=PALE, linewidth=2, zorder=0)
    styles = itertools.cycle(zip(COLORS, MARKERS, strict=True))
    for name, (color, marker) in zip(peer_names(rows[0].workload.kind), styles, strict=False):
        ratios = [drawn(outcome.ratios.get(name, math.nan)) for outcome in rows]
        axis.scatter(ratios, heights, s=34, color=color, marker=marker, label=name, zorder=2)
    labels = [f"{o.workload.name}   {o.inputs} → {o.outputs}" for o in rows]
    axis.set_yticks(list(heights), labels, fontsize=8.5)
    axis.set_ylim(0.4, len(rows) + 0.6)
    decorate(axis)


def drawn(ratio: float) -> float:
    """Return where a ratio is drawn: the few that are very small must not squeeze all others."""
    return LEAST if ratio < LEAST else ratio


def label(ratio: float, _position: int) -> str:
    return f"≤ {ratio:g}" if math.isclose(ratio, LEAST) else f"{ratio:g}"


def decorate(axis: Axes) -> None:
    """Leave only what helps to read a ratio off."""
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=50))
    axis.xaxis.set_major_formatter(FuncFormatter(label))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="x", labelbottom=True, labelsize=8)
    axis.tick_params(axis="both", length=0)
    axis.grid(axis="x", color=PALE, linewidth=0.5)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5)
