"""Which seed elements each element of a tensor depends on: one row of column indices per element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from torchjac.errors import StructureError

__all__ = ["IndexSets", "Rows"]

Rows = npt.NDArray[Any]
"""Row numbers, row-major over a tensor; −1 is the empty set."""

# Past this many entries a compressed Jacobian is no smaller than the machine.
MOST_ENTRIES = 200_000_000


class IndexSets:
    """A boolean matrix in compressed rows, sorted and without duplicates; never changed.

    Args:
        matrix: the rows. Owned from here on.
    """

    __slots__ = ("matrix",)

    def __init__(self, matrix: Any) -> None:
        _refuse_dense(matrix.nnz)
        self.matrix = matrix

    @classmethod
    def of(cls, indptr: Rows, indices: Rows, columns: int) -> IndexSets:
        """The sets ``indices[indptr[i]:indptr[i + 1]]``, which are sorted."""
        shape = (len(indptr) - 1, columns)
        matrix = sparse.csr_matrix((np.ones(len(indices), bool), indices, indptr), shape=shape)
        matrix.has_canonical_format = True
        return cls(matrix)

    @classmethod
    def empty(cls, rows: int, columns: int) -> IndexSets:
        """No dependence."""
        return cls.of(np.zeros(rows + 1, np.int32), np.zeros(0, np.int32), columns)

    @classmethod
    def identity(cls, rows: int, first: int, columns: int) -> IndexSets:
        """Row ``i`` depends on column ``first + i``."""
        indices = np.arange(first, first + rows, dtype=np.int32)
        return cls.of(np.arange(rows + 1, dtype=np.int32), indices, columns)

    @classmethod
    def stack(cls, parts: Sequence[IndexSets]) -> IndexSets:
        """The rows of all parts, one part after another."""
        if len(parts) == 1:
            return parts[0]
        _refuse_dense(sum(part.nnz for part in parts))
        starts = np.cumsum([0, *(part.nnz for part in parts)])
        indptr = np.concatenate(
            [
                np.zeros(1, np.int32),
                *(p.matrix.indptr[1:] + s for p, s in zip(parts, starts[:-1], strict=True)),
            ]
        ).astype(np.int32)
        return cls.of(indptr, np.concatenate([p.matrix.indices for p in parts]), parts[0].columns)

    @property
    def nnz(self) -> int:
        """How many entries there are."""
        return int(self.matrix.nnz)

    @property
    def columns(self) -> int:
        """How many seed elements there are."""
        return int(self.matrix.shape[1])

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def gather(self, rows: Rows | None) -> IndexSets:
        """The sets of ``rows``, in that order and repeated as often; None for all as they are."""
        if rows is None:
            return self
        indptr, indices = self.matrix.indptr, self.matrix.indices
        # A row of its own for the empty set, which is then found as the last one, −1.
        lengths = np.append(np.diff(indptr), 0)
        counts = lengths[rows]
        total = int(counts.sum(dtype=np.int64))
        _refuse_dense(total)
        bounds = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=bounds[1:])
        starts = indptr[rows]
        if total == len(rows) and (counts == 1).all():
            return self.of(bounds, indices[starts], self.columns)
        # Entry e of row r is found at starts[r] + (e - bounds[r]).
        at = np.arange(total, dtype=np.int32) + np.repeat(starts - bounds[:-1], counts)
        return self.of(bounds, indices[at], self.columns)

    def union(self, other: IndexSets) -> IndexSets:
        """Row by row."""
        if other is self or not other.nnz:
            return self
        if not self.nnz:
            return other
        if self.nnz == other.nnz and (
            np.array_equal(self.matrix.indices, other.matrix.indices)
            and np.array_equal(self.matrix.indptr, other.matrix.indptr)
        ):
            return self
        return IndexSets(self.matrix + other.matrix)

    def keep(self, mask: npt.NDArray[np.bool_]) -> IndexSets:
        """The rows where ``mask`` holds; the others become empty."""
        return self if mask.all() else self.gather(np.where(mask, np.arange(len(self)), -1))

    def merge(self, groups: Any) -> IndexSets:
        """The union of the rows in each row of the boolean matrix ``groups``.

        A structural product: row i of the result is the union of rows j with ``groups[i, j]``.
        """
        lengths = np.diff(self.matrix.indptr)
        work = np.cumsum(np.append(0, lengths[groups.indices].astype(np.int64)))[groups.indptr]
        if work[-1] <= MOST_ENTRIES:
            return IndexSets(_product(groups, self.matrix))
        # Duplicates may still make it small: a stretch of rows at a time.
        parts, start = [], 0
        while start < groups.shape[0]:
            most = work[start] + MOST_ENTRIES // 4
            stop = max(start + 1, int(np.searchsorted(work, most, side="right")) - 1)
            parts.append(IndexSets(_product(groups[start:stop], self.matrix)))
            _refuse_dense(sum(part.nnz for part in parts))
            start = stop
        return self.stack(parts)

    def support(self) -> IndexSets:
        """The union of all rows, as one row."""
        found = np.zeros(self.columns, bool)
        found[self.matrix.indices] = True
        indices = np.flatnonzero(found).astype(np.int32)
        return self.of(np.array([0, len(indices)], np.int32), indices, self.columns)


def _product(left: Any, right: Any) -> Any:
    product = left @ right
    product.sort_indices()
    product.has_canonical_format = True
    return product


def _refuse_dense(entries: int) -> None:
    if entries > MOST_ENTRIES:
        raise StructureError(
            f"the pattern, or one on the way to it, has over {MOST_ENTRIES:.0e} nonzeros: the Jacobian "
            "is effectively dense, and compressing it gains nothing; pass sparsity=None"
        )
