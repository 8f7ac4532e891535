"""Seeds for sums over a matrix: groups of columns added up, and probes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torchjac.foundations.layout import Layout, Section
from torchjac.foundations.seeds import MatrixSeeds, Seeds

__all__ = ["GroupSeeds", "ProbeSeeds"]


class GroupSeeds(Seeds):
    """One seed per colour: 1 for the positions of that colour, or a sign of their own, and 0 elsewhere.

    Args:
        layout: the leaves.
        colors: int64 ``(layout.total,)`` on the CPU, from 0; -1 for a position in no seed.
        signs: ``(layout.total,)``, in place of the ones.
    """

    def __init__(self, layout: Layout, colors: Tensor, signs: Tensor | None = None) -> None:
        self.layout, self._colors, self._signs = layout, colors, signs
        # One at least, of zeros: then there is something to run.
        self.total = max(int(colors.max()) + 1 if len(colors) else 0, 1)
        self.counts = [self.total]

    def sections(self, start: int, stop: int) -> Iterator[Section]:
        yield Section(0, start, 0, stop - start)

    def _make(self, start: int, stop: int) -> dict[int, Tensor]:
        numbers = torch.arange(start, stop, device="cpu")[:, None]
        units, at = {}, 0
        for leaf, count in enumerate(self.layout.counts):
            _, dtype, device = self.layout.kinds[leaf]
            # (k, 1) == (count,) -> (k, count)
            unit = (numbers == self._colors[at : at + count]).to(device=device, dtype=dtype)
            if self._signs is not None:
                unit = unit * self._signs[at : at + count].to(unit)
            units[leaf] = unit
            at += count
        return units

    def _shaped(self, unit: Tensor, shape: torch.Size) -> Tensor:
        return unit.reshape(len(unit), *shape)


class ProbeSeeds(MatrixSeeds):
    """The rows of a matrix ``(k, layout.total)``, in the dtype and on the device of every leaf."""

    def _make(self, start: int, stop: int) -> dict[int, Tensor]:
        kinds = self.layout.kinds
        return {
            leaf: unit.to(dtype=kinds[leaf][1], device=kinds[leaf][2])
            for leaf, unit in super()._make(start, stop).items()
        }
