"""Seeds: the vectors that a Jacobian is multiplied with. Everything torchjac does is a choice of seeds.

A chunk of seeds is a dict from the index of a leaf to a stack ``(k, *leaf.shape)``; a leaf that the
chunk does not touch is absent, so an engine can leave it out of the pass altogether. Engines know
seeds and nothing of Jacobians.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from torchjac.foundations.layout import Layout

__all__ = ["Chunk", "IdentitySeeds"]

Chunk: TypeAlias = "dict[int, Tensor]"


class IdentitySeeds:
    """One seed per row (or column): the identity matrix of the flat space, never held whole.

    With a batched layout there is one seed per row of a *block*: the seed is repeated over the
    samples, and because the samples do not influence each other one pass gives that row for all.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.total = layout.total

    def chunk(self, start: int, stop: int) -> Chunk:
        """Return the seeds ``start`` to ``stop - 1``, leaf by leaf."""
        layout, stacks = self.layout, {}
        for leaf, first, row, length in layout.sections(start, stop):
            count, like = layout.counts[leaf], layout.likes[leaf]
            if length == count == stop - start:
                unit = torch.eye(count, dtype=like.dtype, device=like.device)
            else:
                unit = torch.zeros(stop - start, count, dtype=like.dtype, device=like.device)
                unit[row : row + length, first : first + length] = torch.eye(
                    length, dtype=like.dtype, device=like.device
                )
            stacks[leaf] = self._shaped(unit, like.shape)
        return stacks

    def _shaped(self, unit: Tensor, shape: torch.Size) -> Tensor:
        # (k, count) -> (k, *shape), or (k, count) -> (k, 1, *rest) -> (k, B, *rest), a view.
        if not self.layout.batched:
            return unit.reshape(-1, *shape)
        return unit.reshape(-1, 1, *shape[1:]).expand(-1, *shape)
