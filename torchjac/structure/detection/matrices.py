"""Captured sparse matrices: tensors of zeros but for entries whose places are known.

In a trace a dense tensor without values stands for each, which takes no memory whatever its size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchjac.structure.detection.index_sets import Rows
from torchjac.structure.detection.storages import key_of

__all__ = ["FORMS", "OF_SPARSE", "Matrices", "entries_of"]

# What is another form of the same sparse matrix, or of its transpose.
FORMS = {
    torch.ops.aten.t.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.alias.default,
}
# What stands for a sparse matrix is dense.
OF_SPARSE = {torch.ops.aten._sparse_addmm.default: torch.ops.aten.addmm.default}


class _Matrix(NamedTuple):
    captured: Tensor
    rows: Rows
    cols: Rows


class Matrices:
    """The entries of sparse matrices, by the storages of what stands for them."""

    def __init__(self) -> None:
        self._held: dict[int | None, _Matrix] = {}

    def hold(self, stand_in: Tensor, captured: Tensor, entries: tuple[Rows, Rows]) -> None:
        """Remember the entries of what ``stand_in``, which stays alive, stands for.

        Args:
            stand_in: contiguous.
            captured: the matrix that it was made from, maybe its transpose.
            entries: rows and columns.
        """
        self._held[key_of(stand_in)] = _Matrix(captured, *entries)

    def forget(self, tensor: Tensor) -> None:
        """Drop what has been written over."""
        self._held.pop(key_of(tensor), None)

    def entries(self, tensor: Tensor) -> tuple[Rows, Rows, Tensor] | None:
        """Rows and columns of the entries, and the matrix captured; None for what stands for none."""
        held = self._held.get(key_of(tensor)) if self._held else None
        is_whole = tensor.is_contiguous() and not tensor.storage_offset() and tensor.dim() == 2
        return (held.rows, held.cols, held.captured) if held is not None and is_whole else None


def entries_of(matrix: Tensor) -> tuple[Rows, Rows]:
    """Rows and columns of the stored entries of a sparse matrix, explicit zeros among them.

    Raises:
        NotImplementedError: it is no matrix, or one of blocks or with dense dimensions.
    """
    if matrix.dim() != 2 or matrix.dense_dim() or str(matrix.layout).endswith(("bsr", "bsc")):
        raise NotImplementedError(f"a {matrix.layout} tensor with {matrix.dim()} dimensions")
    rows, cols = matrix.detach().to_sparse_coo().coalesce().indices().cpu().numpy()
    return rows, cols
