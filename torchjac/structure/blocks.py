"""One block of a sparse Jacobian: the derivative of one output leaf by one input leaf, entry by entry."""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchjac.foundations.lending import lendable, lent

__all__ = ["LAYOUTS", "BlockIndex", "SparseBlock"]

# Before torch 2.1 that is said afterwards.
_COALESCED: dict[str, Any] = {"is_coalesced": True} if hasattr(torch, "compiler") else {}

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

LAYOUTS = (torch.strided, torch.sparse_coo, torch.sparse_csr)


class BlockIndex:
    """Where the entries of a block lie: fixed once for a pattern, and shared by all calls.

    Args:
        rows: of each entry, the position in the flattened output leaf; in row-major order.
        cols: likewise in the flattened input leaf.
        output: the shape of the output leaf.
        primal: the shape of the input leaf.
        device: where the indices are wanted.
    """

    def __init__(
        self,
        rows: np.ndarray,
        cols: np.ndarray,
        output: torch.Size,
        primal: torch.Size,
        device: torch.device,
    ) -> None:
        self.output, self.primal = output, primal
        self.shape = output + primal
        """The shape of the leaf, ``(*out, *in)``."""
        self._rows, self._cols, self._device = rows, cols, device

    def prepare(self, layout: torch.layout) -> None:
        """Make the indices that a block of ``layout`` needs."""
        if layout is torch.strided:
            _ = self.flat
        elif layout is torch.sparse_csr:
            _ = self.row_starts, self.cols
        else:
            _ = self.coordinates

    def _tensor(self, indices: np.ndarray) -> Tensor:
        # From NumPy, so that the tensor belongs to no transform of torch.func that may be active; and
        # copied, because only memory of PyTorch's own can be lent.
        return lendable(torch.from_numpy(np.ascontiguousarray(indices)).clone().to(self._device))

    @functools.cached_property
    def rows(self) -> Tensor:
        """Of each entry, the position in the flattened output leaf."""
        return self._tensor(self._rows)

    @functools.cached_property
    def cols(self) -> Tensor:
        """Of each entry, the position in the flattened input leaf."""
        return self._tensor(self._cols)

    @functools.cached_property
    def flat(self) -> Tensor:
        """The position of every entry in the flattened dense block."""
        return self._tensor(self._rows * self.primal.numel() + self._cols)

    @functools.cached_property
    def coordinates(self) -> Tensor:
        """(nnz,) -> (out.dim + in.dim, nnz): the indices of a COO tensor."""
        parts = [*_unravel(self._rows, self.output), *_unravel(self._cols, self.primal)]
        return self._tensor(np.stack(parts) if parts else np.zeros((0, len(self._rows)), np.int64))

    @functools.cached_property
    def row_starts(self) -> Tensor:
        """Where each row of the block begins: ``crow_indices`` of a CSR tensor."""
        counts = np.bincount(self._rows, minlength=self.output.numel())
        return self._tensor(np.concatenate([[0], np.cumsum(counts)]))


def _unravel(flat: np.ndarray, shape: torch.Size) -> list[np.ndarray]:
    parts = []
    for size in reversed(shape):
        parts.append(flat % size)
        flat = flat // size
    return parts[::-1]


@functools.cache
def _announce_csr() -> None:
    """Let PyTorch say once that its CSR tensors are new, and say it to nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1, device="cpu").to_sparse_csr()


class SparseBlock(NamedTuple):
    """The entries of a block and where they lie."""

    where: BlockIndex
    values: Tensor
    """``(nnz,)``; may carry a graph, or a batch dimension of vmap."""

    def laid_out(self, layout: torch.layout) -> Tensor:
        """The block as a tensor: ``(*out, *in)``, strided or COO, or a CSR matrix.

        A CSR tensor is a matrix, so its block is that of the flattened leaves. What is handed out may be
        written into, its indices too; these take more memory than the values, so they are lent.
        """
        where, values = self.where, self.values
        rows, columns = where.output.numel(), where.primal.numel()
        if layout is torch.strided:
            # (nnz,) -> (out.numel * in.numel,) -> (*out, *in)
            dense = values.new_zeros(rows * columns)
            if _is_wrapped(values):  # vmap has no rule for the variant in place
                dense = dense.index_copy(0, where.flat, values)
            else:
                dense.index_copy_(0, where.flat, values)
            return dense.reshape(where.shape)
        if layout is torch.sparse_csr:
            _announce_csr()
            return torch.sparse_csr_tensor(
                lent(where.row_starts),
                lent(where.cols),
                values,
                (rows, columns),
                device=values.device,
                check_invariants=False,
            )
        found = torch.sparse_coo_tensor(
            lent(where.coordinates),
            values,
            where.shape,
            device=values.device,
            check_invariants=False,
            **_COALESCED,
        )
        # The old way of saying so has no derivative.
        return found if _COALESCED or values.requires_grad else found._coalesced_(True)

    def times(self, tangent: Tensor) -> Tensor:
        """J·v for a flat ``v``."""
        start = self.values.new_zeros(self.where.output.numel())
        return start.index_add(0, self.where.rows, self.values * tangent[self.where.cols])

    def transposed_times(self, cotangent: Tensor) -> Tensor:
        """uᵀ·J for a flat ``u``."""
        start = self.values.new_zeros(self.where.primal.numel())
        return start.index_add(0, self.where.cols, self.values * cotangent[self.where.rows])
