"""One backward pass over all rows, one forward pass over all columns: what is lost, and what is not."""

from __future__ import annotations

from drawing import COLOURS, Ink, main, matrix, panel, title
from matplotlib.figure import Figure

J = [[2, 0], [0, 2], [8, 0], [0, 16]]
BLUE, ORANGE = COLOURS[:2]
COLOURED = [[(BLUE, ORANGE)[j] if row[j] else None for j in range(2)] for row in J]


def draw(figure: Figure, ink: Ink) -> None:
    """The example of the README."""
    axes = panel(figure, (0.0, 0.04, 0.42, 0.82), 7, 4)
    matrix(axes, [[ink.grey]] * 4, ink, [[1]] * 4, at=(0, 0))
    matrix(axes, COLOURED, ink, J, at=(0, 1.7))
    matrix(axes, [[BLUE, ORANGE]], ink, [[10, 18]], at=(5.4, 1.7))
    axes.text(2.7, 4.72, "↓", ha="center", va="center", fontsize=15, color=ink.grey)
    axes.text(2.7, 6.85, "sums of rows: lost", ha="center", va="center")
    title(axes, "reverse, seed (1, 1, 1, 1)", 10.5)

    axes = panel(figure, (0.46, 0.04, 0.54, 0.82), 7, 6)
    matrix(axes, [[ink.grey] * 2], ink, [[1, 1]], at=(0, 0))
    matrix(axes, COLOURED, ink, J, at=(1.4, 0))
    single = [[BLUE], [ORANGE]] * 2
    matrix(axes, single, ink, [[2], [2], [8], [16]], at=(1.4, 3.7))
    axes.text(2.85, 3.4, "→", ha="center", va="center", fontsize=15, color=ink.grey)
    axes.text(3, 6.85, "one of each row: all there", ha="center", va="center")
    title(axes, "forward, seed (1, 1)", 10.5)


if __name__ == "__main__":
    main(draw, 4.8, 3.3)
