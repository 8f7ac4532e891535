"""Where an entry can be read from, and so which colours nothing needs: their vertices are neutral.

Source:
    Coleman & Verma, *The Efficient Computation of Sparse Jacobian Matrices Using Automatic
    Differentiation* (1998); Montoison, Dalle & Gebremedhin, *Revisiting Sparse Matrix Coloring and
    Bicoloring* (2025), on neutral colours after a star colouring.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchjac.structure.pattern import Indices

__all__ = ["alone_in_group", "needed", "renumbered"]


def alone_in_group(lines: Indices, colors: Indices) -> npt.NDArray[np.bool_]:
    """For every entry, whether no other entry in its line has its colour, which is not -1.

    Args:
        lines: the row of every entry, where columns are coloured, or the column, where rows are.
        colors: the colour of every entry.
    """
    number = int(colors.max(initial=-1)) + 1
    if not number:
        return np.zeros(len(lines), dtype=bool)
    keys = lines * (number + 1) + colors + 1
    if int(keys.max()) < 16 * len(keys) + 1_000_000:
        counts = np.bincount(keys)[keys]
    else:
        _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        counts = sizes[group]
    alone: npt.NDArray[np.bool_] = (counts == 1) & (colors >= 0)
    return alone


def needed(
    first: Indices, second: Indices, required: Indices, number: int
) -> npt.NDArray[np.bool_]:
    """Which of ``number`` colours to keep, so that every entry can still be read.

    The colours are the vertices of a small graph with an edge between the two that an entry can be read
    from. What is kept has to cover all edges, so what is dropped is an independent set; it is made of
    the colours with the fewest edges.

    Args:
        first: a colour that each entry can be read from, or -1.
        second: the other one, or -1.
        required: colours that are kept in any case.
        number: how many colours there are.
    """
    kept = np.zeros(number, dtype=bool)
    kept[required] = True
    kept[second[first < 0]] = True
    kept[first[second < 0]] = True
    open_ = (first >= 0) & (second >= 0)
    around: list[set[int]] = [set() for _ in range(number)]
    for pair in np.unique(first[open_] * number + second[open_]).tolist():
        one, other = divmod(pair, number)
        around[one].add(other)
        around[other].add(one)
    undecided = set(np.flatnonzero(~kept).tolist())
    while undecided:
        dropped = min(undecided, key=lambda color: (len(around[color] & undecided), -color))
        undecided -= {dropped, *around[dropped]}
        kept[list(around[dropped])] = True
    return kept


def renumbered(colors: Indices, kept: npt.NDArray[np.bool_]) -> Indices:
    """The colours that are kept, counted from 0 again, and -1 for the others."""
    numbers = np.where(kept, np.cumsum(kept) - 1, -1)
    # One more, so that -1 finds itself at the end.
    result: Indices = np.append(numbers, -1)[colors]
    return result
