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

    __slots__ = ("batched", "counts", "kinds", "total")

    def __init__(self, leaves: Sequence[Tensor], *, batched: bool = False) -> None:
        self.batched = batched
        self.kinds = [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
        """Shape, dtype and device of every leaf; a layout holds no tensor."""
        self.counts = [(shape[1:] if batched else shape).numel() for shape, _, _ in self.kinds]
        self.total = sum(self.counts)

    def fits(self, leaves: Sequence[Tensor]) -> bool:
        """Whether ``leaves`` are laid out so."""
        if len(leaves) != len(self.kinds):
            return False
        for leaf, kind in zip(leaves, self.kinds, strict=True):
            if (leaf.shape, leaf.dtype, leaf.device) != kind:
                return False
        return True

    def sections(self, start: int, stop: int) -> Iterator[Section]:
        """Cut the positions ``start`` to ``stop - 1`` of the flat vector at the borders of leaves."""
        offset = 0
        for leaf, count in enumerate(self.counts):
            first, last = max(start - offset, 0), min(stop - offset, count)
            if first < last:
                yield Section(leaf, first, offset + first - start, last - first)
            offset += count
