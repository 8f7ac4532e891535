"""`color` and `Coloring`: which columns and rows share a pass, and where each entry is read."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchjac.errors import OptionError, OptionTypeError, PatternError
from torchjac.structure.bidirectional import color_both, fewest_both
from torchjac.structure.greedy import color_columns, fewest_columns
from torchjac.structure.neutral import alone_in_group
from torchjac.structure.pattern import Indices, SparsityPattern
from torchjac.structure.star import color_symmetric

__all__ = ["By", "Coloring", "color"]

By: TypeAlias = Literal["columns", "rows", "symmetric", "bidirectional"]
_CHOICES = ("columns", "rows", "symmetric", "bidirectional", "auto")


class Coloring:
    """Which columns and rows of a sparse matrix share a pass, and how each entry is recovered.

    With the products ``C[c] = J @ s`` for the columns of colour c (s is 1 there and 0 elsewhere) and
    ``R[c] = s @ J`` for the rows of colour c, entry k of the pattern, in its row-major order, is
    ``C[group[k], position[k]]`` where ``from_columns[k]``, and ``R[group[k], position[k]]`` elsewhere.
    `color` makes one; made by hand it is believed, until `torchjac.structure.validate.check_coloring`.

    Args:
        pattern: what is coloured.
        by: ``"columns"``, ``"rows"``, ``"symmetric"`` or ``"bidirectional"``.
        column_colors: of each column, from 0, or -1 for one that takes part in no pass; None where there
            are no passes over columns.
        row_colors: likewise of each row.

    Raises:
        OptionError: ``by`` is not one of those.
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
    ) -> None:
        if by not in _CHOICES[:-1]:
            raise OptionError(f"Coloring(by={by!r}): expected one of {_words(_CHOICES[:-1])}.")
        m, n = pattern.shape
        self._pattern, self._by = pattern, by
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
        """The colour of each column, int64 ``(n,)``, or None; -1 takes part in no pass."""
        return None if self._columns is None else torch.from_numpy(self._columns)

    @property
    def row_colors(self) -> Tensor | None:
        """The colour of each row, int64 ``(m,)``, or None; -1 takes part in no pass."""
        return None if self._rows is None else torch.from_numpy(self._rows)

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
            return torch.from_numpy(chosen)
        rows = np.where(self._rows < 0, -1, self._rows + self.num_column_colors)
        return torch.from_numpy(np.concatenate([self._columns, rows]))

    @property
    def from_columns(self) -> Tensor:
        """Of each entry, whether it is read off a product with columns; bool ``(nnz,)``."""
        return torch.from_numpy(self.recovery[0])

    @property
    def group(self) -> Tensor:
        """Of each entry, the colour whose product it is read off; int64 ``(nnz,)``."""
        return torch.from_numpy(self.recovery[1])

    @property
    def position(self) -> Tensor:
        """Of each entry, where in that product it is: a row of J·s, or a column of s·J."""
        return torch.from_numpy(self.recovery[2])

    @functools.cached_property
    def recovery(self) -> tuple[npt.NDArray[np.bool_], Indices, Indices]:
        """`from_columns`, `group` and `position` as NumPy arrays."""
        rows, cols = self._pattern.coo
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

    def __repr__(self) -> str:
        both = ""
        if self._by == "bidirectional":
            both = f" ({self.num_column_colors} of columns, {self.num_row_colors} of rows)"
        return f"Coloring(by={self._by!r}, num_colors={self.num_colors}{both})"


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


def _number(colors: Indices | None) -> int:
    return 0 if colors is None else int(colors.max(initial=-1)) + 1


def color(
    pattern: SparsityPattern,
    by: Literal["columns", "rows", "symmetric", "bidirectional", "auto"] = "auto",
    *,
    row_cost: float = 1.0,
    column_cost: float = 1.0,
) -> Coloring:
    """Find which columns or rows of a sparse Jacobian can share a pass, so that there are few passes.

    The answer depends on the arguments alone: the same pattern is coloured the same every time.
    Fewest colours are out of reach in general, so this is a heuristic with a bounded effort; a band, a
    five-point stencil or an arrow-head get the fewest there are.

    Args:
        pattern: where the nonzeros are.
        by: ``"columns"`` for forward mode: no two columns of one colour share a row. ``"rows"`` for
            reverse mode. ``"bidirectional"`` for some passes of either. ``"symmetric"`` for a Hessian,
            where an entry may also be read in its mirror place. ``"auto"`` takes the cheapest of
            columns, rows and both, the simpler one at a tie.
        row_cost: the cost of a pass over rows, a VJP.
        column_cost: the cost of a pass over columns, a JVP.

    Returns:
        A `Coloring`.

    Raises:
        OptionError, OptionTypeError: ``by`` or a cost is not one of those allowed, or ``pattern`` is
            no pattern.
        PatternError: ``by="symmetric"`` and the pattern is not symmetric.

    Example:
        >>> import torch, torchjac
        >>> arrow = torch.eye(50)
        >>> arrow[0] = arrow[:, 0] = 1
        >>> pattern = torchjac.SparsityPattern.from_dense(arrow)
        >>> torchjac.color(pattern, by="columns").num_colors
        50
        >>> torchjac.color(pattern)
        Coloring(by='bidirectional', num_colors=3 (2 of columns, 1 of rows))
        >>> torchjac.color(pattern, by="symmetric").num_colors
        2

    Source:
        Curtis, Powell & Reid (1974); Coleman & Moré (1983, 1984); Gebremedhin, Manne & Pothen, *What
        Color Is Your Jacobian?* (2005); Montoison, Dalle & Gebremedhin (2025) on both directions.
    """
    _check_options(pattern, by, {"row_cost": row_cost, "column_cost": column_cost})
    if by == "symmetric":
        _check_symmetric(pattern)
        return Coloring(pattern, by, color_symmetric(pattern))
    if by == "columns":
        return Coloring(pattern, by, color_columns(pattern))
    if by == "rows":
        return Coloring(pattern, by, None, color_columns(pattern.T))
    if by == "auto":
        return _cheapest(pattern, row_cost, column_cost)
    return _bidirectional(pattern, row_cost, column_cost)


def _bidirectional(pattern: SparsityPattern, row_cost: float, column_cost: float) -> Coloring:
    """Both, or one alone where that costs less; the other one is neutral then."""
    m, n = pattern.shape
    alone = _one_sided(pattern, row_cost, column_cost)
    cost = alone.num_column_colors * column_cost + alone.num_row_colors * row_cost
    both = color_both(pattern, row_cost, column_cost, below=cost)
    columns, rows = both or (alone._columns, alone._rows)
    none = np.full(n if columns is None else m, -1)
    return Coloring(
        pattern,
        "bidirectional",
        none if columns is None else columns,
        none if rows is None else rows,
    )


def _cheapest(pattern: SparsityPattern, row_cost: float, column_cost: float) -> Coloring:
    alone = _one_sided(pattern, row_cost, column_cost)
    cost = alone.num_column_colors * column_cost + alone.num_row_colors * row_cost
    if cost <= fewest_both(pattern, row_cost, column_cost):
        return alone
    both = color_both(pattern, row_cost, column_cost, below=cost)
    return alone if both is None else Coloring(pattern, "bidirectional", *both)


def _one_sided(pattern: SparsityPattern, row_cost: float, column_cost: float) -> Coloring:
    """Columns or rows; the side with the lower bound first, which may make the other one needless."""
    transposed = pattern.T
    bounds = {
        "columns": column_cost * fewest_columns(pattern),
        "rows": row_cost * fewest_columns(transposed),
    }
    best, least = None, math.inf
    for by in sorted(bounds, key=bounds.__getitem__):
        if bounds[by] >= least:
            break
        if best is not None and pattern.is_symmetric and row_cost == column_cost:
            break  # the other side is the same again
        if by == "columns":
            coloring = Coloring(pattern, "columns", color_columns(pattern))
            cost = column_cost * coloring.num_colors
        else:
            coloring = Coloring(pattern, "rows", None, color_columns(transposed))
            cost = row_cost * coloring.num_colors
        if cost < least or (cost == least and by == "columns"):
            best, least = coloring, cost
    assert best is not None
    return best


def _check_options(pattern: object, by: object, costs: dict[str, Any]) -> None:
    if not isinstance(pattern, SparsityPattern):
        raise OptionTypeError(
            f"color(pattern): expected a SparsityPattern, got {type(pattern).__name__}. "
            f"SparsityPattern.from_dense and from_scipy make one of a matrix."
        )
    if by not in _CHOICES:
        raise OptionError(f"color(by={by!r}): expected one of {_words(_CHOICES)}.")
    for name, cost in costs.items():
        if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 < cost < math.inf:
            raise OptionError(f"color({name}={cost!r}): expected a positive number.")


def _words(choices: tuple[str, ...]) -> str:
    return ", ".join(map(repr, choices))


def _check_symmetric(pattern: SparsityPattern) -> None:
    m, n = pattern.shape
    if m != n:
        raise PatternError(
            f"color(by='symmetric'): expected a square pattern, got {m}×{n}. Take by='columns' or 'rows'."
        )
    if not pattern.is_symmetric:
        mirrored = pattern.T
        rows, cols = pattern.coo
        alone = ~np.isin(pattern._keys, mirrored._keys, assume_unique=True)
        i, j = rows[alone][0], cols[alone][0]
        raise PatternError(
            f"color(by='symmetric'): expected a symmetric pattern, got an entry ({i}, {j}) and none at "
            f"({j}, {i}). Give pattern | pattern.T, or take by='columns' or 'rows'."
        )
