"""Orders in which columns take their colours: who is hard to place comes first.

Source:
    Welsh & Powell (1967) on largest first; Brélaz, *New Methods to Color the Vertices of a Graph*
    (1979) on saturation; Coleman & Moré (1983) on both for sparse Jacobians.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from torchjac.structure.pattern import Indices, SparsityPattern

__all__ = ["Lists", "largest_first", "saturation_colors"]


class Lists(NamedTuple):
    """The rows of each column (or the columns of each row) as plain lists, for loops in Python.

    Two flat lists: a list for every column would keep the garbage collector busy.
    """

    starts: list[int]
    indices: list[int]

    @classmethod
    def of(cls, starts: Indices, indices: Indices) -> Lists:
        """From the arrays of a pattern."""
        return cls(starts.tolist(), indices.tolist())


def largest_first(pattern: SparsityPattern) -> list[int]:
    """The columns by falling degree: how many entries their rows have in other columns."""
    (starts, cols), n = pattern.csr, pattern.shape[1]
    others = np.diff(starts) - 1
    degree = np.bincount(cols, weights=np.repeat(others, np.diff(starts)), minlength=n)
    order: list[int] = np.argsort(-degree, kind="stable").tolist()
    return order


def saturation_colors(columns: Lists, rows: Lists) -> list[int]:
    """Give the first colour to the column with the fewest left to choose from, over and over.

    The order comes out of the colouring itself, so this returns the colours; -1 without an entry. It
    finds the five colours of a five-point stencil, where a fixed order needs seven or more. It costs a
    step for every two entries of a row.
    """
    at, to, number = columns.starts, rows.starts, len(columns.starts) - 1
    degree = [
        sum(to[row + 1] - to[row] - 1 for row in columns.indices[at[column] : at[column + 1]])
        for column in range(number)
    ]
    taken, colors = [0] * number, [-1] * number
    heap = [(0, -degree[column], column) for column in range(number) if at[column + 1] > at[column]]
    heapify(heap)
    while heap:
        saturation, _, column = heappop(heap)
        if colors[column] >= 0 or -saturation != taken[column].bit_count():
            continue  # stale: it came up again with more colours taken
        bit = ~taken[column] & (taken[column] + 1)
        colors[column] = bit.bit_length() - 1
        for row in columns.indices[at[column] : at[column + 1]]:
            for other in rows.indices[to[row] : to[row + 1]]:
                if colors[other] < 0 and not taken[other] & bit:
                    taken[other] |= bit
                    heappush(heap, (-taken[other].bit_count(), -degree[other], other))
    return colors
