"""`Coloring`: which columns and rows share a pass, and where each entry is read."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchjac.errors import OptionError, OptionTypeError, PatternError
from torchjac.structure.neutral import alone_in_group
from torchjac.structure.pattern import Indices, SparsityPattern
from torchjac.structure.substitution import Corrections, no_corrections, substitutions

__all__ = ["CHOICES", "By", "Coloring", "check_terms", "words"]

By: TypeAlias = Literal["columns", "rows", "symmetric", "bidirectional"]
CHOICES: tuple[By, ...] = ("columns", "rows", "symmetric", "bidirectional")


class Coloring:
    """Which columns and rows of a sparse matrix share a pass, and how each entry is recovered.

    With the products ``C[c] = J @ s`` for the columns of colour c (s is 1 there and 0 elsewhere) and
    ``R[c] = s @ J`` for the rows of colour c, entry k of the pattern, in its row-major order, is
    ``C[group[k], position[k]]`` where ``from_columns[k]``, and ``R[group[k], position[k]]`` elsewhere.
    Where ``max_terms`` is more than 1, what `corrections` says has to be added. Two colourings are equal if
    all of this is. `color` makes one; made by hand it is believed, until
    `torchjac.structure.validate.check_coloring`.

    Args:
        pattern: what is coloured.
        by: ``"columns"``, ``"rows"``, ``"symmetric"`` or ``"bidirectional"``.
        column_colors: of each column, from 0, or -1 for one that takes part in no pass; None where there
            are no passes over columns.
        row_colors: likewise of each row.
        max_terms: from how many products an entry may be put together; more than 1 with
            ``by="symmetric"`` only.

    Raises:
        OptionError: ``by`` or ``max_terms`` is not one of those.
        PatternError: there is not one integer per column and row, from -1.

    Example:
        >>> import torch, torchjac
        >>> J = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 4.0]])
        >>> pattern = torchjac.SparsityPattern.from_dense(J)
        >>> coloring = torchjac.color(pattern, by="columns")
        >>> coloring
        Coloring(by='columns', num_colors=2)
        >>> products = torch.stack([J[:, coloring.colors == c].sum(1) for c in range(2)])
        >>> products[coloring.group, coloring.position]
        tensor([1., 2., 3., 4.])
    """

    def __init__(
        self,
        pattern: SparsityPattern,
        by: By,
        column_colors: Any = None,
        row_colors: Any = None,
        *,
        max_terms: int = 1,
    ) -> None:
        if by not in CHOICES:
            raise OptionError(f"Coloring(by={by!r}): expected one of {words(CHOICES)}.")
        check_terms("Coloring", by, max_terms)
        if not isinstance(pattern, SparsityPattern):
            raise PatternError(
                f"Coloring(pattern): expected a SparsityPattern, got {type(pattern).__name__}."
            )
        m, n = pattern.shape
        self._pattern, self._by, self._max_terms = pattern, by, max_terms
        self._columns = _as_colors("column_colors", column_colors, n, by != "rows")
        self._rows = _as_colors("row_colors", row_colors, m, by in ("rows", "bidirectional"))

    @property
    def pattern(self) -> SparsityPattern:
        """What is coloured."""
        return self._pattern

    @property
    def by(self) -> By:
        """What has colours; never ``"auto"``."""
        return self._by

    @property
    def num_colors(self) -> int:
        """How many passes there are in all."""
        return self.num_column_colors + self.num_row_colors

    @property
    def max_terms(self) -> int:
        """From how many products an entry may be put together: 1 where each is read off one."""
        return self._max_terms

    @functools.cached_property
    def num_column_colors(self) -> int:
        """How many products there are with sums of columns: JVPs, or Hessian-vector products."""
        return _number(self._columns)

    @functools.cached_property
    def num_row_colors(self) -> int:
        """How many products there are with sums of rows: VJPs."""
        return _number(self._rows)

    @property
    def column_colors(self) -> Tensor | None:
        """The colour of each column, int64 ``(n,)``, or None; -1 takes part in no pass. A copy."""
        return None if self._columns is None else torch.from_numpy(self._columns.copy())

    @property
    def row_colors(self) -> Tensor | None:
        """The colour of each row, int64 ``(m,)``, or None; -1 takes part in no pass. A copy."""
        return None if self._rows is None else torch.from_numpy(self._rows.copy())

    @property
    def column_indices(self) -> Indices | None:
        """`column_colors` as a NumPy array."""
        return self._columns

    @property
    def row_indices(self) -> Indices | None:
        """`row_colors` as a NumPy array."""
        return self._rows

    @property
    def colors(self) -> Tensor:
        """The colours, whichever there are.

        Of a bidirectional colouring those of the columns and then those of the rows, ``(n + m,)``, which
        go on counting where the columns' end: the star colouring of [[0, Jᵀ], [J, 0]].
        """
        if self._rows is None or self._columns is None:
            chosen = self._columns if self._rows is None else self._rows
            assert chosen is not None
            return torch.from_numpy(chosen.copy())
        rows = np.where(self._rows < 0, -1, self._rows + self.num_column_colors)
        return torch.from_numpy(np.concatenate([self._columns, rows]))

    @property
    def from_columns(self) -> Tensor:
        """Of each entry, whether it is read off a product with columns; bool ``(nnz,)``."""
        return torch.from_numpy(self.recovery[0].copy())

    @property
    def group(self) -> Tensor:
        """Of each entry, the colour whose product it is read off; int64 ``(nnz,)``."""
        return torch.from_numpy(self.recovery[1].copy())

    @property
    def position(self) -> Tensor:
        """Of each entry, where in that product it is: a row of J·s, or a column of s·J."""
        return torch.from_numpy(self.recovery[2].copy())

    @property
    def corrections(self) -> Corrections:
        """What is added to the entries that are not alone where they are read; nothing if ``max_terms`` is 1.

        For each t, entry ``entry[t]`` takes ``sign[t] * C[group[t], position[t]]`` in addition.
        """
        return no_corrections() if self._max_terms == 1 else self._substitutions[2]

    @functools.cached_property
    def _substitutions(self) -> tuple[Indices, Indices, Corrections]:
        assert self._columns is not None
        return substitutions(self._pattern, self._columns, self._max_terms)

    @functools.cached_property
    def recovery(self) -> tuple[npt.NDArray[np.bool_], Indices, Indices]:
        """`from_columns`, `group` and `position` as NumPy arrays."""
        rows, cols = self._pattern.coo
        if self._max_terms > 1:
            return np.ones(len(rows), dtype=bool), *self._substitutions[:2]
        if self._columns is None:
            assert self._rows is not None
            return np.zeros(len(rows), dtype=bool), self._rows[rows], cols
        if self._by == "columns":
            return np.ones(len(rows), dtype=bool), self._columns[cols], rows
        alone = alone_in_group(rows, self._columns[cols])
        if self._rows is None:
            # Entry (i, j) is in row i of the product with colour(j), and in row j of that with colour(i).
            group = np.where(alone, self._columns[cols], self._columns[rows])
            return np.ones(len(rows), dtype=bool), group, np.where(alone, rows, cols)
        group = np.where(alone, self._columns[cols], self._rows[rows])
        return alone, group, np.where(alone, rows, cols)

    def _key(self) -> tuple[Any, ...]:
        sides = (self._columns, self._rows)
        colors = [None if side is None else side.tobytes() for side in sides]
        return (self._by, self._max_terms, self._pattern, *colors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coloring) and (self is other or self._key() == other._key())

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._key())

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        more = ""
        if self._by == "bidirectional":
            more = f" ({self.num_column_colors} of columns, {self.num_row_colors} of rows)"
        elif self._max_terms > 1:
            more = f", max_terms={self._max_terms}"
        return f"Coloring(by={self._by!r}, num_colors={self.num_colors}{more})"


def _as_colors(which: str, colors: Any, size: int, expected: bool) -> Indices | None:
    if isinstance(colors, Tensor):
        colors = colors.detach().cpu().numpy()
    if (colors is not None) != expected:
        what = f"a colour for each of {size}" if expected else "None"
        raise PatternError(f"Coloring({which}): expected {what}, got {colors!r}.")
    if colors is None:
        return None
    array = np.array(colors)
    fits = array.shape == (size,) and (array.dtype.kind in "iu" or not size)
    if not fits or array.min(initial=0) < -1:
        raise PatternError(
            f"Coloring({which}): expected {size} integers from -1, got {array.dtype} of shape "
            f"{array.shape}."
        )
    return array.astype(np.int64)


def check_terms(call: str, by: str, max_terms: object) -> None:
    """Refuse what is no number of products, or not for this kind of colouring."""
    where = f"{call}(max_terms={max_terms!r})"
    if isinstance(max_terms, bool) or not isinstance(max_terms, int):
        raise OptionTypeError(f"{where}: expected an int.")
    if max_terms < 1:
        raise OptionError(f"{where}: expected 1 or more.")
    if max_terms > 1 and by != "symmetric":
        raise OptionError(
            f"{where}: only the entries of a symmetric matrix are put together from several products. Take "
            f"by='symmetric', or max_terms=1."
        )


def _number(colors: Indices | None) -> int:
    return 0 if colors is None else int(colors.max(initial=-1)) + 1


def words(choices: tuple[str, ...]) -> str:
    """The choices as a message lists them."""
    return ", ".join(map(repr, choices))
