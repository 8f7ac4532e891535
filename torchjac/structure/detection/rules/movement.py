"""Elements that change places: each element of the result is one element of an operand, or zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchjac.structure.detection.index_sets import IndexSets
from torchjac.structure.detection.registry import Operation, Result, rule

__all__ = ["moved"]


def moved(op: Operation, dtype: torch.dtype = torch.int64) -> Result:
    """Apply the op itself to the numbers of the elements, and fetch the sets that they stand for.

    Zero stands for the empty set, so what the op fills in comes out empty.

    ``roll([{0}, {1}, {2}], 1)``: ``roll([1, 2, 3], 1) = [3, 1, 2]``, hence ``[{2}, {0}, {1}]``
    """
    parts: list[IndexSets] = []
    count = 0

    def numbered(value: Any) -> Any:
        nonlocal count
        if isinstance(value, (list, tuple)):
            return [numbered(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        sets = op.sets(value)
        if sets is None:
            if value.dtype in (torch.int64, torch.int32, torch.bool):
                known = op.known(value)
                if known is not None:
                    op.rely_on(value)
                    return known
                raise NotImplementedError
            return torch.zeros(tuple(value.shape), dtype=dtype)
        parts.append(sets)
        count += len(sets)
        return torch.arange(count - len(sets) + 1, count + 1, dtype=dtype).reshape(value.shape)

    arguments = {
        name: 0 if name in _FILLERS and not isinstance(value, Tensor) else numbered(value)
        for name, value in op.arguments.items()
    }
    found = op.func(**_called(op, arguments))
    outputs = [found] if isinstance(found, Tensor) else found
    rows = [output.reshape(-1).numpy().astype(np.int64) - 1 for output in outputs]
    whole = IndexSets.stack(parts)
    return [whole.gather(chosen) for chosen in rows]


_FILLERS = frozenset({"value"})


def _called(op: Operation, arguments: dict[str, Any]) -> dict[str, Any]:
    """Without what the op has no use for on integers on the CPU."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in ("dtype", "layout", "device", "pin_memory")
    }


@rule("roll", "flip", "cat", "stack", "repeat", "rot90", "constant_pad_nd", "tril", "triu")
@rule("diag_embed", "reshape", "block_diag", "slice_scatter", "select_scatter")
@rule("diagonal_scatter", "as_strided_scatter", "slice_backward", "select_backward")
@rule("diagonal_backward", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "_unsafe_view")
@rule("unsafe_split")
def movement(op: Operation) -> Result:
    """See `moved`: one element each, by the op's own hand."""
    return moved(op)


@rule("im2col", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d")
@rule("replication_pad2d", "replication_pad3d", "upsample_nearest1d", "upsample_nearest2d")
@rule("upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d")
@rule("_upsample_nearest_exact3d")
def movement_of_floats(op: Operation) -> Result:
    """The same for ops that have no kernel for integers: float64 counts to 2⁵³ exactly.

    ``reflection_pad1d([{0}, {1}], (1, 0)) = [{1}, {0}, {1}]``
    """
    return moved(op, torch.float64)
