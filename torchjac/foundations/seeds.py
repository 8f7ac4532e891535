"""Seeds: the vectors that a Jacobian is multiplied with. Everything torchjac does is a choice of seeds.

A chunk of seeds is a dict from the index of a leaf to a stack ``(k, *leaf.shape)``; a leaf that the
chunk does not touch is absent, so an engine can leave it out of the pass altogether. Engines know
seeds and nothing of Jacobians.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from torchjac.foundations.layout import Layout, Section

__all__ = ["Chunk", "IdentitySeeds", "MatrixSeeds", "Seeds"]

Chunk: TypeAlias = "dict[int, Tensor]"

# The elements of seeds that are kept from call to call: making them again costs a small function a
# tenth of its derivative.
_FEW = 4096


class Seeds(ABC):
    """A matrix of seeds over the leaves of a layout, one seed per row, never held whole if it is large.

    With a batched layout every seed is repeated over the samples: because they do not influence each
    other, one pass multiplies the blocks of all of them.
    """

    layout: Layout
    total: int
    """How many seeds there are."""
    counts: list[int]
    """The seeds fall into groups, of which each has its own block of products."""

    few = _FEW
    """The elements of all seeds up to which they are kept."""
    _copied = staticmethod(torch.clone)
    _kept: dict[int, Tensor] | None = None

    @abstractmethod
    def sections(self, start: int, stop: int) -> Iterator[Section]:
        """Cut the seeds ``start`` to ``stop - 1`` at the borders of the groups."""

    @abstractmethod
    def _make(self, start: int, stop: int) -> dict[int, Tensor]:
        """The seeds ``start`` to ``stop - 1`` as matrices ``(k, count)``, leaf by leaf."""

    def keep_if_small(self) -> None:
        """Make all seeds now and keep them, where they are few enough to lie around."""
        if self._kept is None and self.total * max(self.layout.counts, default=0) <= self.few:
            units = self._make(0, self.total)
            # Of a batch the seeds are shaped anew, for that takes no memory.
            self._kept = units if self.layout.batched else self._all_shaped(units)

    def chunk(self, start: int, stop: int) -> Chunk:
        """Return the seeds ``start`` to ``stop - 1``, leaf by leaf."""
        if self._kept is not None and stop - start == self.total:
            # A product can be the seed itself, and what is handed out may be written into.
            copies = {}
            for leaf, unit in self._kept.items():
                copies[leaf] = self._copied(unit)
            return self._all_shaped(copies) if self.layout.batched else copies
        return self._all_shaped(self._make(start, stop))

    def _all_shaped(self, units: dict[int, Tensor]) -> Chunk:
        kinds = self.layout.kinds
        return {leaf: self._shaped(unit, kinds[leaf][0]) for leaf, unit in units.items()}

    def _shaped(self, unit: Tensor, shape: torch.Size) -> Tensor:
        # (k, count) -> (k, *shape), or (k, count) -> (k, 1, *rest) -> (k, B, *rest), a view.
        if not self.layout.batched:
            return unit.reshape(len(unit), *shape) if len(shape) != 1 else unit
        return unit.reshape(len(unit), 1, *shape[1:]).expand(-1, *shape)


class IdentitySeeds(Seeds):
    """One seed per row (or column) of the Jacobian: the identity matrix of the flat space.

    A group of seeds belongs to each leaf, and a seed touches that leaf alone.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.total, self.counts = layout.total, layout.counts

    def sections(self, start: int, stop: int) -> Iterator[Section]:
        return self.layout.sections(start, stop)

    def _make(self, start: int, stop: int) -> dict[int, Tensor]:
        layout, units = self.layout, {}
        for leaf, first, row, length in layout.sections(start, stop):
            (_, dtype, device), count = layout.kinds[leaf], layout.counts[leaf]
            # Not every version has an identity matrix of every dtype.
            unit = torch.eye(length, device=device).to(dtype)
            if not length == count == stop - start:
                part, unit = unit, torch.zeros(stop - start, count, dtype=dtype, device=device)
                unit[row : row + length, first : first + length] = part
            units[leaf] = unit
        return units


class MatrixSeeds(Seeds):
    """The rows of a matrix, each over all leaves; with a batched layout, of one matrix per sample.

    Args:
        layout: the leaves.
        matrix: ``(k, layout.total)`` or ``(B, k, layout.total)``.
    """

    def __init__(self, layout: Layout, matrix: Tensor) -> None:
        self.layout, self._matrix = layout, matrix
        self.total, self.counts = matrix.shape[-2], [matrix.shape[-2]]

    def sections(self, start: int, stop: int) -> Iterator[Section]:
        yield Section(0, start, 0, stop - start)

    def _make(self, start: int, stop: int) -> dict[int, Tensor]:
        # (k, total) or (B, k, total) -> (k, count) or (k, B, count), leaf by leaf
        rows = self._matrix[..., start:stop, :]
        rows = rows.transpose(0, 1) if self.layout.batched else rows
        return dict(enumerate(rows.split(self.layout.counts, dim=-1)))

    def _shaped(self, unit: Tensor, shape: torch.Size) -> Tensor:
        return unit.reshape(len(unit), *shape)
