"""Star colouring: what lets the entries of a symmetric matrix be read directly off H·S.

Vertices are the columns, edges the entries off the diagonal. In a star colouring adjacent vertices
differ, and every path on four vertices has three colours at least; so of the two places that entry
(i, j) could be read at, row i of colour(j) and row j of colour(i), one holds nothing else.

Source:
    Coleman & Moré, *Estimation of Sparse Hessian Matrices and Graph Coloring Problems* (1984);
    Gebremedhin, Tarafdar, Manne & Pothen, *New Acyclic and Star Coloring Algorithms with Application to
    Computing Hessians* (2007); on colours that nothing needs, Montoison, Dalle &
    Gebremedhin, *Revisiting Sparse Matrix Coloring and Bicoloring* (2025).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from torchjac.structure.neutral import alone_in_group, needed, renumbered
from torchjac.structure.orders import Lists
from torchjac.structure.pattern import Indices, SparsityPattern

__all__ = ["adjacency", "color_symmetric", "star_colors", "star_orders"]

# Entries that all orders together may look at, about a microsecond each.
_EFFORT = 200_000
_ORDERS = 24


def color_symmetric(pattern: SparsityPattern) -> Indices:
    """Star colour the columns of a symmetric pattern, from 0; -1 where no entry needs a colour.

    The best of some orders, more of them for a small pattern.
    """
    degree, neighbours = adjacency(pattern)
    fewest = _fewest(pattern, degree)
    best: Indices | None = None
    for order in star_orders(degree, _EFFORT // (len(neighbours.indices) + 1)):
        colors = _without_needless(pattern, star_colors(neighbours, order, proper=True))
        if best is None or colors.max(initial=-1) < best.max(initial=-1):
            best = colors
        if best.max(initial=-1) < fewest:
            break
    assert best is not None
    return best


def adjacency(pattern: SparsityPattern) -> tuple[Indices, Lists]:
    """The graph of a symmetric pattern: how many neighbours each column has, and which."""
    rows, cols = pattern.coo
    off = rows != cols
    graph = SparsityPattern._sorted(rows[off], cols[off], pattern.shape)
    return np.diff(graph.csr[0]), Lists.of(*graph.csr)


def _fewest(pattern: SparsityPattern, degree: Indices) -> int:
    """A lower bound on the colours.

    A pass gives n numbers, and there are as many to find as entries on one side of the diagonal and on
    it. Where every vertex needs a colour, two colours are enough for separate stars alone.
    """
    n, (rows, cols) = pattern.shape[0], pattern.coo
    diagonal = int(np.count_nonzero(rows == cols))
    fewest = -(-(pattern.nnz + diagonal) // (2 * n)) if n else 0
    inner = (rows != cols) & (degree[rows] > 1) & (degree[cols] > 1)
    return max(fewest, 3) if diagonal == n and inner.any() else fewest


def star_orders(degree: Indices, number: int) -> Iterator[list[int]]:
    """The orders to try, all made of the degrees: at least two, and with time for it more."""
    n, natural = len(degree), np.arange(len(degree))
    yield np.argsort(-degree, kind="stable").tolist()
    yield natural.tolist()
    if number > 2:
        yield natural[::-1].tolist()
    random = np.random.default_rng(0)  # our own: the same pattern is coloured the same every time
    for count in range(3, min(number, _ORDERS)):
        order = random.permutation(n)
        if count % 2:
            order = order[np.argsort(-degree[order], kind="stable")]
        yield order.tolist()


def star_colors(neighbours: Lists, order: Iterable[int], *, proper: bool) -> Indices:
    """Give every vertex, in ``order``, the first colour that makes no path of two colours.

    Colours are bits, and a vertex costs one step per edge. Of every vertex is kept which colours its
    neighbours have (`seen`), which of them more than one neighbour has (`twice`: it is the hub of a
    star), and which colours have a neighbour that is the hub of a star it is a ray of (`hubs`).

    Args:
        neighbours: of each vertex.
        order: each vertex once.
        proper: whether adjacent vertices have to differ. In a graph with two sides that take their
            colours from separate palettes they do anyhow; both palettes are numbered from 0.
    """
    starts, indices = neighbours
    n = len(starts) - 1
    colors, seen, twice, hubs = [0] * n, [0] * n, [0] * n, [0] * n
    for vertex in order:
        around = [(at, colors[at]) for at in indices[starts[vertex] : starts[vertex + 1]]]
        taken = seen[vertex] if proper else 0
        for other, color in around:
            if color:
                # A hub joins whatever has that neighbour's colour next to it; a ray joins hubs only.
                taken |= seen[other] if color & twice[vertex] else hubs[other]
        bit = ~taken & (taken + 1)  # the lowest zero
        colors[vertex] = bit
        for other, color in around:
            if color & twice[vertex]:
                hubs[other] |= bit
            if not bit & seen[other]:
                seen[other] |= bit
                continue
            hubs[vertex] |= color
            if not bit & twice[other]:
                twice[other] |= bit
                if color:
                    # Its first ray of this colour, that has not been told.
                    for ray in indices[starts[other] : starts[other + 1]]:
                        if colors[ray] == bit:
                            hubs[ray] |= color
    return np.array([bit.bit_length() - 1 for bit in colors], dtype=np.int64)


def _without_needless(pattern: SparsityPattern, colors: Indices) -> Indices:
    """Drop the colours that no entry has to be read from."""
    (rows, cols), partner = pattern.coo, pattern.csc[2]
    colors = np.where(np.diff(pattern.csr[0]) > 0, colors, -1)
    alone = alone_in_group(rows, colors[cols])
    half = rows < cols
    # Entry (i, j) is read off colour(j), or else, as entry (j, i), off colour(i).
    kept = needed(
        np.where(alone, colors[cols], -1)[half],
        np.where(alone[partner], colors[rows], -1)[half],
        colors[rows[rows == cols]],
        int(colors.max(initial=-1)) + 1,
    )
    return renumbered(colors, kept)
