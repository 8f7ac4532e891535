"""From a few products back to the entries of a sparse Jacobian: one gather, or none.

Every entry stands alone in some product: that is what a colouring is for. So reading the Jacobian off
its products is a selection with indices that are fixed once; nothing is solved or searched in a call.
Where a colouring allows several terms, a second gather brings what has to be added or subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchjac.foundations.layout import Layout
from torchjac.foundations.lending import is_plain
from torchjac.structure.blocks import BlockIndex, SparseBlock
from torchjac.structure.coloring import Coloring

__all__ = ["Recovery"]

_MANY = 2**17  # entries; measured


class _Places:
    """Where in the flat products each entry is read.

    PyTorch selects the elements of a vector in one thread, but gathers the rows of a matrix in several. So
    many entries are read as rows, one for each thread, the last of them padded.
    """

    def __init__(self, places: np.ndarray, device: torch.device) -> None:
        self.device, self._count = device, len(places)
        self._is_many = device.type == "cpu" and len(places) > _MANY
        rows = torch.get_num_threads() if self._is_many else 1
        padded = np.pad(places, (0, -len(places) % rows)).astype(np.int64)
        flat = torch.from_numpy(padded).to(device)
        self._rows, self._flat = flat.view(rows, -1), flat[: self._count]

    def read(self, flat: Tensor) -> Tensor:
        """The entries of one stack of products ``(k * total,)``."""
        if not self._is_many or not is_plain(flat) or flat.requires_grad:
            return flat.index_select(0, self._flat)
        entries = flat.expand(len(self._rows), -1).gather(1, self._rows)
        return entries.view(-1)[: self._count]


class Recovery:
    """How the blocks of one joint pattern are read off the products with the seeds of a colouring.

    The rows of the pattern run over the elements of all output leaves, its columns over those of all
    input leaves. The seeds of column colours give a product ``(k, *out)`` with each output leaf, those
    of row colours a product ``(k, *in)`` with each input leaf.

    Args:
        coloring: of the joint pattern.
        outputs: the leaves that the rows run over.
        primals: the leaves that the columns run over.
    """

    def __init__(self, coloring: Coloring, outputs: Layout, primals: Layout) -> None:
        self.coloring, self.outputs, self.primals = coloring, outputs, primals
        pattern, device = coloring.pattern, primals.kinds[0][2]
        m, n = pattern.shape
        from_columns, group, position = coloring.recovery
        places = np.where(
            from_columns,
            group * m + position,
            coloring.num_column_colors * m + group * n + position,
        )
        rows, cols = pattern.coo
        out, row = _in_leaves(rows, outputs.counts)
        into, col = _in_leaves(cols, primals.counts)
        block = out * len(primals.counts) + into
        # The entries of a block one after another, still row-major within it.
        order = np.argsort(block, kind="stable")
        places = places[order]
        made = coloring.num_column_colors * m + coloring.num_row_colors * n
        # Of a diagonal, say, the products are the entries.
        self._is_all = len(places) == made and bool((np.diff(places, prepend=-1) == 1).all())
        self._places = _Places(places, device)
        self._corrections = _corrections(coloring, order, device)
        sizes = np.bincount(block, minlength=len(outputs.counts) * len(primals.counts))
        self._sizes: list[int] = sizes.tolist()
        parts = np.split(order, np.cumsum(sizes)[:-1])
        self._indices = [
            BlockIndex(row[part], col[part], output[0], primal[0], primal[2])
            for part, (output, primal) in zip(
                parts, [(o, p) for o in outputs.kinds for p in primals.kinds], strict=True
            )
        ]

    def fits(self, outputs: Sequence[Tensor], primals: Sequence[Tensor]) -> bool:
        """Whether it was made for leaves like these."""
        return self.outputs.fits(outputs) and self.primals.fits(primals)

    def prepare(self, layout: torch.layout) -> None:
        """Make the indices that results of ``layout`` need."""
        for index in self._indices:
            index.prepare(layout)

    def blocks(
        self, by_columns: Sequence[Tensor], by_rows: Sequence[Tensor]
    ) -> list[list[SparseBlock]]:
        """Read the blocks ``[output][input]`` off the products.

        Args:
            by_columns: for every output leaf ``(k, *out)``; nothing where no column has a colour.
            by_rows: for every input leaf ``(k, *in)``; nothing where no row has a colour.
        """
        # (k, *leaf) -> (k, leaf.numel), the leaves side by side -> (k * total,), columns before rows
        flat = _side_by_side(by_columns or by_rows)
        if by_columns and by_rows:
            device = self._places.device
            flat = torch.cat([flat.to(device), _side_by_side(by_rows).to(device)])
        # An expanded product is written out: what is handed out has an element for every entry.
        whole = flat.contiguous() if self._is_all else self._places.read(flat)
        if self._corrections is not None:
            entry, place, sign = self._corrections
            whole = whole.index_add(0, entry, flat.index_select(0, place) * sign)
        entries = iter(whole.split(self._sizes) if len(self._sizes) > 1 else (whole,))
        indices, rows = iter(self._indices), []
        for _ in self.outputs.counts:
            row = []
            for _, dtype, device in self.primals.kinds:
                row.append(SparseBlock(next(indices), next(entries).to(device, dtype)))
            rows.append(row)
        return rows


def _corrections(
    coloring: Coloring, order: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What is added to which of the entries in ``order``, from where in the products; None for nothing."""
    entry, group, position, sign = coloring.corrections
    if not len(entry):
        return None
    rank = torch.from_numpy(np.argsort(order))
    places = group * coloring.pattern.shape[0] + position
    return rank[entry].to(device), places.to(device), sign.to(torch.int8).to(device)


def _in_leaves(positions: np.ndarray, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The leaf that each position of the flat space lies in, and where in it."""
    if len(counts) == 1:
        return np.zeros_like(positions), positions
    ends = np.cumsum(counts)
    leaf = np.searchsorted(ends, positions, side="right")
    return leaf, positions - (ends - np.asarray(counts))[leaf]


def _side_by_side(products: Sequence[Tensor]) -> Tensor:
    if len(products) == 1:
        return products[0].reshape(-1)
    flat = [product.reshape(product.shape[0], product.shape[1:].numel()) for product in products]
    return torch.cat([f.to(flat[0].device) for f in flat], 1).reshape(-1)
