"""A forward pass gives a column, a reverse pass a row."""

from __future__ import annotations

from drawing import COLOURS, Ink, main, matrix, panel, title
from matplotlib.figure import Figure


def draw(figure: Figure, ink: Ink) -> None:
    """A tall Jacobian and a wide one, with the passes of either mode."""
    tall = [list(COLOURS[:3]) for _ in range(8)]
    wide = [[COLOURS[i]] * 8 for i in range(3)]
    axes = panel(figure, (0.0, 0.02, 0.4, 0.84), 8, 3)
    matrix(axes, tall, ink)
    title(axes, "m = 8, n = 3\nforward: 3 columns", 10.5)
    axes = panel(figure, (0.42, 0.02, 0.58, 0.84), 8, 8)
    matrix(axes, wide, ink, at=(2.5, 0))
    title(axes, "m = 3, n = 8\nreverse: 3 rows", 10.5)


if __name__ == "__main__":
    main(draw, 4.4, 2.6)
