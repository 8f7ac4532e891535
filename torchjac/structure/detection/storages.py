"""What is known of every storage, and reading and writing it through views.

NOTE [Views need no rules]
Two tensors that share a storage see each other's in-place changes. So index sets belong to a storage,
not to a tensor: a view reads them by its strides, and an in-place op writes through its own.

    y = x.clone()        storage s: rows {0} {1} {2} {3}
    v = y[1:]            the same storage, offset 1; nothing happens
    v += y[:-1]          reads {1} {2} {3} and {0} {1} {2}, writes {0,1} {1,2} {2,3} from offset 1 on
    y                    reads s: {0} {0,1} {1,2} {2,3}

No view, be it ``permute``, ``unfold`` or ``as_strided``, needs a rule, nor can it have a wrong one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from torchjac.errors import StructureError
from torchjac.structure.detection.constants import Constant
from torchjac.structure.detection.index_sets import IndexSets, Rows

__all__ = ["Storages", "key_of"]

Geometry: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...], int]"
"""Sizes, strides and offset, in elements."""

# Index sets of storages that nobody holds any more are let go after so many new entries.
_SWEEP_AFTER = 4_000_000


@dataclass
class _Content:
    """Sets or values of the elements that were written through ``geometry``, in row-major order."""

    alive: object
    geometry: Geometry
    itemsize: int
    sets: IndexSets | None
    constant: Constant | None


def key_of(tensor: Tensor) -> int | None:
    """What identifies the storage of ``tensor``; None where there is none to speak of."""
    if tensor._is_zerotensor() or tensor.layout is not torch.strided:
        return None
    return int(tensor.untyped_storage()._cdata)


class Storages:
    """Contents by storage. A storage that is not here is independent of the seeds, and unknown."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._contents: dict[int, _Content] = {}
        self._entries = 0

    def depends(self, tensor: Tensor) -> bool:
        """Whether the storage holds anything that depends on the seeds."""
        key = key_of(tensor)
        content = None if key is None else self._contents.get(key)
        return content is not None and content.sets is not None

    def holds(self, tensor: Tensor) -> bool:
        """Whether anything was written."""
        return key_of(tensor) in self._contents

    def forget(self, tensor: Tensor) -> None:
        """Drop what is held of the storage."""
        self._contents.pop(key_of(tensor), None)  # type: ignore[arg-type]

    def is_known(self, tensor: Tensor) -> bool:
        """Whether the storage holds known values."""
        content = self._contents.get(key_of(tensor))  # type: ignore[arg-type]
        return tensor._is_zerotensor() or (content is not None and content.constant is not None)

    def sets(self, tensor: Tensor) -> IndexSets | None:
        """The sets of ``tensor``, one row for each element; None where there is no dependence."""
        key = key_of(tensor)
        content = None if key is None else self._contents.get(key)
        if content is None or content.sets is None:
            return None
        size = tensor.element_size()
        if size == content.itemsize:
            return content.sets.gather(_rows(content, _geometry(tensor)))
        return self._reinterpreted(content, tensor)

    def constant(self, tensor: Tensor) -> Constant | None:
        """The values of ``tensor``, where they are known."""
        if tensor._is_zerotensor():
            shape, dtype = tuple(tensor.shape), tensor.dtype
            return Constant(lambda: torch.zeros(shape, dtype=dtype))
        key = key_of(tensor)
        content = None if key is None else self._contents.get(key)
        if content is None or content.constant is None:
            return None
        if tensor.element_size() != content.itemsize:
            return None
        geometry, shape = _geometry(tensor), tuple(tensor.shape)
        if geometry == content.geometry or _same_elements(geometry, content.geometry):
            return content.constant.gather(lambda value: value.reshape(shape))
        if _is_whole(content.geometry):
            return content.constant.gather(lambda value: value.reshape(-1).as_strided(*geometry))
        rows = _rows(content, geometry)
        if rows is None or (rows < 0).any():
            return None
        return content.constant.gather(
            lambda value: value.reshape(-1)[torch.from_numpy(np.array(rows))].reshape(shape)
        )

    def write(
        self, tensor: Tensor, sets: IndexSets | None, constant: Constant | None = None
    ) -> None:
        """Replace what ``tensor`` holds: by sets, by known values, or by unknown independent ones."""
        key = key_of(tensor)
        if key is None:
            if sets is not None and sets.nnz:
                raise StructureError(
                    f"the derivative has a {tensor.layout} tensor in it, whose structure depends on "
                    "values; pass sparsity=None, or give the pattern by hand"
                )
            return
        if sets is not None and not sets.nnz:
            sets = None
        old = self._contents.get(key)
        geometry, itemsize = _geometry(tensor), tensor.element_size()
        whole = old is None or _covers(tensor, geometry)
        if old is not None and not whole:
            if old.sets is None and sets is None:
                constant = _overwritten(old, constant, tensor)
                geometry, itemsize = old.geometry, old.itemsize
            else:
                constant = None
                sets, geometry, itemsize = self._overwritten(old, sets, tensor)
        if sets is None and constant is None:
            self._contents.pop(key, None)
            return
        alive = old.alive if old is not None else _weak(tensor)
        self._contents[key] = _Content(alive, geometry, itemsize, sets, constant)
        if sets is not None and (old is None or old.sets is not sets):
            self._entries += sets.nnz + len(sets)
            if self._entries > _SWEEP_AFTER:
                self._sweep()

    def _overwritten(
        self, old: _Content, sets: IndexSets | None, tensor: Tensor
    ) -> tuple[IndexSets, Geometry, int]:
        """The whole storage after the part that ``tensor`` covers was replaced."""
        itemsize = old.itemsize
        count = tensor.untyped_storage().nbytes() // itemsize
        geometry: Geometry = ((count,), (1,), 0)
        before = (
            IndexSets.empty(count, self._columns)
            if old.sets is None
            else old.sets.gather(_rows(old, geometry))
        )
        after = IndexSets.empty(tensor.numel(), self._columns) if sets is None else sets
        if tensor.element_size() != itemsize:
            return before.union(_spread(after, tensor, itemsize, count)), geometry, itemsize
        rows = np.arange(count)
        rows[_positions(_geometry(tensor))] = count + np.arange(len(after))
        return IndexSets.stack([before, after]).gather(rows), geometry, itemsize

    def _reinterpreted(self, content: _Content, tensor: Tensor) -> IndexSets:
        """The sets of a view of another dtype: of all units that its bytes lie in."""
        assert content.sets is not None
        size, unit = tensor.element_size(), content.itemsize
        bytes_at = _positions(_geometry(tensor)) * size
        count = tensor.untyped_storage().nbytes() // unit
        flat = content.sets.gather(_rows(content, ((count,), (1,), 0)))
        found = flat.gather(bytes_at // unit)
        for part in range(unit, size, unit):
            found = found.union(flat.gather((bytes_at + part) // unit))
        return found

    def _sweep(self) -> None:
        for key in [key for key, held in self._contents.items() if held.alive.expired()]:  # type: ignore[attr-defined]
            del self._contents[key]
        self._entries = 0


def _weak(tensor: Tensor) -> object:
    # While a weak reference exists the address of the storage is not given to another one.
    from torch.multiprocessing.reductions import StorageWeakRef

    return StorageWeakRef(tensor.untyped_storage())


def _geometry(tensor: Tensor) -> Geometry:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _is_row_major(geometry: Geometry) -> bool:
    """Whether the elements lie one after another in row-major order."""
    step = 1
    for size, stride in zip(reversed(geometry[0]), reversed(geometry[1]), strict=True):
        if size != 1:
            if stride != step and size:
                return False
            step *= size
    return True


def _is_whole(geometry: Geometry) -> bool:
    return geometry[2] == 0 and _is_row_major(geometry)


def _same_elements(one: Geometry, other: Geometry) -> bool:
    """Whether both are the same stretch of a storage in the same order."""
    return (
        one[2] == other[2]
        and math.prod(one[0]) == math.prod(other[0])
        and _is_row_major(one)
        and _is_row_major(other)
    )


def _covers(tensor: Tensor, geometry: Geometry) -> bool:
    """Whether the tensor is all of its storage, each element once."""
    if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        return False
    if geometry[2] == 0 and _is_row_major(geometry):
        return True
    dims = sorted(zip(geometry[1], geometry[0], strict=True))
    step = 1
    for stride, size in dims:
        if size != 1:
            if stride != step:
                return False
            step *= size
    return geometry[2] == 0


def _positions(geometry: Geometry) -> Rows:
    """Where each element lies in the storage, in row-major order."""
    sizes, strides, offset = geometry
    if not math.prod(sizes):
        return np.zeros(0, np.int64)
    if _is_row_major(geometry):
        return np.arange(offset, offset + math.prod(sizes))
    last = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    base = np.arange(offset, offset + last + 1)
    # (last + 1) -> (*sizes) -> (numel)
    return as_strided(base, sizes, [8 * s for s in strides]).reshape(-1)


def _rows(content: _Content, geometry: Geometry) -> Rows | None:
    """The row in ``content`` of each element that ``geometry`` reads; None for all as they are."""
    if geometry == content.geometry or _same_elements(geometry, content.geometry):
        return None
    wanted = _positions(geometry)
    count = math.prod(content.geometry[0])
    if _is_row_major(content.geometry):
        rows = wanted - content.geometry[2]
        inside = (rows >= 0) & (rows < count)
        return rows if inside.all() else np.where(inside, rows, -1)
    written = _positions(content.geometry)
    table = np.full(max(written.max(initial=-1), wanted.max(initial=-1)) + 1, -1)
    table[written] = np.arange(count)
    return table[wanted]


def _spread(sets: IndexSets, tensor: Tensor, unit: int, count: int) -> IndexSets:
    """The sets of ``tensor`` at the ``count`` units of the storage that its bytes lie in."""
    from scipy import sparse

    size = tensor.element_size()
    bytes_at = _positions(_geometry(tensor)) * size
    steps = range(0, max(size, unit), unit)
    units = np.concatenate([(bytes_at + step) // unit for step in steps])
    elements = np.tile(np.arange(len(bytes_at)), len(steps))
    groups = sparse.csr_matrix(
        (np.ones(len(units), bool), (units, elements)), shape=(count, len(bytes_at))
    )
    return sets.merge(groups)


def _overwritten(old: _Content, new: Constant | None, tensor: Tensor) -> Constant | None:
    """Known values after a part of them was replaced by known values."""
    held = old.constant
    if new is None or held is None or old.itemsize != tensor.element_size():
        return None
    rows = _rows(old, _geometry(tensor))
    if rows is not None and (rows < 0).any():
        return None

    def compute() -> Tensor:
        assert held is not None
        whole: Tensor = held.value().clone().reshape(-1)
        part = new.value().reshape(-1).to(whole.dtype)
        whole[slice(None) if rows is None else torch.from_numpy(np.array(rows))] = part
        return whole.reshape(old.geometry[0])

    return Constant(compute, (held, new))
