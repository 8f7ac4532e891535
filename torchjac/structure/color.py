"""`color`: the fewest passes that a heuristic with a bounded effort finds for a pattern."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from torchjac.errors import OptionError, OptionTypeError, PatternError
from torchjac.structure.acyclic import color_acyclic
from torchjac.structure.bidirectional import color_both, fewest_both
from torchjac.structure.coloring import CHOICES, Coloring, check_terms, words
from torchjac.structure.greedy import color_columns, fewest_columns
from torchjac.structure.pattern import SparsityPattern
from torchjac.structure.star import color_symmetric

__all__ = ["color"]


def color(
    pattern: SparsityPattern,
    by: Literal["columns", "rows", "symmetric", "bidirectional", "auto"] = "auto",
    *,
    row_cost: float = 1.0,
    column_cost: float = 1.0,
    max_terms: int = 1,
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
        max_terms: with ``by="symmetric"``, the number of products that an entry may be put together from, by
            sums and differences. 1 reads each off one product, to its last digit. With 4, say, an irregular
            pattern takes about half as many colours, and an entry is as exact as the largest of those
            that are subtracted: small ones beside much larger ones lose digits.

    Returns:
        A `Coloring`.

    Raises:
        OptionError, OptionTypeError: ``by``, a cost or ``max_terms`` is not one of those allowed, or
            ``pattern`` is no pattern.
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
        Color Is Your Jacobian?* (2005); Montoison, Dalle & Gebremedhin (2025) on both directions;
        Coleman & Cai (1986) and Gebremedhin, Tarafdar, Manne & Pothen (2007) on several terms.
    """
    _check_options(pattern, by, {"row_cost": row_cost, "column_cost": column_cost})
    check_terms("color", by, max_terms)
    if by == "symmetric":
        _check_symmetric(pattern)
        return _symmetric(pattern, max_terms)
    if by == "columns":
        return Coloring(pattern, by, color_columns(pattern))
    if by == "rows":
        return Coloring(pattern, by, None, color_columns(pattern.T))
    if by == "auto":
        return _cheapest(pattern, row_cost, column_cost)
    return _bidirectional(pattern, row_cost, column_cost)


def _symmetric(pattern: SparsityPattern, max_terms: int) -> Coloring:
    """A star colouring, or an acyclic one if that is allowed and has fewer colours."""
    direct = Coloring(pattern, "symmetric", color_symmetric(pattern))
    if max_terms == 1 or direct.num_colors < 3:
        return direct
    colors = color_acyclic(pattern, max_terms)
    substituted = Coloring(pattern, "symmetric", colors, max_terms=max_terms)
    return substituted if substituted.num_colors < direct.num_colors else direct


def _bidirectional(pattern: SparsityPattern, row_cost: float, column_cost: float) -> Coloring:
    """Both, or one alone where that costs less; the other one is neutral then."""
    m, n = pattern.shape
    alone = _one_sided(pattern, row_cost, column_cost)
    cost = alone.num_column_colors * column_cost + alone.num_row_colors * row_cost
    both = color_both(pattern, row_cost, column_cost, below=cost)
    columns, rows = both or (alone.column_indices, alone.row_indices)
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
    if by not in (*CHOICES, "auto"):
        raise OptionError(f"color(by={by!r}): expected one of {words((*CHOICES, 'auto'))}.")
    for name, cost in costs.items():
        if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 < cost < math.inf:
            raise OptionError(f"color({name}={cost!r}): expected a positive number.")


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
