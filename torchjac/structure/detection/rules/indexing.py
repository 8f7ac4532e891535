"""Reading and writing at indices, known or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from torchjac.structure.detection.index_sets import IndexSets, Rows
from torchjac.structure.detection.registry import Operation, Result, rule
from torchjac.structure.detection.rules.elementwise import broadcast, broadcast_rows, union
from torchjac.structure.detection.rules.reductions import grouped, labels_along, pairs

__all__ = ["deposited", "known_indices"]

Read = Callable[[Tensor, Any], Tensor]
"""How an op reads from a tensor at indices."""


def known_indices(op: Operation, indices: Any) -> Any:
    """The indices with their values, or None where one of them is not known."""
    listed = indices if isinstance(indices, (list, tuple)) else [indices]
    found = [None if index is None else op.known(index) for index in listed]
    if any(f is None and i is not None for f, i in zip(found, listed, strict=True)):
        return None
    for index in listed:
        op.rely_on(index)
    return found if isinstance(indices, (list, tuple)) else found[0]


def _anywhere(indices: Any) -> Any:
    """Valid indices of the same shapes."""
    if isinstance(indices, (list, tuple)):
        return [None if index is None else _anywhere(index) for index in indices]
    return torch.zeros(tuple(indices.shape), dtype=torch.int64)


def _places(
    op: Operation, shape: Sequence[int], indices: Any, dims: Sequence[int], read: Read
) -> tuple[Rows, Rows | None]:
    """Which element each index means, and how far that is known.

    Returns:
        The place of each element that is read, and None; or, where the indices are not known, the group
        along ``dims`` that it lies in, and the group of every element of the tensor.
    """
    known = known_indices(op, indices)
    groups = None
    if known is None:
        groups, _ = labels_along(shape, dims)
    numbers = np.arange(int(np.prod(shape, dtype=np.int64))) if groups is None else groups
    positions = torch.from_numpy(np.array(numbers)).reshape(tuple(shape))  # broadcast ones too
    at = read(positions, _anywhere(indices) if known is None else known)
    return at.reshape(-1).numpy(), groups


def _read(
    op: Operation, tensor: Tensor, indices: Any, dims: Sequence[int], read: Read
) -> IndexSets | None:
    """The elements that are read; of unknown indices the union along the dimensions they range over."""
    sets = op.sets(tensor)
    if sets is None or not tensor.numel():
        return None
    places, groups = _places(op, tensor.shape, indices, dims, read)
    if groups is not None:
        sets = grouped(sets, groups, int(groups.max()) + 1)
    return sets.gather(places)


def deposited(
    op: Operation,
    base: Tensor,
    source: IndexSets | None,
    indices: Any,
    dims: Sequence[int],
    read: Read,
    *,
    keeps: bool,
) -> IndexSets | None:
    """``base`` after ``source``, one row for each element that ``read`` would read, was put there.

    Args:
        op: the operation.
        base: what is written into.
        source: what is written; None for what does not depend on the seeds.
        indices: where to.
        dims: the dimensions that the indices range over.
        read: reads what is written.
        keeps: whether the old values go into the result, as in sums.
    """
    old = op.sets(base)
    if not base.numel():
        return None
    places, groups = _places(op, base.shape, indices, dims, read)
    if old is not None and not keeps and groups is None:
        mask = np.ones(len(old), bool)
        mask[places] = False
        old = old.keep(mask)
    new = None
    if source is not None:
        count = base.numel() if groups is None else int(groups.max()) + 1
        new = source.merge(pairs(places, np.arange(len(places)), (count, len(places))))
        new = new.gather(groups)
    return union([old, new])


def _indexed(tensor: Tensor, indices: Sequence[Any]) -> list[int]:
    """The dimensions that a list of indices, with None for whole ones, ranges over."""
    dims: list[int] = []
    at = 0
    for index in indices:
        width = index.dim() if index is not None and index.dtype is torch.bool else 1
        if index is not None:
            dims += range(at, at + width)
        at += width
    return [d for d in dims if d < tensor.dim()]


def _at(tensor: Tensor, indices: Any) -> Tensor:
    return torch.ops.aten.index.Tensor(tensor, indices)  # type: ignore[no-any-return]


@rule("index", "_unsafe_index")
def index(op: Operation) -> Result:
    """What stands there; where an index is not known, all that could.

    ``[{0}, {1}, {2}][[2, 0]] = [{2}, {0}]``
    """
    tensor, indices = op["self"], op["indices"]
    return _read(op, tensor, indices, _indexed(tensor, indices), _at)


@rule("index_select", "gather", "take", "embedding")
def read_along(op: Operation) -> Result:
    """The same along one dimension.

    ``gather([{0}, {1}], 0, [1, 1]) = [{1}, {1}]``
    """
    name = op.func._schema.name
    if name == "aten::take":
        tensor, indices = op["self"], op["index"]
        return _read(op, tensor, indices, range(tensor.dim()), torch.take)
    if name == "aten::embedding":
        # (*indices) and (rows, width) -> (*indices, width)
        return _read(op, op["weight"], op["indices"], [0], lambda table, at: table[at])
    dim = op["dim"] % max(op["self"].dim(), 1)
    if name == "aten::gather" and dim == op["self"].dim() - 1:
        windows = op.windows(op["index"])
        if windows is not None and windows.columns == op["self"].shape[-1]:
            return _within(op, windows)
    read = torch.gather if name == "aten::gather" else torch.index_select
    return _read(op, op["self"], op["index"], [dim], lambda table, at: read(table, dim, at))


def _within(op: Operation, windows: IndexSets) -> IndexSets | None:
    """Gather along the last dimension, at indices that point into windows of it."""
    tensor, index = op["self"], op["index"]
    sets = op.sets(tensor)
    if sets is None or tensor.shape[:-1] != index.shape[:-1]:
        raise NotImplementedError
    # Plane p of the index reads from plane p of the tensor.
    groups = windows.matrix.copy()
    planes = np.repeat(np.arange(len(sets) // tensor.shape[-1]), index.shape[-1])
    moved = groups.indices + np.repeat(planes * tensor.shape[-1], np.diff(groups.indptr))
    return sets.merge(
        sparse.csr_matrix((groups.data, moved, groups.indptr), shape=(len(windows), len(sets)))
    )


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(op: Operation) -> Result:
    """The values where they were put, the old elements elsewhere; in a sum both.

    ``index_put([{0}, {1}], [[1]], [{2}]) = [{0}, {2}]``
    """
    tensor, indices, values = op["self"], list(op["indices"]), op["values"]
    dims = _indexed(tensor, indices)
    source = op.sets(values)
    if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        # A mask that is not known: the values may land anywhere, or nowhere.
        count = np.zeros(tensor.numel(), np.int64)
        return union([op.sets(tensor), None if source is None else source.support().gather(count)])
    if source is not None:
        blank = torch.zeros(tuple(tensor.shape), dtype=torch.bool)
        known = known_indices(op, indices)
        shape = _at(blank, _anywhere(indices) if known is None else known).shape
        source = source.gather(broadcast_rows(values.shape, shape))
    return deposited(op, tensor, source, indices, dims, _at, keeps=bool(op["accumulate"]))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(op: Operation) -> Result:
    """The source at its indices along ``dim``; what is reduced keeps the old elements as well.

    ``scatter_add([{0}, {1}], 0, [1, 1], [{2}, {3}]) = [{0}, {1, 2, 3}]``
    """
    tensor, indices = op["self"], op["index"]
    given: Any = op.arguments.get("src", op.arguments.get("value"))
    source = op.sets(given)
    if not indices.numel():
        return op.sets(tensor)
    if source is not None and given.dim() == 0:
        source = source.gather(np.zeros(indices.numel(), np.int64))
    elif source is not None:
        # The leading part of the source that has the shape of the indices.
        rows = np.arange(len(source)).reshape(given.shape)
        source = source.gather(rows[tuple(map(slice, indices.shape))].reshape(-1))
    name, reduced = op.func._schema.name, op.arguments.get("reduce")
    keeps = name.startswith("aten::scatter_add") or (
        op.arguments.get("include_self", True) if reduced is not None else False
    )
    return _scattered(op, tensor, source, indices, bool(keeps))


def _scattered(
    op: Operation, tensor: Tensor, source: IndexSets | None, indices: Tensor, keeps: bool
) -> IndexSets | None:
    dim = op["dim"] % max(tensor.dim(), 1)

    def read(positions: Tensor, at: Tensor) -> Tensor:
        return torch.gather(positions, dim, at)

    return deposited(op, tensor, source, indices, [dim], read, keeps=keeps)


@rule("index_add", "index_copy", "index_fill")
def index_along(op: Operation) -> Result:
    """Whole slices of the source at indices along ``dim``.

    ``index_add([{0}, {1}], 0, [1], [{2}]) = [{0}, {1, 2}]``
    """
    tensor, indices = op["self"], op["index"]
    dim = op["dim"] % max(tensor.dim(), 1)
    shape = [
        indices.numel() if at == dim and tensor.dim() else side
        for at, side in enumerate(tensor.shape)
    ]
    given = op.arguments.get("source", op.arguments.get("value"))
    source = None
    if isinstance(given, Tensor) and op.sets(given) is not None:
        source = broadcast(op, given, shape)
    name = op.func._schema.name
    keeps = name.startswith("aten::index_add")

    def read(positions: Tensor, at: Tensor) -> Tensor:
        return torch.index_select(positions, dim, at.reshape(-1))

    return deposited(op, tensor, source, indices, [dim], read, keeps=keeps)


@rule("put")
def put(op: Operation) -> Result:
    """Elements at flat indices.

    ``put([{0}, {1}], [1], [{2}]) = [{0}, {2}]``
    """
    tensor, keeps = op["self"], bool(op["accumulate"])
    source = op.sets(op["source"])
    return deposited(op, tensor, source, op["index"], range(tensor.dim()), torch.take, keeps=keeps)


@rule("masked_scatter")
def masked_scatter(op: Operation) -> Result:
    """The source, in its order, where the mask holds.

    ``masked_scatter([{0}, {1}], [False, True], [{2}]) = [{0}, {2}]``
    """
    shape = op.outputs[0].shape
    old, source = broadcast(op, op["self"], shape), op.sets(op["source"])
    mask = op.known(op["mask"])
    if mask is None:
        spread = None if source is None else source.support()
        count = op.outputs[0].numel()
        return union([old, None if spread is None else spread.gather(np.zeros(count, np.int64))])
    op.rely_on(op["mask"])
    chosen = mask.expand(tuple(shape)).reshape(-1).numpy()
    rows = np.where(chosen, np.cumsum(chosen) - 1, -1)
    kept = None if old is None else old.keep(~chosen)
    return union([kept, None if source is None else source.gather(rows)])


@rule("masked_scatter_backward")
def masked_scatter_backward(op: Operation) -> Result:
    """Where the mask holds, in order, and then nothing.

    ``masked_scatter_backward([{0}, {1}], [False, True], sizes=[2]) = [{1}, {}]``
    """
    grad, mask, count = op["grad_output"], op.known(op["mask"]), op.outputs[0].numel()
    if mask is None:
        sets = op.sets(grad)
        return None if sets is None else sets.support().gather(np.zeros(count, np.int64))
    op.rely_on(op["mask"])
    sets = op.sets(grad)
    chosen = np.flatnonzero(mask.expand(tuple(grad.shape)).numpy())[:count]
    rows = np.append(chosen, np.full(count - len(chosen), -1))
    return None if sets is None else sets.gather(rows)


@rule("unfold_backward")
def unfold_backward(op: Operation) -> Result:
    """Each place collects from the windows that it lies in.

    ``unfold_backward([[{0}, {1}], [{2}, {3}]], 3 places, size=2, step=1) = [{0}, {1, 2}, {3}]``
    """
    sets, shape = op.sets(op["grad_in"]), tuple(op["input_sizes"])
    if sets is None:
        return None
    numbers = torch.arange(int(np.prod(shape))).reshape(shape)
    places = numbers.unfold(op["dim"], op["size"], op["step"]).reshape(-1).numpy()
    return sets.merge(pairs(places, np.arange(len(sets)), (int(np.prod(shape)), len(sets))))


@rule("embedding_dense_backward")
def embedding_backward(op: Operation) -> Result:
    """A row of the table collects from where it was looked up, the padding row from nowhere.

    ``embedding_dense_backward([[{0}], [{1}]], [1, 1], 2 rows) = [[{}], [{0, 1}]]``
    """
    grad, indices = op["grad_output"], op["indices"]
    sets, count, width = op.sets(grad), int(op["num_weights"]), grad.shape[-1]
    known = known_indices(op, indices)
    if sets is None:
        return None
    columns = np.tile(np.arange(width), indices.numel())
    if known is None:
        return grouped(sets, columns, width).gather(np.tile(np.arange(width), count))
    rows = np.repeat(known.reshape(-1).numpy(), width)
    inside = rows != op["padding_idx"]
    places = (rows * width + columns)[inside]
    return sets.merge(pairs(places, np.flatnonzero(inside), (count * width, len(sets))))
