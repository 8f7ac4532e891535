"""Reductions and scans: unions along dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor

from torchjac.structure.detection.index_sets import IndexSets, Rows
from torchjac.structure.detection.registry import Operation, Result, rule

__all__ = ["grouped", "labels_along", "pairs", "union_so_far"]


def pairs(rows: Rows, columns: Rows, shape: tuple[int, int]) -> Any:
    """The boolean matrix with these entries."""
    return sparse.csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=shape)


def grouped(sets: IndexSets, labels: Rows, count: int) -> IndexSets:
    """For each of ``count`` groups the union of the rows that bear its label."""
    return sets.merge(pairs(labels, np.arange(len(sets)), (count, len(sets))))


def labels_along(shape: Sequence[int], dims: Sequence[int]) -> tuple[Rows, int]:
    """Number the groups that are left when ``dims`` are reduced, and say how many there are."""
    left = [1 if at in dims else side for at, side in enumerate(shape)]
    count = int(np.prod(left, dtype=np.int64))
    labels = np.broadcast_to(np.arange(count).reshape(left), tuple(shape)).reshape(-1)
    return labels, count


def dims_of(op: Operation, tensor: Tensor) -> list[int]:
    """The dimensions that an op reduces: all where it names none."""
    dim = op.arguments.get("dim")
    if dim is None or dim == []:
        return list(range(tensor.dim()))
    listed = dim if isinstance(dim, (list, tuple)) else [dim]
    return [d % max(tensor.dim(), 1) for d in listed]


@rule("sum", "mean", "prod")
def reduction(op: Operation) -> Result:
    """The union along the reduced dimensions.

    The forward derivative of a product takes products of tangents, each with factors from elsewhere.
    ``sum([[{0}, {1}], [{2}, {3}]], dim=0) = [{0, 2}, {1, 3}]``
    """
    tensor = op["self"]
    sets = op.sets(tensor)
    if sets is None:
        return None
    labels, count = labels_along(tensor.shape, dims_of(op, tensor))
    return grouped(sets, labels, count)


@rule("cumsum", "cumprod", "logcumsumexp")
def scan(op: Operation) -> Result:
    """The union of all up to here, by doubling: each step reaches twice as far back.

    ``cumsum([{0}, {1}, {2}]) = [{0}, {0, 1}, {0, 1, 2}]``
    """
    tensor = op["self"]
    sets = op.sets(tensor)
    if sets is None or not tensor.dim():
        return sets
    return union_so_far(sets, tensor.shape, op["dim"] % tensor.dim())


def union_so_far(
    sets: IndexSets, shape: Sequence[int], dim: int, *, backward: bool = False
) -> IndexSets:
    """For each element the union with all before it along ``dim``, or with all behind it."""
    length = shape[dim]
    rows = np.arange(len(sets)).reshape(shape)
    reach = 1
    while reach < length:
        taken = np.full(tuple(shape), -1)
        late: list[Any] = [slice(None)] * len(shape)
        early = list(late)
        late[dim], early[dim] = slice(reach, None), slice(None, length - reach)
        to, source = (early, late) if backward else (late, early)
        taken[tuple(to)] = rows[tuple(source)]
        sets = sets.union(sets.gather(taken.reshape(-1)))
        reach *= 2
    return sets


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(op: Operation) -> Result:
    """Every element along the dimensions depends on all of them.

    ``fft([[{0}, {1}], [{2}, {3}]], dim=1) = [[{0, 1}, {0, 1}], [{2, 3}, {2, 3}]]``
    """
    tensor, output = op["self"], op.outputs[0]
    sets = op.sets(tensor)
    if sets is None:
        return None
    dims = dims_of(op, tensor)
    labels, count = labels_along(tensor.shape, dims)
    united = grouped(sets, labels, count)
    # The dimensions may have another length now, as those of a half spectrum have.
    groups, _ = labels_along(output.shape, dims)
    return united.gather(groups)
