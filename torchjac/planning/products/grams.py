"""Gram matrices: JᵀWJ in the memory of the result and one block of J."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchjac.errors import ArgumentError, ArgumentTypeError
from torchjac.evaluation.surroundings import inside_transform

if TYPE_CHECKING:
    from torchjac.planning.products.operator import LinearOperator

__all__ = ["Weights", "checked_weights", "gram", "side_by_side"]


class Weights(ABC):
    """W, ``(m, m)``, as it acts on rows of J."""

    def aligned(self, size: int) -> int:
        """About as many rows as ``size``, such that no entry of W leads out of them if that can be."""
        return size

    @abstractmethod
    def times(self, rows: Tensor, at: slice = slice(None)) -> Tensor:
        """W·R, of a stretch of rows that W does not lead out of."""

    def across(self, op: LinearOperator, rows: Tensor, at: slice) -> Tensor:
        """The rows ``at`` of W·J, of which ``rows`` are those of J."""
        return self.times(rows, at)


class _Diagonal(Weights):
    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def times(self, rows: Tensor, at: slice = slice(None)) -> Tensor:
        return self._weights[at, None] * rows


class _Blocks(Weights):
    """A block for every ``c`` rows: ``(b, c, c)``, where b·c = m."""

    def __init__(self, blocks: Tensor) -> None:
        self._blocks, self._c = blocks, blocks.shape[1]

    def aligned(self, size: int) -> int:
        # A few rows more than fit are no harm; many are what blocks are there to avoid.
        return size if self._c > 2 * size else max(size // self._c, 1) * self._c

    def times(self, rows: Tensor, at: slice = slice(None)) -> Tensor:
        start, stop, _ = at.indices(len(self._blocks) * self._c)
        blocks = self._blocks[start // self._c : stop // self._c]
        # (b·c, k) -> (b, c, k), every block of which W has a block for
        return (blocks @ rows.reshape(len(blocks), self._c, -1)).reshape(rows.shape)

    def across(self, op: LinearOperator, rows: Tensor, at: slice) -> Tensor:
        if at.start % self._c or at.stop % self._c:
            return op.T._times(self._columns(at)).T
        return self.times(rows, at)

    def _columns(self, at: slice) -> Tensor:
        """The columns ``at`` of Wᵀ, ``(m, k)``."""
        whole = self._blocks.new_zeros(len(self._blocks) * self._c, at.stop - at.start)
        for b in range(at.start // self._c, (at.stop - 1) // self._c + 1):
            first = b * self._c
            start, stop = max(at.start, first), min(at.stop, first + self._c)
            part = self._blocks[b, start - first : stop - first].T
            whole[first : first + self._c, start - at.start : stop - at.start] = part
        return whole


def checked_weights(op: LinearOperator, where: str, weights: Tensor | None) -> Weights:
    """Take the diagonal of W, W, or its blocks, and refuse what does not fit the rows of ``op``."""
    m = op.shape[0]
    if weights is None:
        return _Diagonal(torch.ones(m, dtype=op.dtype, device=op.device))
    sizes = f"({m},), ({m}, {m}) or (b, c, c) with b·c = {m}"
    expected = f"expected a tensor {sizes}, of {op.dtype} on {op.device}"
    if not isinstance(weights, Tensor):
        raise ArgumentTypeError(f"{where}: got a {type(weights).__name__}; {expected}.")
    if weights.layout is not torch.strided:
        raise ArgumentTypeError(f"{where}: got one of {weights.layout}; {expected}.")
    if weights.dtype != op.dtype or weights.device != op.device:
        raise ArgumentTypeError(f"{where}: got {weights.dtype} on {weights.device}; {expected}.")
    shape = tuple(weights.shape)
    if shape == (m,):
        return _Diagonal(weights)
    if shape == (m, m):
        weights, shape = weights[None], (1, m, m)
    if len(shape) == 3 and shape[1] == shape[2] and shape[0] * shape[1] == m:
        return _Blocks(weights) if m else _Diagonal(weights.reshape(0))
    raise ArgumentError(f"{where}: got shape {shape}; {expected}.")


def gram(op: LinearOperator, weights: Weights) -> Tensor:
    """JᵀWJ, ``(n, n)``."""
    m, n = op.shape
    if m > 2 * n:
        # n passes to one side and n to the other are fewer than m.
        pairs = ((at, op.T._times(weights.times(block))) for at, block in op._columns())
        return side_by_side(pairs, torch.zeros(n, n, dtype=op.dtype, device=op.device))
    # In half precision a sum over many blocks would stand still: 256 + 1 is 256 in bfloat16.
    dtype = torch.promote_types(op.dtype, torch.float32)
    total = torch.zeros(n, n, dtype=dtype, device=op.device)
    for at, block in op._rows(size=weights.aligned(op._pass_size(m))):
        total = _plus_product(total, block.T, weights.across(op, block, at))
    return total.to(op.dtype)


def side_by_side(columns: Iterator[tuple[slice, Tensor]], whole: Tensor) -> Tensor:
    """Stretches of columns as one matrix: written into ``whole`` where nobody differentiates them.

    Kept until all are there, they would lie between the large tensors of the passes, and the memory of
    these could not be used again: 600 MB more for 200000 × 2000.
    """
    parts: list[Tensor] = []
    for at, part in columns:
        if part.requires_grad or inside_transform():
            parts.append(part)
        else:
            whole[:, at] = part
    return torch.cat(parts, 1) if parts else whole


def _plus_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    in_place = not (inside_transform() or left.requires_grad or right.requires_grad)
    if left.dtype != total.dtype:
        product = left @ right
        return total.add_(product) if in_place else total + product
    return total.addmm_(left, right) if in_place else torch.addmm(total, left, right)
