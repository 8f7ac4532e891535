"""The parts of a pattern that have nothing to do with each other: independent samples, for one."""

from __future__ import annotations

import numpy as np

from torchjac.structure.pattern import SparsityPattern

__all__ = ["count_components"]


def count_components(pattern: SparsityPattern) -> int:
    """How many parts have no row and no column in common; empty rows and columns are none.

    Example:
        >>> import torch
        >>> count_components(SparsityPattern.from_dense(torch.eye(3)))
        3
    """
    import scipy.sparse
    from scipy.sparse import csgraph

    (rows, cols), (m, n) = pattern.coo, pattern.shape
    graph = scipy.sparse.coo_array(
        (np.ones(len(rows), bool), (rows, cols + m)), shape=(m + n, m + n)
    )
    _, part = csgraph.connected_components(graph, directed=False)
    return len(np.unique(part[rows]))
