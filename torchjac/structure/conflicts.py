"""Colours for what a diagonal needs: fewer than for all entries of the matrix.

With the seed v of a colour (1 in its columns, 0 elsewhere) v·(A·v) is the sum of A[i, i] over the colour
and of A[i, j] over its pairs. So two columns may share a colour as soon as they have no entry in each
other's rows, whatever they have in third ones: an ordinary colouring of the graph of A, where the recovery
of all entries needs one of distance 2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchjac.structure.greedy import color_columns
from torchjac.structure.pattern import SparsityPattern

__all__ = ["color_diagonal", "color_together"]


def color_diagonal(pattern: SparsityPattern) -> Tensor:
    """Colour the columns of a square matrix for its diagonal: one colour, no entry between two of it.

    Args:
        pattern: of the matrix.

    Returns:
        int64 ``(n,)``, from 0; -1 for a column whose diagonal entry is zero.

    Example:
        >>> import torch
        >>> tridiagonal = torch.ones(6, 6).tril(1).triu(-1)
        >>> color_diagonal(SparsityPattern.from_dense(tridiagonal))
        tensor([0, 1, 0, 1, 0, 1])
    """
    (rows, cols), n = pattern.coo, pattern.shape[1]
    counts = np.zeros(n, dtype=bool)
    counts[rows[rows == cols]] = True
    edge = (rows != cols) & counts[rows] & counts[cols]
    lower, upper = np.minimum(rows[edge], cols[edge]), np.maximum(rows[edge], cols[edge])
    keys = np.unique(lower * n + upper)
    # A row for every edge: its two columns must differ.
    ends = np.stack([keys // max(n, 1), keys % max(n, 1)], axis=1).reshape(-1)
    edges = SparsityPattern(np.arange(len(keys)).repeat(2), ends, (len(keys), n))
    colors = color_columns(edges) if len(keys) else np.full(n, -1)
    return torch.from_numpy(np.where(counts, np.maximum(colors, 0), -1).astype(np.int64))


def color_together(pattern: SparsityPattern) -> Tensor:
    """Colour the inputs of a function by the pattern of its Jacobian, for Laplacians of all outputs.

    Two inputs that no output depends on both of have no second derivative in common.

    Args:
        pattern: ``(m, n)``, of the Jacobian.

    Returns:
        int64 ``(n,)``, from 0; -1 for an input that nothing depends on.
    """
    return torch.from_numpy(np.asarray(color_columns(pattern), dtype=np.int64))
