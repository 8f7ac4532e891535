"""Convolutions of every kind, and their derivatives by input and by weight.

NOTE [One relation for six maps]
A convolution ties an element of the input, one of the weight and one of the output together:

    X  input   (b, g, i, x)      batch, group, input channel of the group, place
    W  weight  (g, o, i, t)      group, output and input channel of the group, tap
    Y  output  (b, g, o, y)

where (x, t, y) is one of the triples with x = y·stride − padding + t·dilation. Whatever is computed
from two of them and lands in the third, it hands on sets along the same triples: axes that only the
source has are united, axes that only the target has repeat. A transposed convolution has input and
output exchanged: what is called its input is Y here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor

from torchjac.structure.detection.index_sets import IndexSets, Rows
from torchjac.structure.detection.registry import Operation, Result, rule
from torchjac.structure.detection.rules.elementwise import union
from torchjac.structure.detection.rules.reductions import grouped, labels_along, pairs

__all__ = ["taps_of"]

_AXES = {"X": "bgix", "W": "goit", "Y": "bgoy"}


def taps_of(
    size: int, out: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[Rows, Rows, Rows]:
    """The triples (x, t, y) along one dimension: place in the input, tap, place in the output."""
    y, t = np.meshgrid(np.arange(out), np.arange(kernel), indexing="ij")
    x = y * stride - padding + t * dilation
    inside = (x >= 0) & (x < size)
    return x[inside], t[inside], y[inside]


@dataclass
class _Relation:
    """The triples over all spatial dimensions, flat, and the sizes of all axes."""

    x: Rows
    t: Rows
    y: Rows
    sizes: dict[str, int]
    transposed: bool

    def places(self, axis: str) -> Rows:
        return {"x": self.x, "t": self.t, "y": self.y}[axis]

    def move(self, sets: IndexSets, source: str, target: str) -> IndexSets:
        """The sets of the tensor in space ``source``, handed to the one in ``target``."""
        own, others = _AXES[source], _AXES[target]
        shared = "".join(axis for axis in own[:-1] if axis in others)
        at, to = own[-1], others[-1]
        # (*own) -> (*shared, place): unite the axes that only the source has.
        shape = [self.sizes[axis] for axis in own]
        labels, _ = labels_along(shape, [own.index(a) for a in own[:-1] if a not in shared])
        kept = int(np.prod([self.sizes[axis] for axis in shared], dtype=np.int64))
        sets = grouped(sets, labels, kept * self.sizes[at])
        # (*shared, place) -> (*shared, place of the target)
        relation = pairs(self.places(to), self.places(at), (self.sizes[to], self.sizes[at]))
        sets = sets.merge(sparse.kron(sparse.identity(kept, bool, "csr"), relation, "csr"))
        # (*shared, place) -> (*others): repeat along the axes that only the target has.
        rows = np.arange(kept * self.sizes[to])
        rows = rows.reshape(
            [self.sizes[a] if a in shared + to else 1 for a in _ordered(own, others)]
        )
        order = [_ordered(own, others).index(axis) for axis in others]
        return sets.gather(
            np.broadcast_to(rows.transpose(order), [self.sizes[a] for a in others]).reshape(-1)
        )

    def through(self, sets: IndexSets, weight: Any, source: str, target: str) -> IndexSets:
        """From X to Y or back, where it is known which taps of the weight are zero."""
        s = self.sizes
        taps = weight.reshape([s[axis] for axis in _AXES["W"]])
        whole: Any = None
        for tap in range(s["t"]):
            # Channels (g, o) × (g, i), a block for each group.
            channels = sparse.block_diag(list(taps[..., tap]), "csr").astype(bool)
            here = self.t == tap
            places = pairs(self.y[here], self.x[here], (s["y"], s["x"]))
            part = sparse.kron(channels, places, "csr")
            whole = part if whole is None else whole + part
        if target == "X":
            whole = whole.T
        return sets.merge(sparse.kron(sparse.identity(s["b"], bool, "csr"), whole, "csr"))


def _ordered(own: str, others: str) -> str:
    """The shared axes as the source has them, the place, and then what only the target has."""
    shared = "".join(axis for axis in own[:-1] if axis in others)
    return shared + others[-1] + "".join(a for a in others[:-1] if a not in shared)


def _relation(
    op: Operation, inputs: Sequence[int], weights: Sequence[int], outputs: Sequence[int]
) -> _Relation:
    transposed = bool(op["transposed"])
    if transposed:
        inputs, outputs = outputs, inputs
    dims = len(inputs) - 2
    stride, padding, dilation = (
        list(op[name]) * (dims if len(op[name]) == 1 else 1)
        for name in ("stride", "padding", "dilation")
    )
    x = t = y = np.zeros(1, np.int64)
    for d in range(dims):
        sides = inputs[2 + d], weights[2 + d], outputs[2 + d]
        along = taps_of(sides[0], sides[2], sides[1], stride[d], padding[d], dilation[d])
        # Places of the dimensions so far, row-major, joined with those of the next.
        x, t, y = (
            (so_far[:, None] * side + new).reshape(-1)
            for so_far, side, new in zip((x, t, y), sides, along, strict=True)
        )
    groups = int(op["groups"])
    sizes = {
        "b": inputs[0],
        "g": groups,
        "i": inputs[1] // groups,
        "o": outputs[1] // groups,
        "x": int(np.prod(inputs[2:])),
        "t": int(np.prod(weights[2:])),
        "y": int(np.prod(outputs[2:])),
    }
    return _Relation(x, t, y, sizes, transposed)


def _with_zeros(op: Operation, weight: Tensor) -> Any:
    """Where a known weight is not zero, if it is zero anywhere."""
    value = op.known(weight)
    if value is None or bool((value != 0).all()):
        return None
    op.rely_on(weight)
    return (value != 0).numpy()


@rule("convolution")
def convolution(op: Operation) -> Result:
    """From the input, the weight or the bias to the output. See NOTE [One relation for six maps].

    ``conv([{0}, {1}, {2}], two taps) = [{0, 1}, {1, 2}]``
    """
    data, weight, output = op["input"], op["weight"], op.outputs[0]
    relation = _relation(op, data.shape, weight.shape, output.shape)
    into, out = ("Y", "X") if relation.transposed else ("X", "Y")
    parts = []
    if (sets := op.sets(data)) is not None:
        taps = _with_zeros(op, weight)
        parts.append(
            relation.move(sets, into, out)
            if taps is None
            else relation.through(sets, taps, into, out)
        )
    if (sets := op.sets(weight)) is not None:
        parts.append(relation.move(sets, "W", out))
    if op["bias"] is not None and (sets := op.sets(op["bias"])) is not None:
        channels = np.arange(len(sets)).reshape(1, -1, 1)
        shape = output.shape[0], output.shape[1], int(np.prod(output.shape[2:]))
        parts.append(sets.gather(np.broadcast_to(channels, shape).reshape(-1)))
    return union(parts)


@rule("convolution_backward")
def convolution_backward(op: Operation) -> Result:
    """Back from the output to the input, the weight and the bias.

    ``conv_backward([{0}, {1}], three inputs, two taps) = [{0}, {0, 1}, {1}], [{0, 1}, {0, 1}], [{0, 1}]``
    """
    grad, data, weight = op["grad_output"], op["input"], op["weight"]
    relation = _relation(op, data.shape, weight.shape, grad.shape)
    into, out = ("Y", "X") if relation.transposed else ("X", "Y")
    from_grad, from_data, from_weight = op.sets(grad), op.sets(data), op.sets(weight)
    by_input, by_weight = [], []
    if from_grad is not None:
        taps = _with_zeros(op, weight)
        by_input.append(
            relation.move(from_grad, out, into)
            if taps is None
            else relation.through(from_grad, taps, out, into)
        )
        by_weight.append(relation.move(from_grad, out, "W"))
    if from_data is not None:
        by_weight.append(relation.move(from_data, into, "W"))
    if from_weight is not None:
        by_input.append(relation.move(from_weight, "W", into))
    by_bias = None
    if from_grad is not None:
        batch, channels = grad.shape[:2]
        labels, _ = labels_along(
            (batch, channels, relation.sizes["x" if relation.transposed else "y"]), (0, 2)
        )
        by_bias = grouped(from_grad, labels, channels)
    results = union(by_input), union(by_weight), by_bias
    return [sets for sets, wanted in zip(results, op["output_mask"], strict=True) if wanted]
