"""Colours for columns such that no two of one colour share a row: the fewest passes for J·S.

In the literature a partial distance-2 colouring of the bipartite graph of rows and columns. JᵀJ, whose
graph the colouring is an ordinary one of, is never formed. A colour is a bit: every row keeps the union
of the colours of its columns, so which colours a column may not have is the union over its rows, and
one column costs as many steps as it has entries.

Source:
    Curtis, Powell & Reid, *On the Estimation of Sparse Jacobian Matrices* (1974); Coleman & Moré,
    *Estimation of Sparse Jacobian Matrices and Graph Coloring Problems* (1983), on orders;
    Gebremedhin, Manne & Pothen, *What Color Is Your Jacobian?* (2005), on partial distance-2 colouring.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from torchjac.structure.improve import Classes
from torchjac.structure.orders import Lists, largest_first, saturation_colors
from torchjac.structure.pattern import Indices, SparsityPattern

__all__ = ["color_columns", "fewest_columns", "first_fit"]

# Effort in inner steps of pure Python, some tens of nanoseconds each: an order for every so many
# entries, and as much again to look for needless colours.
_ORDERS = 1_000_000
_SATURATION = 500_000
_SAMPLE = 1_000  # rows


def fewest_columns(pattern: SparsityPattern) -> int:
    """A lower bound on the colours of any colouring: the columns of one row are all different."""
    return int(np.diff(pattern.csr[0]).max(initial=0))


def color_columns(pattern: SparsityPattern) -> Indices:
    """Colour the columns, from 0; a column without an entry has -1.

    Some orders are tried and the best colouring is kept, until one reaches the lower bound; then
    colours are dropped as long as their columns find room in others. Small patterns get more of both.
    """
    bound, (m, n) = fewest_columns(pattern), pattern.shape
    occupied = np.diff(pattern.csc[0]) > 0
    if bound == np.count_nonzero(occupied):
        # A row with an entry in every column: nothing can share.
        return np.where(occupied, np.cumsum(occupied) - 1, -1)
    columns = Lists.of(*pattern.csc[:2])
    rows = columns if pattern.is_symmetric else Lists.of(*pattern.csr)
    best = np.array(first_fit(columns, m, range(n)), dtype=np.int64)
    work = int(np.square(np.diff(pattern.csr[0])).sum())
    if best.max() >= bound:
        best = _better(best, _cyclic(pattern, bound, int(best.max())))
    if best.max() >= bound and pattern.nnz <= _ORDERS // 4:
        order = largest_first(pattern)
        best = _better(best, np.array(first_fit(columns, m, order), dtype=np.int64))
    if best.max() >= bound and work <= _SATURATION:
        best = _better(best, np.array(saturation_colors(columns, rows), dtype=np.int64))
    if best.max() >= bound:
        best = Classes(columns, rows, best).dropped_to(bound)
    return best


def _better(best: Indices, other: Indices | None) -> Indices:
    return best if other is None or other.max() >= best.max() else other


def first_fit(columns: Lists, num_rows: int, order: Iterable[int]) -> list[int]:
    """Give every column, in ``order``, the first colour that no column it shares a row with has."""
    starts, indices = columns
    used, bits = [0] * num_rows, [0] * (len(starts) - 1)
    for column in order:
        rows = indices[starts[column] : starts[column + 1]]
        if not rows:
            continue
        taken = 0
        for row in rows:
            taken |= used[row]
        bit = ~taken & (taken + 1)  # the lowest zero
        for row in rows:
            used[row] |= bit
        bits[column] = bit
    return [bit.bit_length() - 1 for bit in bits]


def _cyclic(pattern: SparsityPattern, fewest: int, below: int) -> Indices | None:
    """Colour column j with j mod k for the smallest k that will do, if that is at most ``below``.

    Optimal for a band (Curtis, Powell & Reid), good for the stencil of a grid, and made of a few passes
    over arrays.
    """
    (m, n), (starts, cols) = pattern.shape, pattern.csr
    of_entry = np.repeat(np.arange(m), np.diff(starts))
    few = starts[min(m, _SAMPLE)]  # most numbers will not do for the first rows either
    for number in range(fewest, min(below, fewest + 3) + 1):
        if m * number > 4 * pattern.nnz + 1000:
            break  # rows without entries
        if all(
            np.bincount(of_entry[:end] * number + cols[:end] % number, minlength=1).max() <= 1
            for end in (few, pattern.nnz)
        ):
            colors = np.arange(n) % number
            return np.where(np.diff(pattern.csc[0]) > 0, colors, -1)
    return None
