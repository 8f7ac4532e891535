"""Dropping colours: the columns of the smallest class move into the other classes, by local search.

Source:
    Blöchliger & Zufferey, *A graph coloring heuristic using partial solutions and a reactive tabu
    scheme* (2008): some vertices wait for a colour, and one that takes a colour sends its neighbours of
    that colour to wait.
"""

from __future__ import annotations

import random
from array import array

import numpy as np

from torchjac.structure.orders import Lists
from torchjac.structure.pattern import Indices

__all__ = ["Classes"]

# Columns looked at in all, some hundred nanoseconds each, for one pattern.
_EFFORT = 250_000
# Columns placed without fewer of them waiting than ever before; then the class is given up.
_PATIENCE = 3_000


class Classes:
    """A colouring of columns on its way to fewer colours.

    Args:
        columns: the rows of each column.
        rows: the columns of each row.
        colors: a valid colouring, -1 for columns without an entry.
    """

    def __init__(self, columns: Lists, rows: Lists, colors: Indices) -> None:
        self._columns, self._rows = columns, rows
        # As quick as a list where it is read one by one, and an array where it is searched.
        self._colors = array("q", colors.tolist())
        self._sizes: list[int] = np.bincount(colors[colors >= 0]).tolist()
        self._kept = set(range(len(self._sizes)))
        self._random = random.Random(0)  # our own: the same pattern is coloured the same every time
        self._effort = _EFFORT

    def dropped_to(self, fewest: int) -> Indices:
        """The colouring after as many drops as succeed, but not below ``fewest`` colours."""
        best = self._colors[:]
        while len(self._kept) > fewest and self._drop_smallest():
            best = self._colors[:]
        colors = np.array(best, dtype=np.int64)
        placed = colors >= 0
        # The classes that are left, numbered again from 0.
        colors[placed] = np.unique(colors[placed], return_inverse=True)[1]
        return colors

    def _drop_smallest(self) -> bool:
        """Place every column of the smallest class elsewhere; False where that is given up."""
        dropped = min(self._kept, key=self._sizes.__getitem__)
        self._kept.remove(dropped)
        waiting: list[int] = np.flatnonzero(
            np.frombuffer(self._colors, np.int64) == dropped
        ).tolist()
        for column in waiting:
            self._take_out(column)
        fewest, patience = len(waiting), _PATIENCE
        paused: dict[tuple[int, int], int] = {}
        step = 0
        while waiting and self._effort > 0 and patience:
            step += 1
            at = int(self._random.random() * len(waiting))
            waiting[at], waiting[-1] = waiting[-1], waiting[at]
            column = waiting.pop()
            blocking = self._blocking(column)
            color = self._cheapest(column, blocking, paused, step)
            for other in blocking[color]:
                self._take_out(other)
                # It may not come back at once, or the two would change places for ever.
                paused[other, color] = (
                    step + 10 + int(10 * self._random.random()) + len(waiting) // 2
                )
            self._put(column, color)
            waiting += blocking[color]
            patience -= 1
            if len(waiting) < fewest:
                fewest, patience = len(waiting), _PATIENCE
        return not waiting

    def _put(self, column: int, color: int) -> None:
        self._colors[column] = color
        self._sizes[color] += 1

    def _take_out(self, column: int) -> None:
        self._sizes[self._colors[column]] -= 1
        self._colors[column] = -1

    def _blocking(self, column: int) -> dict[int, list[int]]:
        """For every colour, the columns that have it and share a row with this one."""
        blocking: dict[int, list[int]] = {color: [] for color in self._kept}
        colors, at, to = self._colors, self._columns.starts, self._rows.starts
        for row in self._columns.indices[at[column] : at[column + 1]]:
            others = self._rows.indices[to[row] : to[row + 1]]
            self._effort -= len(others)
            for other in others:
                color = colors[other]
                if color >= 0 and other not in blocking[color]:
                    blocking[color].append(other)
        return blocking

    def _cheapest(
        self,
        column: int,
        blocking: dict[int, list[int]],
        paused: dict[tuple[int, int], int],
        step: int,
    ) -> int:
        """The colour that the fewest columns have to give up for this one; of several, any."""
        fewest, chosen = float("inf"), -1
        for color, others in blocking.items():
            price = len(others) + self._random.random() / 2
            if others and paused.get((column, color), 0) > step:
                price += len(self._colors)
            if price < fewest:
                fewest, chosen = price, color
        return chosen
