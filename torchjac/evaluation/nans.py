"""Entries that are nan, held against plain passes row by row and column by column.

Where there is no derivative, what is not finite goes along rows in one mode, and along columns in the
other, so that a product with a random seed says nothing of a single entry. A nan is right where plain
autograd has one too: in the backward pass of its row, or in the forward pass of its column.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.engines import FlatFunction, Graph
from torchjac.evaluation.probes import Leaves, as_matrices, plain_forward
from torchjac.structure.blocks import SparseBlock

__all__ = ["has_stray_nan"]


def has_stray_nan(function: FlatFunction, graph: Graph, leaves: Leaves, *, batched: bool) -> bool:
    """Whether a Jacobian is nan where no plain pass is.

    It costs a backward pass for each row that has a nan, and a forward pass for each column with one
    that these do not account for.

    Args:
        function: what the leaves are the Jacobian of.
        graph: the same, recorded by plain autograd; it is kept for further passes.
        leaves: the Jacobian, ``leaves[output][input]``.
        batched: whether its leaves are ``(B, *out, *in)``.
    """

    @functools.cache
    def backward(output: int, row: int) -> Sequence[Tensor | None]:
        return graph.multiply({output: _unit(graph.values[output], row)}, last=False)

    @functools.cache
    def forward(primal: int, column: int) -> Sequence[Tensor]:
        primals = [leaf.detach() for leaf in graph.primals]
        directions = [torch.zeros_like(leaf) for leaf in primals]
        directions[primal] = _unit(primals[primal], column)
        found = plain_forward(function, primals, directions)
        return found[1] if found else [torch.zeros_like(value) for value in graph.values]

    for output, of_inputs in enumerate(leaves):
        for primal, leaf in enumerate(of_inputs):
            rows, columns = _nans(leaf, graph.values[output], graph.primals[primal], batched)
            for row in rows.unique().tolist():
                left, pulled = columns[rows == row], backward(output, row)[primal]
                if pulled is not None:
                    left = left[~_is_nan(pulled)[left]]
                if not all(_is_nan(forward(primal, to)[output])[row] for to in left.tolist()):
                    return True
    return False


def _nans(
    leaf: Tensor | SparseBlock, output: Tensor, primal: Tensor, batched: bool
) -> tuple[Tensor, Tensor]:
    """Where in the flat output and in the flat input."""
    if isinstance(leaf, SparseBlock):
        at = _is_nan(leaf.values)
        return leaf.where.rows[at], leaf.where.cols[at]
    matrices = as_matrices(leaf, output, primal, batched)
    _, m, n = matrices.shape
    sample, row, column = matrices.isnan().nonzero(as_tuple=True)
    return sample * m + row, sample * n + column


def _is_nan(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).isnan()


def _unit(like: Tensor, at: int) -> Tensor:
    vector = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
    vector[at] = 1
    return vector.reshape(like.shape)
