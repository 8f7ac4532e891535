"""Colours for columns and rows at once: some entries are read off J·S, and the others off Sᵀ·J.

A dense row costs columns a colour each, a dense column rows; where there are both, a few passes in
either direction do what neither can alone. It is a star colouring of the symmetric matrix
[[0, Jᵀ], [J, 0]], in which a colour that no entry has to be read from is not used.

Source:
    Coleman & Verma, *The Efficient Computation of Sparse Jacobian Matrices Using Automatic
    Differentiation* (1998); Montoison, Dalle & Gebremedhin, *Revisiting Sparse Matrix Coloring and
    Bicoloring* (2025).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from torchjac.structure.greedy import color_columns
from torchjac.structure.neutral import alone_in_group, needed, renumbered
from torchjac.structure.orders import Lists
from torchjac.structure.pattern import Indices, SparsityPattern
from torchjac.structure.star import star_colors, star_orders

__all__ = ["color_both", "fewest_both"]

# Entries that all star colourings together may look at, about a microsecond each.
_EFFORT = 120_000
# A pattern with fewer entries is divided in three ways, a larger one in one.
_SMALL = 30_000


def color_both(
    pattern: SparsityPattern, row_cost: float, column_cost: float, *, below: float = float("inf")
) -> tuple[Indices, Indices] | None:
    """Colour columns and rows, each from 0, -1 for those that take part in no pass.

    Args:
        pattern: what to colour.
        row_cost: of a pass with a colour of rows.
        column_cost: of a pass with a colour of columns.
        below: the cost that has to be undercut.

    Returns:
        The colours of the columns and of the rows, or None where all that was found costs too much.
    """
    best = None
    for columns, rows in _candidates(pattern, row_cost, column_cost, below):
        cost = column_cost * (columns.max(initial=-1) + 1) + row_cost * (rows.max(initial=-1) + 1)
        if cost < below:
            best, below = (columns, rows), cost
    return best


def fewest_both(pattern: SparsityPattern, row_cost: float, column_cost: float) -> float:
    """A lower bound on the cost: a pass over columns gives m numbers, one over rows n."""
    m, n = pattern.shape
    if not pattern.nnz:
        return 0.0
    by_columns = np.arange(-(-pattern.nnz // m) + 1)
    by_rows = np.maximum(0, -(-(pattern.nnz - by_columns * m) // n))
    return float((by_columns * column_cost + by_rows * row_cost).min())


def _candidates(
    pattern: SparsityPattern, row_cost: float, column_cost: float, below: float
) -> Iterator[tuple[Indices, Indices]]:
    yield from _splits(pattern, row_cost, column_cost, below)
    if not (pattern.is_symmetric and row_cost == column_cost):  # else it is the same again
        for rows, columns in _splits(pattern.T, column_cost, row_cost, below):
            yield columns, rows
    yield from _star_colorings(pattern)


def _splits(
    pattern: SparsityPattern, row_cost: float, column_cost: float, below: float
) -> Iterator[tuple[Indices, Indices]]:
    """The fullest rows by rows, all others by columns, for the divisions that may cost the least.

    Rows that are read off their own colour are in no column's way.
    """
    (m, n), (rows, cols) = pattern.shape, pattern.coo
    counts = np.diff(pattern.csr[0])
    if not counts.size or counts.min() == counts.max():
        return  # no row is fuller than another
    # The entries from the fullest row down, and how many each has above it in its column.
    order = np.argsort(-counts[rows], kind="stable")
    by_column = np.argsort(cols[order], kind="stable")
    above = np.empty_like(by_column)
    above[by_column] = np.arange(len(order)) - pattern.csc[0][cols[order][by_column]]
    fullest = np.append(0, np.maximum.accumulate(above + 1))
    sizes = np.unique(counts)[::-1]
    taken = np.searchsorted(-counts[rows[order]], -sizes)  # entries in rows fuller than that
    least = column_cost * sizes + row_cost * fullest[taken]
    number = 3 if pattern.nnz < _SMALL else 1
    for at in np.argsort(least, kind="stable")[:number].tolist():
        size = sizes[at]
        if least[at] >= below or taken[at] in (0, pattern.nnz):
            continue  # no better, or the same as columns or rows alone
        apart = counts[rows] > size
        rest = SparsityPattern._sorted(rows[~apart], cols[~apart], (m, n))
        full = SparsityPattern._sorted(rows[apart], cols[apart], (m, n))
        yield color_columns(rest), color_columns(full.T)


def _star_colorings(pattern: SparsityPattern) -> Iterator[tuple[Indices, Indices]]:
    if 2 * pattern.nnz > _EFFORT:
        return
    (m, n), (rows, cols) = pattern.shape, pattern.coo
    # Vertices 0 to n - 1 are the columns, n to n + m - 1 the rows.
    both = SparsityPattern._sorted(
        np.concatenate([cols[pattern.csc[2]], rows + n]),
        np.concatenate([pattern.csc[1] + n, cols]),
        (n + m, n + m),
    )
    degree, neighbours = np.diff(both.csr[0]), Lists.of(*both.csr)
    for order in star_orders(degree, _EFFORT // (both.nnz + 1)):
        colors = star_colors(neighbours, order, proper=False)
        yield _without_needless(pattern, colors[:n], colors[n:])


def _without_needless(
    pattern: SparsityPattern, by_column: Indices, by_row: Indices
) -> tuple[Indices, Indices]:
    rows, cols = pattern.coo
    by_row = np.where(np.diff(pattern.csr[0]) > 0, by_row, -1)
    by_column = np.where(np.diff(pattern.csc[0]) > 0, by_column, -1)
    number = int(by_column.max(initial=-1)) + 1
    kept = needed(
        np.where(alone_in_group(rows, by_column[cols]), by_column[cols], -1),
        np.where(alone_in_group(cols, by_row[rows]), by_row[rows] + number, -1),
        np.empty(0, dtype=np.int64),
        number + int(by_row.max(initial=-1)) + 1,
    )
    return renumbered(by_column, kept[:number]), renumbered(by_row, kept[number:])
