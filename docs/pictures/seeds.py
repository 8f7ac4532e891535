"""One Jacobian all the way: structure, colouring, seeds, passes, result."""

from __future__ import annotations

import torch
from drawing import COLOURS, Ink, main, matrix, panel, title
from matplotlib.figure import Figure

import torchjac

N = 8


def draw(figure: Figure, ink: Ink) -> None:
    """A band, whose columns take three colours."""
    band = torch.ones(N, N).tril(1).triu(-1).bool()
    colours = [COLOURS[c] for c in torchjac.color(torchjac.SparsityPattern.from_dense(band)).colors]
    kinds = sorted(set(colours), key=COLOURS.index)
    grey = [[ink.grey if band[i, j] else None for j in range(N)] for i in range(N)]
    coloured = [[colours[j] if band[i, j] else None for j in range(N)] for i in range(N)]
    seeds = [[kind if kind == colours[j] else None for kind in kinds] for j in range(N)]
    # Row i of a product holds the one entry of row i whose column has the colour of the seed.
    products = [[kind if kind in row else None for kind in kinds] for row in coloured]
    top, bottom, height = 0.56, 0.04, 0.36
    for left, cells, name in ((0.0, grey, "structure"), (0.36, coloured, "colouring")):
        axes = panel(figure, (left, top, 0.32, height), N, N)
        matrix(axes, cells, ink)
        title(axes, name)
    for box, cells, name in (
        ((0.74, top, 0.22, height), seeds, "seeds S"),
        ((0.1, bottom, 0.22, height), products, "passes J·S"),
    ):
        axes = panel(figure, box, N, 3)
        matrix(axes, cells, ink)
        title(axes, name)
    axes = panel(figure, (0.5, bottom, 0.32, height), N, N)
    matrix(axes, coloured, ink)
    title(axes, "result")
    arrows = figure.add_axes((0, 0, 1, 1))
    arrows.set(xlim=(0, 1), ylim=(0, 1))
    arrows.axis("off")
    for x, y in ((0.34, 0.74), (0.72, 0.74), (0.03, 0.22), (0.42, 0.22)):
        arrows.text(x, y, "→", fontsize=15, ha="center", va="center", color=ink.grey)


if __name__ == "__main__":
    main(draw, 4.8, 4.2)
