"""`SparsityPattern`: which entries of a matrix may be nonzero."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchjac.errors import PatternError
from torchjac.structure.indices import (
    Indices,
    as_indices,
    as_matrix,
    as_shape,
    check_range,
    frozen,
    shortened,
    starts_of,
)
from torchjac.structure.picture import braille, draw

if TYPE_CHECKING:
    from torchjac.structure.coloring import Coloring

__all__ = ["Indices", "SparsityPattern"]


class SparsityPattern:
    """The places of a matrix that may hold a nonzero; everywhere else there is a zero for certain.

    Immutable, hashable and comparable by content. The entries are kept in row-major order, each once.
    It is made of index lists, like `from_coo`, or by one of the other constructors.

    Args:
        rows: the row of every entry, in any order; what comes twice is one entry.
        cols: the column of every entry.
        shape: ``(m, n)``.

    Raises:
        PatternError: the indices are no integers, of unequal number, or outside of ``shape``.

    Example:
        >>> import torch, torchjac
        >>> pattern = torchjac.SparsityPattern.from_dense(torch.eye(4) + torch.eye(4).roll(1, 0))
        >>> pattern.shape, pattern.nnz
        ((4, 4), 8)
        >>> pattern
        SparsityPattern(4×4, nnz=8, 50.0%)
        ⠳⣌
        >>> pattern == pattern.T, pattern.covers(pattern & pattern.T)
        (False, True)
    """

    # NumPy arrays are the primary store: a tensor that is made inside a transform of torch.func, or
    # under fake tensors, belongs to it and has no values afterwards.
    _rows: Indices
    _cols: Indices
    _shape: tuple[int, int]

    def __init__(
        self, rows: Sequence[int] | Tensor | Any, cols: Sequence[int] | Tensor | Any, shape: Any
    ) -> None:
        self._fill("SparsityPattern", rows, cols, shape)

    def _fill(self, name: str, rows: Any, cols: Any, shape: Any) -> None:
        self._shape = m, n = as_shape(name, shape)
        rows, cols = as_indices(name, "rows", rows), as_indices(name, "cols", cols)
        if len(rows) != len(cols):
            raise PatternError(
                f"{name}(rows, cols): got {len(rows)} rows and {len(cols)} columns; every entry needs "
                f"one of each."
            )
        check_range(name, "rows", rows, m)
        check_range(name, "cols", cols, n)
        keys = rows * n + cols
        if len(keys) > 1 and not (np.diff(keys) > 0).all():
            keys = np.unique(keys)
            rows, cols = np.divmod(keys, n)
        self._rows, self._cols = frozen(rows), frozen(cols)

    @classmethod
    def _sorted(cls, rows: Indices, cols: Indices, shape: tuple[int, int]) -> SparsityPattern:
        """Take over arrays that are in row-major order already, without a look at them."""
        pattern = cls.__new__(cls)
        pattern._rows, pattern._cols, pattern._shape = frozen(rows), frozen(cols), shape
        return pattern

    @classmethod
    def _of_keys(cls, keys: Indices, shape: tuple[int, int]) -> SparsityPattern:
        rows, cols = np.divmod(keys, max(shape[1], 1))
        return cls._sorted(rows, cols, shape)

    # Constructors.

    @classmethod
    def from_dense(cls, matrix: Tensor | npt.ArrayLike) -> SparsityPattern:
        """The entries of a matrix that are not zero; of a boolean matrix, those that are True.

        Args:
            matrix: a strided tensor, a NumPy array or nested lists, with two dimensions.

        Raises:
            PatternError: it is no matrix, or a sparse one.
        """
        array = as_matrix("SparsityPattern.from_dense", matrix)
        rows, cols = np.nonzero(array)
        return cls._sorted(rows.astype(np.int64), cols.astype(np.int64), array.shape)

    @classmethod
    def from_coo(
        cls, rows: Sequence[int] | Tensor | Any, cols: Sequence[int] | Tensor | Any, shape: Any
    ) -> SparsityPattern:
        """The entries at ``(rows[k], cols[k])``, in any order and with repetitions.

        Args:
            rows: tensor, array or list of integers.
            cols: likewise, and as many.
            shape: ``(m, n)``.

        Raises:
            PatternError: the indices are no integers, of unequal number, or outside of ``shape``.
        """
        pattern = cls.__new__(cls)
        pattern._fill("SparsityPattern.from_coo", rows, cols, shape)
        return pattern

    @classmethod
    def from_csr(
        cls, indptr: Sequence[int] | Tensor | Any, indices: Sequence[int] | Tensor | Any, shape: Any
    ) -> SparsityPattern:
        """The entries of a matrix in compressed rows: those of row i are ``indices[indptr[i]:indptr[i+1]]``.

        Args:
            indptr: m + 1 integers that do not decrease, from 0 to the number of entries.
            indices: the columns, in any order within a row and with repetitions.
            shape: ``(m, n)``.

        Raises:
            PatternError: ``indptr`` is not so, or an index is no integer or outside of ``shape``.
        """
        name = "SparsityPattern.from_csr"
        m, _ = as_shape(name, shape)
        starts, cols = as_indices(name, "indptr", indptr), as_indices(name, "indices", indices)
        counts = np.diff(starts)
        if len(starts) != m + 1 or starts[0] != 0 or starts[-1] != len(cols) or (counts < 0).any():
            raise PatternError(
                f"{name}(indptr): expected {m + 1} integers that do not decrease, from 0 to "
                f"{len(cols)} (the number of indices), got {shortened(starts)}."
            )
        pattern = cls.__new__(cls)
        pattern._fill(name, np.repeat(np.arange(m), counts), cols, shape)
        return pattern

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparsityPattern:
        """The stored entries of a SciPy sparse matrix or array; an explicit zero is an entry too.

        Args:
            matrix: in any of SciPy's formats.

        Raises:
            PatternError: it is no sparse matrix of SciPy.
        """
        if not hasattr(matrix, "tocsr") or len(matrix.shape) != 2:
            raise PatternError(
                f"SparsityPattern.from_scipy(matrix): expected a sparse matrix of SciPy, got "
                f"{type(matrix).__name__}. from_dense takes other matrices."
            )
        csr = matrix.tocsr()
        return cls.from_csr(csr.indptr, csr.indices, csr.shape)

    # What it is.

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self._shape

    @property
    def nnz(self) -> int:
        """How many entries there are."""
        return len(self._rows)

    @property
    def rows(self) -> Tensor:
        """The row of every entry: int64 ``(nnz,)`` on the CPU, in row-major order; a copy."""
        return torch.from_numpy(self._rows.copy())

    @property
    def cols(self) -> Tensor:
        """The column of every entry, in the order of `rows`; a copy."""
        return torch.from_numpy(self._cols.copy())

    @property
    def coo(self) -> tuple[Indices, Indices]:
        """`rows` and `cols` as NumPy arrays; what this library computes with, see the note above."""
        return self._rows, self._cols

    @functools.cached_property
    def csr(self) -> tuple[Indices, Indices]:
        """Row by row as NumPy arrays: where each row starts, and the columns."""
        return frozen(starts_of(self._rows, self._shape[0])), self._cols

    @functools.cached_property
    def csc(self) -> tuple[Indices, Indices, Indices]:
        """Column by column as NumPy arrays: where each starts, the rows, and each entry's number."""
        order = np.argsort(self._cols, kind="stable")
        starts = starts_of(self._cols, self._shape[1])
        return frozen(starts), frozen(self._rows[order]), frozen(order)

    @property
    def T(self) -> SparsityPattern:  # noqa: N802
        """The pattern of the transpose."""
        m, n = self._shape
        starts, rows, order = self.csc
        transposed = self._sorted(self._cols[order], rows, (n, m))
        transposed.__dict__["csr"] = starts, rows
        return transposed

    @functools.cached_property
    def is_symmetric(self) -> bool:
        """Whether the matrix is square, and has an entry (j, i) for every entry (i, j)."""
        m, n = self._shape
        _, rows, order = self.csc
        return (
            m == n
            and np.array_equal(rows, self._cols)
            and np.array_equal(self._cols[order], self._rows)
        )

    # What it is next to another one.

    def covers(self, other: SparsityPattern) -> bool:
        """Whether every entry of ``other``, which has the same shape, is one of this pattern."""
        self._check_shape("covers(other)", other)
        return bool(np.isin(other._keys, self._keys, assume_unique=True).all())

    def __or__(self, other: SparsityPattern) -> SparsityPattern:
        if not isinstance(other, SparsityPattern):
            return NotImplemented
        self._check_shape("pattern | other", other)
        return self._of_keys(np.union1d(self._keys, other._keys), self._shape)

    def __and__(self, other: SparsityPattern) -> SparsityPattern:
        if not isinstance(other, SparsityPattern):
            return NotImplemented
        self._check_shape("pattern & other", other)
        keys = np.intersect1d(self._keys, other._keys, assume_unique=True)
        return self._of_keys(keys, self._shape)

    @property
    def _keys(self) -> Indices:
        """The number of every entry when all places are counted row by row."""
        keys: Indices = self._rows * self._shape[1] + self._cols
        return keys

    def _check_shape(self, name: str, other: SparsityPattern) -> None:
        if not isinstance(other, SparsityPattern):
            raise PatternError(f"{name}: expected a SparsityPattern, got {type(other).__name__}.")
        if other.shape != self._shape:
            (m, n), (p, q) = self._shape, other.shape
            raise PatternError(f"{name}: expected patterns of one shape, got {m}×{n} and {p}×{q}.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparsityPattern):
            return NotImplemented
        return self is other or (
            self._shape == other._shape
            and np.array_equal(self._rows, other._rows)
            and np.array_equal(self._cols, other._cols)
        )

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self._shape, self._rows.tobytes(), self._cols.tobytes()))

    # What it can be turned into.

    def to_dense(self) -> Tensor:
        """A boolean ``(m, n)`` tensor, True at the entries."""
        dense = np.zeros(self._shape, dtype=bool)
        dense[self._rows, self._cols] = True
        return torch.from_numpy(dense)

    def to_coo(self) -> tuple[Tensor, Tensor]:
        """Copies of `rows` and `cols`."""
        return torch.from_numpy(self._rows.copy()), torch.from_numpy(self._cols.copy())

    def to_csr(self) -> tuple[Tensor, Tensor]:
        """``crow_indices`` and ``col_indices`` of a CSR tensor, int64."""
        starts, cols = self.csr
        return torch.from_numpy(starts.copy()), torch.from_numpy(cols.copy())

    def to_scipy(self) -> Any:
        """A boolean ``scipy.sparse.csr_array``, True at the entries."""
        import scipy.sparse

        starts, cols = self.csr
        values = np.ones(self.nnz, dtype=bool)
        return scipy.sparse.csr_array((values, cols.copy(), starts.copy()), shape=self._shape)

    # What it looks like.

    def picture(self, lines: int = 20) -> str:
        """The pattern in braille dots, at most ``lines`` high and twice as many characters wide.

        A small pattern has a dot for every entry, a large one for every region with an entry in it.

        Raises:
            PatternError: ``lines`` is no positive number.
        """
        if lines < 1:
            raise PatternError(f"picture(lines={lines!r}): expected a positive int.")
        return braille(self._rows, self._cols, self._shape, 4 * lines)

    def spy(self, ax: Any = None, colors: Coloring | None = None) -> Any:
        """Draw the entries with Matplotlib.

        Args:
            ax: the axes to draw on; None makes new ones.
            colors: a colouring of this pattern; entries that share a pass get one colour.

        Returns:
            The axes.

        Raises:
            PatternError: ``colors`` is a colouring of another pattern.
        """
        groups = None
        if colors is not None:
            if not hasattr(colors, "pattern"):
                raise PatternError(
                    f"spy(colors=...): expected a Coloring, got {type(colors).__name__}. Give color(pattern)."
                )
            if colors.pattern != self:
                raise PatternError(
                    "spy(colors=...): the colouring is one of another pattern. Give color(pattern)."
                )
            groups = np.where(
                colors.from_columns.numpy(),
                colors.group.numpy(),
                colors.group.numpy() + colors.num_column_colors,
            )
        return draw(self._rows, self._cols, self._shape, ax, groups)

    def __repr__(self) -> str:
        m, n = self._shape
        share = 100 * self.nnz / (m * n) if m * n else 0.0
        header = f"SparsityPattern({m}×{n}, nnz={self.nnz}, {share:.1f}%)"
        return f"{header}\n{self.picture()}" if self.nnz else header
