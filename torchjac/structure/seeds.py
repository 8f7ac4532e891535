"""Seeds of a colouring: one for each colour, in place of one for each row or column."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from torchjac.foundations.layout import Layout, Section
from torchjac.foundations.lending import lendable, lent
from torchjac.foundations.seeds import Seeds
from torchjac.structure.pattern import Indices

__all__ = ["ColorSeeds"]


class ColorSeeds(Seeds):
    """One seed per colour: the sum of the unit vectors of the positions that have it.

    A seed touches every leaf, and all seeds are one group.

    Args:
        layout: the leaves.
        colors: of the positions of ``layout``, from 0, or -1 for no seed at all; None if there are none.
        num_colors: how many colours there are.
        few: the elements of all seeds up to which they are kept, if not the usual number.
    """

    # They are large, and hardly ever written into.
    _copied = staticmethod(lent)

    def __init__(
        self, layout: Layout, colors: Indices | None, num_colors: int, few: int = Seeds.few
    ) -> None:
        self.layout, self.few = layout, few
        self.total, self.counts = num_colors, [num_colors]
        if colors is None:
            colors = np.full(layout.total, -1)
        parts = np.split(colors, np.cumsum(layout.counts)[:-1])
        self._ones = [
            _by_color(part, num_colors, device)
            for part, (_, _, device) in zip(parts, layout.kinds, strict=True)
        ]

    def keep_if_small(self) -> None:
        super().keep_if_small()
        for unit in (self._kept or {}).values():
            lendable(unit)

    def sections(self, start: int, stop: int) -> Iterator[Section]:
        yield Section(0, start, 0, stop - start)

    def _make(self, start: int, stop: int) -> dict[int, Tensor]:
        units = {}
        for leaf, (places, bounds) in enumerate(self._ones):
            (_, dtype, device), count = self.layout.kinds[leaf], self.layout.counts[leaf]
            ones = places[bounds[start] : bounds[stop]]
            if (
                len(ones) == (stop - start) * count
            ):  # one colour that all have, and no memory for it
                units[leaf] = torch.ones((), dtype=dtype, device=device).expand(stop - start, count)
                continue
            unit = torch.zeros((stop - start) * count, dtype=dtype, device=device)
            unit.index_fill_(0, ones - start * count if start else ones, 1)
            units[leaf] = unit.view(stop - start, count)
        return units


def _by_color(colors: Indices, num_colors: int, device: torch.device) -> tuple[Tensor, list[int]]:
    """Where the ones are in the flattened matrix ``(num_colors, count)`` of seeds, colour by colour.

    Returns:
        The places, and where in them each colour begins; the last number is where they all end.
    """
    order = np.argsort(colors, kind="stable")
    ends = np.cumsum(np.bincount(colors + 1, minlength=num_colors + 1))
    colored = order[ends[0] :]  # without those of colour -1
    places = colors[colored] * len(colors) + colored
    return torch.from_numpy(places).to(device), (ends - ends[0]).tolist()
