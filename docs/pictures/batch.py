"""The Jacobian of a batch: what `jac` gives of it, and what `batched_jac` does."""

from __future__ import annotations

from drawing import COLOURS, Ink, main, matrix, panel, title
from matplotlib.figure import Figure

B, M, N = 4, 2, 3


def draw(figure: Figure, ink: Ink) -> None:
    """Blocks on a diagonal; then the blocks alone."""
    cells = [
        [COLOURS[i // M] if i // M == j // N else None for j in range(B * N)] for i in range(B * M)
    ]
    axes = panel(figure, (0.0, 0.02, 0.66, 0.8), B * M, B * N)
    matrix(axes, cells, ink)
    title(axes, "jac\n(B, m, B, n)", 10.5)
    axes = panel(figure, (0.72, 0.02, 0.26, 0.8), B * M + 1.2, N)
    for b in range(B):
        matrix(axes, [[COLOURS[b]] * N for _ in range(M)], ink, at=(b * (M + 0.4), 0))
    title(axes, "batched_jac\n(B, m, n)", 10.5)


if __name__ == "__main__":
    main(draw, 4.8, 2.7)
