"""Four colourings, as `torchjac.color` finds them: an entry has the colour of the product it is read off."""

from __future__ import annotations

import torch
from drawing import COLOURS, Ink, main, matrix, panel, title
from matplotlib.figure import Figure

import torchjac

N = 9


def arrow() -> torch.Tensor:
    """A full row, a full column and the diagonal."""
    entries = torch.eye(N)
    entries[0] = entries[:, 0] = 1
    return entries


def draw(figure: Figure, ink: Ink) -> None:
    """A band both ways, and an arrow both ways."""
    columns = torch.zeros(N, N)
    for i in range(N):
        columns[i, [i, (i + 1) % N, (i + 2) % N]] = 1
    rows = torch.eye(N)
    rows[-1] = 1
    where = {"columns": columns, "rows": rows, "bidirectional": arrow(), "symmetric": arrow()}
    boxes = [(x, y, 0.46, 0.4) for y in (0.52, 0.02) for x in (0.02, 0.52)]
    for (by, entries), box in zip(where.items(), boxes, strict=True):
        pattern = torchjac.SparsityPattern.from_dense(entries)
        found = torchjac.color(pattern, by=by)
        # The products with rows go on counting where those with columns end.
        groups = found.group + (~found.from_columns) * found.num_column_colors
        cells: list[list[str | None]] = [[None] * N for _ in range(N)]
        for i, j, group in zip(pattern.rows, pattern.cols, groups, strict=True):
            cells[i][j] = COLOURS[group]
        axes = panel(figure, box, N, N)
        matrix(axes, cells, ink)
        title(axes, f"{by}: {found.num_colors}")


if __name__ == "__main__":
    main(draw, 4.4, 4.9)
