"""Random patterns for properties, and the textbook ones."""

import numpy as np
import torch
from hypothesis import strategies as st

from torchjac import SparsityPattern


@st.composite
def patterns(draw, largest=12):
    """Any pattern, down to one without rows or columns."""
    m, n = draw(st.integers(0, largest)), draw(st.integers(0, largest))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    dense = random.random((m, n)) < density
    if draw(st.booleans()) and m and n:  # an arrow-head, of any proportions
        dense[0], dense[:, 0] = True, True
    return SparsityPattern.from_dense(dense)


@st.composite
def symmetric_patterns(draw, largest=12):
    n = draw(st.integers(0, largest))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    dense = random.random((n, n)) < density / 2
    if draw(st.booleans()):
        np.fill_diagonal(dense, True)
    return SparsityPattern.from_dense(dense | dense.T)


def band(n, half_width):
    at = torch.arange(n)
    return SparsityPattern.from_dense((at[:, None] - at).abs() <= half_width)


def arrow_head(n):
    dense = torch.eye(n, dtype=torch.bool)
    dense[0], dense[:, 0] = True, True
    return SparsityPattern.from_dense(dense)


def block_diagonal(number, size):
    return SparsityPattern.from_dense(
        torch.block_diag(*[torch.ones(size, size) for _ in range(number)])
    )


def grid(height, width, *, periodic):
    """The five-point Laplacian."""
    at = np.arange(height * width).reshape(height, width)
    rows, cols = [at.ravel()], [at.ravel()]
    for axis in (0, 1):
        for step in (1, -1):
            inside = np.ones_like(at, dtype=bool)
            if not periodic:
                inside.swapaxes(0, axis)[0 if step == 1 else -1] = False
            rows.append(at[inside])
            cols.append(np.roll(at, step, axis)[inside])
    return SparsityPattern(np.concatenate(rows), np.concatenate(cols), (at.size, at.size))


def brusselator(size):
    """Two fields on a periodic grid: each on its five points, and on the other at the same point."""
    points = grid(size, size, periodic=True)
    rows, cols = (index.numpy() for index in points.to_coo())
    n, at = size * size, np.arange(size * size)
    return SparsityPattern(
        np.concatenate([rows, rows + n, at, at + n]),
        np.concatenate([cols, cols + n, at + n, at]),
        (2 * n, 2 * n),
    )
