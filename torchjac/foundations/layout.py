"""Where every leaf sits in the flat vector that a Jacobian's rows or columns are counted along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["Layout", "Section"]


class Section(NamedTuple):
    """A stretch of consecutive positions that lies within one leaf."""

    leaf: int
    first: int
    """Where it begins within the leaf."""
    row: int
    """Where it begins within the range that was asked for."""
    length: int


class Layout:
    """The leaves of a tree laid one after another: ``counts[i]`` positions for leaf ``i``.

    For a dense Jacobian a leaf has one position per element. For independent samples, ``batched``,
    every leaf is ``(B, *rest)`` and has one position per element of ``rest``: the same position of
    every sample is one seed.
    """

    __slots__ = ("batched", "counts", "likes", "total")

    def __init__(self, leaves: Sequence[Tensor], *, batched: bool = False) -> None:
        self.batched = batched
        self.likes = leaves
        """Tensors with the leaves' shapes, dtypes and devices."""
        self.counts = [(leaf.shape[1:] if batched else leaf.shape).numel() for leaf in leaves]
        self.total = sum(self.counts)

    def sections(self, start: int, stop: int) -> Iterator[Section]:
        """Cut the positions ``start`` to ``stop - 1`` of the flat vector at the borders of leaves."""
        offset = 0
        for leaf, count in enumerate(self.counts):
            first, last = max(start - offset, 0), min(stop - offset, count)
            if first < last:
                yield Section(leaf, first, offset + first - start, last - first)
            offset += count
