"""Whether all entries can be read off the products of a colouring, told fast enough to ask of any file.

`torchjac.structure.validate` says more of what is wrong, and takes some thirty times as long.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchjac.structure.coloring import Coloring
from torchjac.structure.pattern import Indices

__all__ = ["flaw"]


def flaw(coloring: Coloring) -> str | None:
    """Say what is wrong with a colouring, or None.

    An entry is read from one place of one product. It comes back if it is the only entry of the pattern
    that is added up there, or if the other name of it is: H[i, j] is H[j, i] where the colouring relies on
    that. Entries of several products come back if they could be found from these at all.

    Example:
        >>> import torch, torchjac
        >>> pattern = torchjac.SparsityPattern.from_dense(torch.eye(2).add(torch.eye(2).flip(0)))
        >>> flaw(torchjac.color(pattern, by="rows"))
        >>> flaw(torchjac.Coloring(pattern, "rows", row_colors=[0, 0]))
        'entry (0, 0) cannot be told from others in its product'
    """
    sides = (coloring.column_indices, coloring.row_indices)
    for what, colors in zip(("column", "row"), sides, strict=True):
        if colors is not None and len(np.unique(colors[colors >= 0])) <= colors.max(initial=-1):
            return f"there is a colour that no {what} has"
    if coloring.by == "symmetric" and not coloring.pattern.is_symmetric:
        return "the pattern is not symmetric"
    rows, cols = coloring.pattern.coo
    from_columns, group, position = coloring.recovery
    lost = group < 0
    if coloring.max_terms > 1:
        # Nothing in there is believed: the way to each entry was worked out from the colours.
        return _lost(rows, cols, lost, f"put together from {coloring.max_terms} products")
    for colors, line, across, here in (
        (sides[0], cols, rows, from_columns),
        (sides[1], rows, cols, ~from_columns),
    ):
        if colors is None:
            continue
        asked = here & ~lost
        places = colors[line] * (across.max(initial=0) + 1) + across
        places[colors[line] < 0] = -1
        wanted = group[asked] * (across.max(initial=0) + 1) + position[asked]
        sole = _sole(places, wanted)
        same = (rows[sole] == rows[asked]) & (cols[sole] == cols[asked])
        if coloring.by == "symmetric":
            same |= (rows[sole] == cols[asked]) & (cols[sole] == rows[asked])
        lost[np.flatnonzero(asked)[(sole < 0) | ~same]] = True
    return _lost(rows, cols, lost, "told from others in its product")


def _lost(rows: Indices, cols: Indices, lost: npt.NDArray[np.bool_], how: str) -> str | None:
    if not lost.any():
        return None
    at = int(np.argmax(lost))
    return f"entry ({rows[at]}, {cols[at]}) cannot be {how}"


def _sole(places: Indices, wanted: Indices) -> Indices:
    """For every place that is wanted the only entry that is there; -1 where there are others, or none."""
    found, first, counts = np.unique(places, return_index=True, return_counts=True)
    if not len(found):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(found, wanted), len(found) - 1)
    return np.where((found[at] == wanted) & (counts[at] == 1), first[at], -1)
