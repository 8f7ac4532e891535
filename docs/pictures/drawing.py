"""What the pictures share: matrices of squares, in ink for light pages and for dark ones.

``python docs/pictures/seeds.py`` draws one picture anew; give a folder to draw elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Okabe & Ito's colours, which those who are colour-blind can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#0072B2")


@dataclass(frozen=True)
class Ink:
    """The colours of a page's theme."""

    theme: str
    text: str
    faint: str
    grey: str


INKS = (
    Ink("light", text="#2b2d33", faint="#dcdee3", grey="#9aa0ab"),
    Ink("dark", text="#dfe1e6", faint="#3d404a", grey="#7d838f"),
)

Cells = Sequence[Sequence[str | None]]
Drawing = Callable[[Figure, Ink], None]


def main(draw: Drawing, width: float, height: float) -> None:
    """Draw a picture, so many inches large, beside its script, or in the folder that was named."""
    script = Path(sys.argv[0])
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else script.parent
    for ink in INKS:
        # The same picture is the same file: text as outlines, ids that do not come from chance, no date.
        style = {"text.color": ink.text, "svg.hashsalt": script.stem, "font.size": 11}
        with plt.rc_context(style):
            figure = plt.figure(figsize=(width, height))
            draw(figure, ink)
            path = folder / f"{script.stem}-{ink.theme}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
            plt.close(figure)


def panel(figure: Figure, box: tuple[float, float, float, float], rows: float, cols: float) -> Axes:
    """A place in the figure, ``(left, bottom, width, height)`` of it, with room for so many squares."""
    axes = figure.add_axes(box)
    axes.set(xlim=(-0.1, cols + 0.1), ylim=(rows + 0.1, -0.1), aspect="equal")
    axes.axis("off")
    return axes


def matrix(
    axes: Axes,
    cells: Cells,
    ink: Ink,
    numbers: Sequence[Sequence[object]] | None = None,
    at: tuple[float, float] = (0, 0),
) -> None:
    """Squares with the colours of ``cells``, faint where that is None; ``at`` is (row, column)."""
    for i, row in enumerate(cells):
        for j, colour in enumerate(row):
            left, top = at[1] + j, at[0] + i
            face = "none" if colour is None else colour
            edge = ink.faint if colour is None else face
            axes.add_patch(
                Rectangle((left + 0.06, top + 0.06), 0.88, 0.88, facecolor=face, edgecolor=edge)
            )
            if numbers is not None:
                dark = ink.grey if colour is None else "#16181d"
                centre = (left + 0.5, top + 0.53)
                axes.text(*centre, str(numbers[i][j]), color=dark, ha="center", va="center")


def title(axes: Axes, text: str, size: float = 11) -> None:
    """A line above a panel."""
    axes.set_title(text, fontsize=size, pad=5)
