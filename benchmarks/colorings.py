"""Colours of many patterns, beside asdex's: a second table of ``python -m benchmarks.sparse``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from torchjac import SparsityPattern, color

from .report import readable

Matrix = Any


def band(n: int, width: int) -> Matrix:
    return sparse.diags(
        [np.ones(n - abs(k)) for k in range(-width, width + 1)], range(-width, width + 1)
    )


def stencil(shape: tuple[int, ...], *, periodic: bool = False, corners: bool = False) -> Matrix:
    """Each point of a grid with its neighbours."""
    lines = [band(size, 1).tolil() for size in shape]
    for line in lines:
        if periodic:
            line[0, -1] = line[-1, 0] = 1
    if corners:
        whole = sparse.csr_array(lines[0])
        for line in lines[1:]:
            whole = sparse.kron(whole, line)
        return whole
    total: Matrix = 0
    for axis, line in enumerate(lines):
        before, after = np.prod(shape[:axis], dtype=int), np.prod(shape[axis + 1 :], dtype=int)
        total = total + sparse.kron(sparse.kron(sparse.eye(before), line), sparse.eye(after))
    return total


def arrow(n: int) -> Matrix:
    matrix = sparse.lil_array(sparse.eye(n))
    matrix[0], matrix[:, [0]] = 1, np.ones((n, 1))
    return matrix


def random(m: int, n: int, density: float) -> Matrix:
    return sparse.random(m, n, density=density, random_state=np.random.default_rng(0))


def symmetric(matrix: Matrix) -> Matrix:
    return matrix + matrix.T + sparse.eye(matrix.shape[0])


def brusselator(size: int) -> Matrix:
    points = stencil((size, size), periodic=True)
    other = sparse.eye(size * size)
    return sparse.block_array([[points, other], [other, points]])


PATTERNS: dict[str, Callable[[], Matrix]] = {
    "tridiagonal, 10000": lambda: band(10_000, 1),
    "band of half-width 5, 1000": lambda: band(1000, 5),
    "arrow-head, 1000": lambda: arrow(1000),
    "five points, 64×64": lambda: stencil((64, 64)),
    "five points, 100×37": lambda: stencil((100, 37)),
    "five points, periodic 50×50": lambda: stencil((50, 50), periodic=True),
    "five points, periodic 64×64": lambda: stencil((64, 64), periodic=True),
    "nine points, 64×64": lambda: stencil((64, 64), corners=True),
    "nine points, periodic 64×64": lambda: stencil((64, 64), periodic=True, corners=True),
    "seven points, 16×16×16": lambda: stencil((16, 16, 16)),
    "Brusselator, 16×16": lambda: brusselator(16),
    "Brusselator, 64×64": lambda: brusselator(64),
    "Brusselator, 256×256": lambda: brusselator(256),
    "random 100×100, 5%": lambda: random(100, 100, 0.05),
    "random 200×50, 10%": lambda: random(200, 50, 0.1),
    "random 50×400, 5%": lambda: random(50, 400, 0.05),
    "random 1000×1000, 5%": lambda: random(1000, 1000, 0.05),
    "random 5000×5000, 0.1%": lambda: random(5000, 5000, 0.001),
    "random 50000×50000, 0.01%": lambda: random(50_000, 50_000, 1e-4),
    "random symmetric 200, 4%": lambda: symmetric(random(200, 200, 0.02)),
    "random symmetric 2000, 2%": lambda: symmetric(random(2000, 2000, 0.01)),
}

HEAD = [
    "pattern",
    "nnz",
    "columns",
    "asdex",
    "rows",
    "asdex",
    "auto",
    "symmetric",
    "asdex",
    "4 terms",
    "time of columns",
]


def table(asdex: Any) -> str:
    """Return the table in Markdown; without asdex its columns are empty."""
    rows = [HEAD, ["---", *["--:"] * (len(HEAD) - 1)]]
    rows += [row(name, build(), asdex) for name, build in PATTERNS.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def row(name: str, matrix: Matrix, asdex: Any) -> list[str]:
    pattern = SparsityPattern.from_scipy(sparse.csr_array(matrix))
    start = time.perf_counter()
    columns = color(pattern, "columns").num_colors
    seconds = time.perf_counter() - start
    cells = [name, str(pattern.nnz), str(columns), "", str(color(pattern, "rows").num_colors), ""]
    cells += [str(color(pattern, "auto").num_colors), "", "", "", readable(seconds)]
    if pattern.is_symmetric:
        cells[7] = str(color(pattern, "symmetric").num_colors)
        cells[9] = str(color(pattern, "symmetric", max_terms=4).num_colors)
    if asdex is not None:
        theirs = asdex.SparsityPattern.from_coo(
            pattern.rows.numpy().astype(np.int32),
            pattern.cols.numpy().astype(np.int32),
            pattern.shape,
        )
        cells[3], cells[5] = str(asdex.color_cols(theirs)[1]), str(asdex.color_rows(theirs)[1])
        if pattern.is_symmetric:
            cells[8] = str(asdex.color_symmetric(theirs, postprocess=True)[1])
    return cells
