"""Element by element: an element of the result depends on what the elements in its place do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from torchjac.structure.detection.index_sets import IndexSets, Rows
from torchjac.structure.detection.interpret import tensors_in
from torchjac.structure.detection.registry import Operation, Result, rule

__all__ = ["broadcast", "elementwise", "mask_of"]


def broadcast_rows(shape: Sequence[int], to: Sequence[int]) -> Rows | None:
    """The row of a tensor of ``shape`` that each element of the broadcast tensor is taken from."""
    if tuple(shape) == tuple(to):
        return None
    rows = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    return np.broadcast_to(rows, tuple(to)).reshape(-1)


def broadcast(op: Operation, tensor: Any, to: Sequence[int]) -> IndexSets | None:
    """The sets of ``tensor`` broadcast to the shape ``to``."""
    sets = op.sets(tensor)
    return None if sets is None else sets.gather(broadcast_rows(tensor.shape, to))


def union(parts: Sequence[IndexSets | None]) -> IndexSets | None:
    """Of what there is."""
    whole: IndexSets | None = None
    for part in parts:
        if part is not None:
            whole = part if whole is None else whole.union(part)
    return whole


def mask_of(value: Tensor, to: Sequence[int]) -> Any:
    """Where ``value``, broadcast, is not zero: a flat boolean array."""
    return (value != 0).expand(tuple(to)).reshape(-1).numpy()


@rule("pointwise", "clone", "_to_copy", "to", "contiguous", "complex", "_conj_physical")
@rule("threshold_backward", "hardtanh_backward", "softshrink_backward", "hardshrink_backward")
@rule("rrelu_with_noise_backward", "_prelu_kernel_backward", "native_dropout_backward")
@rule("masked_scale", "lerp")
def elementwise(op: Operation) -> Result:
    """The union of the operands, broadcast.

    ``[{0}, {1}] + [{2}] = [{0, 2}, {1, 2}]``
    """
    operands = tensors_in(op.arguments.values())
    return [
        union([broadcast(op, operand, output.shape) for operand in operands])
        for output in op.outputs
    ]


@rule("add", "sub")
def sum_of_two(op: Operation) -> Result:
    """The union, unless the second operand is scaled by zero.

    ``add([{0}], [{1}], alpha=0) = [{0}]``
    """
    names = ["self", "other"] if op["alpha"] != 0 else ["self"]
    return union([broadcast(op, op[name], op.outputs[0].shape) for name in names])


@rule("mul")
def product(op: Operation) -> Result:
    """The sets of the factor that depends, except where the other is known to be zero.

    ``[{0}, {1}] * [2, 0] = [{0}, {}]``
    """
    shape = op.outputs[0].shape
    parts = []
    for name, other in (("self", "other"), ("other", "self")):
        sets = broadcast(op, op[name], shape)
        parts.append(None if sets is None else _scaled(op, sets, op[other], shape))
    return union(parts)


def _scaled(op: Operation, sets: IndexSets, factor: Any, shape: Sequence[int]) -> IndexSets | None:
    if not isinstance(factor, Tensor):
        return None if factor == 0 else sets
    value = op.known(factor)
    if value is None:
        return sets
    mask = mask_of(value, shape)
    if mask.all():
        return sets
    op.rely_on(factor)
    return sets.keep(mask)


@rule("where")
def where(op: Operation) -> Result:
    """The chosen operand where the condition is known; the union of both, and of it, where not.

    ``where([True, False], [{0}, {1}], [{2}, {3}]) = [{0}, {3}]``
    """
    shape, condition = op.outputs[0].shape, op["condition"]
    one, other = (broadcast(op, op[name], shape) for name in ("self", "other"))
    mask = op.known(condition)
    if mask is None:
        return union([broadcast(op, condition, shape), one, other])
    op.rely_on(condition)
    chosen = mask_of(mask, shape)
    return union(
        [
            None if one is None else one.keep(chosen),
            None if other is None else other.keep(~chosen),
        ]
    )


@rule("masked_fill")
def masked_fill(op: Operation) -> Result:
    """What is filled depends on the value alone, where the mask is known.

    ``masked_fill([{0}, {1}], [True, False], 5.0) = [{}, {1}]``
    """
    shape = op.outputs[0].shape
    kept, value = broadcast(op, op["self"], shape), broadcast(op, op["value"], shape)
    mask = op.known(op["mask"])
    if mask is None:
        return union([kept, value, broadcast(op, op["mask"], shape)])
    op.rely_on(op["mask"])
    filled = mask_of(mask, shape)
    return union(
        [
            None if kept is None else kept.keep(~filled),
            None if value is None else value.keep(filled),
        ]
    )


@rule("fill", "zero")
def replaced(op: Operation) -> Result:
    """The old elements are gone; the new ones depend on the value that they are filled with.

    ``fill([{0}, {1}], value) = [value's, value's]``
    """
    value = op.arguments.get("value")
    return broadcast(op, value, op.outputs[0].shape) if isinstance(value, Tensor) else None


@rule("copy")
def copy(op: Operation) -> Result:
    """The source, broadcast.

    ``copy([{0}, {1}], [{2}]) = [{2}, {2}]``
    """
    return broadcast(op, op["src"], op.outputs[0].shape)


@rule("glu_jvp")
def glu_jvp(op: Operation) -> Result:
    """Both halves of a tensor, in each place of the half that comes out.

    ``glu_jvp(glu, x, [{0}, {1}]) = [{0, 1}]``
    """
    half = op.outputs[0].shape
    parts = [op.sets(op["glu"])]
    for name in ("x", "dx"):
        tensor, sets = op[name], op.sets(op[name])
        if sets is not None:
            rows = np.arange(len(sets)).reshape(tensor.shape)
            halves = np.split(rows, [half[op["dim"]]], axis=op["dim"])
            parts += [sets.gather(rows.reshape(-1)) for rows in halves]
    return union(parts)
