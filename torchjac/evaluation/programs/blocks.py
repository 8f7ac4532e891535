"""Seeds in groups: of a stack only some ranges are not zero, and each is computed for itself.

Where a function has several arguments or results, every group of seeds touches one of them. An
operation on such a stack is an operation on its blocks, and what was never anything but zero costs
nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from torchjac.evaluation.programs.elementwise import linear_arguments
from torchjac.evaluation.programs.noops import RESHAPES, order_of, target_shape
from torchjac.evaluation.programs.rewriting import Call, Rewriter, Symbolic, Value
from torchjac.evaluation.programs.zeros import Uniform, is_zero

__all__ = ["block", "blocks"]

aten = torch.ops.aten

# Every operation is repeated for each of them.
_MOST_PARTS = 8


@dataclass(frozen=True, eq=False)
class Blocks(Symbolic):
    """A stack that is zero but for some ranges of its first dimension.

    Args:
        parts: where each range begins, and what stands there, in order.
        like: a fake tensor of the whole.
    """

    parts: tuple[tuple[int, Value], ...]
    like: Tensor

    def dense(self, write: Rewriter) -> Value:
        if len(self.parts) == 1:
            [(at, part)] = self.parts
            after = len(self.like) - at - len(write.like(part))
            pad = [0, 0] * (self.like.dim() - 1) + [at, after]
            return write.raw(aten.constant_pad_nd.default, write.node(part), pad, 0)
        pieces: list[Value] = []
        end = 0
        for at, part in self.parts:
            pieces += [*self._zeros(write, at - end), part]
            end = at + len(write.like(part))
        pieces += self._zeros(write, len(self.like) - end)
        return write.raw(aten.cat.default, [write.node(piece) for piece in pieces])

    def _zeros(self, write: Rewriter, count: int) -> list[Value]:
        like = write.fake((count, *self.like.shape[1:]), self.like)
        return [Uniform(0, like)] if count else []


@dataclass(frozen=True, eq=False)
class Turned(Symbolic):
    """The transpose of a symbolic matrix."""

    matrix: Value
    like: Tensor

    def dense(self, write: Rewriter) -> Value:
        return write.permute(write.node(self.matrix), (1, 0))  # type: ignore[no-any-return]


def block(write: Rewriter, at: int, part: Value, count: int) -> Value:
    """``part`` in the rows from ``at`` of a stack of ``count``, and zeros around it."""
    like = write.like(part)
    return _stacked(write, [(at, part)], write.fake((count, *like.shape[1:]), like))


def _stacked(write: Rewriter, parts: Iterable[tuple[int, Value]], like: Tensor) -> Value:
    """The simplest value with these blocks."""
    parts = [(at, part) for at, part in parts if not is_zero(part) and len(write.like(part))]
    parts = _joined(write, parts)
    if not parts:
        return Uniform(0, like)
    if len(parts) == 1 and len(write.like(parts[0][1])) == len(like):
        return parts[0][1]
    return Blocks(tuple(parts), like)


def _joined(write: Rewriter, parts: Sequence[tuple[int, Value]]) -> list[tuple[int, Value]]:
    """Blocks of which all elements are known side by side become one."""
    joined: list[tuple[int, Value]] = []
    for at, part in parts:
        if joined and isinstance(part, Node) and isinstance(joined[-1][1], Node):
            begin, before = joined[-1]
            if begin + len(write.like(before)) == at:
                joined[-1] = (begin, write.raw(aten.cat.default, [before, part]))
                continue
        joined.append((at, part))
    return joined


def blocks(call: Call) -> Any:
    """The rule of this file."""
    if call.name == "slice_scatter":
        return _placed(call)
    symbols = [(name, symbol) for name, symbol in call.symbols if isinstance(symbol, Blocks)]
    if call.name in ("add", "sub") and symbols:
        return _sum(call)
    if call.name in ("mm", "permute", "t", "transpose"):
        turned = _turned(call)
        if turned is not None:
            return turned
    if len(symbols) != 1:
        return None
    name, whole = symbols[0]
    if name in linear_arguments(call.name, call.arguments):
        return _elementwise(call, name, whole)
    if call.name in RESHAPES and "dtype" not in call.arguments:
        return _reshape(call, whole)
    rule = _RULES.get(call.name)
    return rule(call, whole) if rule and name == "self" else None


Change: TypeAlias = Callable[[int, int], dict[str, Any]]
"""From the first and the last row of a block to the other arguments of an operation on it."""


def _as_they_are(first: int, last: int) -> dict[str, Any]:
    del first, last
    return {}


def _each(call: Call, whole: Blocks, change: Change = _as_they_are, name: str = "self") -> Any:
    """The same operation on every block."""
    write, parts = call.write, []
    for at, part in whole.parts:
        changed = change(at, at + len(write.like(part)))
        parts.append((at, call.again(**{**changed, name: part})))
    return _stacked(write, parts, call.like)


def _elementwise(call: Call, name: str, whole: Blocks) -> Any:
    write, shape = call.write, call.like.shape
    if len(shape) != whole.like.dim() or shape[:1] != whole.like.shape[:1]:
        return None
    others = {
        other: argument
        for other, argument in call.arguments.items()
        if other != name
        and isinstance(argument, Value)
        and write.shape(argument)[:1] == shape[:1]
        and len(write.shape(argument)) == len(shape)
    }

    def rows(first: int, last: int) -> dict[str, Any]:
        return {
            other: write(aten.slice.Tensor, argument, 0, first, last)
            for other, argument in others.items()
        }

    return _each(call, whole, rows, name)


def _sum(call: Call) -> Any:
    """Blocks of the same rows are added, those of different rows stay apart."""
    write, one, other = call.write, call["self"], call["other"]
    if not (isinstance(one, Blocks) and isinstance(other, Blocks)):
        return None
    if one.like.shape != other.like.shape or one.like.dtype != other.like.dtype:
        return None
    if call.name == "sub" or call["alpha"] != 1:
        factor = -call["alpha"] if call.name == "sub" else call["alpha"]
        return write(aten.add.Tensor, one, write(aten.mul.Scalar, other, factor))
    parts: dict[tuple[int, int], Value] = {}
    for at, part in (*one.parts, *other.parts):
        rows = (at, at + len(write.like(part)))
        parts[rows] = write(aten.add.Tensor, parts[rows], part) if rows in parts else part
    ordered = sorted(parts)
    apart = all(before[1] <= after[0] for before, after in itertools.pairwise(ordered))
    if not apart or len(ordered) > _MOST_PARTS:
        return None
    return _stacked(write, [(rows[0], parts[rows]) for rows in ordered], call.like)


def _reshape(call: Call, whole: Blocks) -> Any:
    """``(k, a, b) -> (k * a, b)``: the blocks begin and end elsewhere, if they still do."""
    write, shape = call.write, target_shape(call)
    if not shape or 0 in shape:
        return None
    old, new = whole.like.numel() // len(whole.like), call.like.numel() // shape[0]
    parts = []
    for at, part in whole.parts:
        first, last = at * old, (at + len(write.like(part))) * old
        if first % new or last % new:
            return None
        parts.append((first // new, write.reshape(part, ((last - first) // new, *shape[1:]))))
    return _stacked(write, parts, write.fake(shape, whole.like))


def _expand(call: Call, whole: Blocks) -> Any:
    shape = tuple(call.like.shape)
    if len(shape) != whole.like.dim() or shape[0] != len(whole.like):
        return None
    return _each(call, whole, lambda first, last: {"size": [last - first, *shape[1:]]})


def _permute(call: Call, whole: Blocks) -> Any:
    order = order_of(call)
    return _each(call, whole) if order[0] == 0 else None


def _along(call: Call, whole: Blocks) -> Any:
    """Along one other dimension than the first."""
    if call["dim"] % whole.like.dim() == 0:
        return _rows(call, whole) if call.name == "slice" and call["step"] == 1 else None
    if not isinstance(call.like, (list, tuple)):
        return _each(call, whole)
    write, columns = call.write, [call.again(self=part) for _, part in whole.parts]
    return [
        _stacked(
            write,
            [
                (at, write.item(column, index))
                for (at, _), column in zip(whole.parts, columns, strict=True)
            ],
            like,
        )
        for index, like in enumerate(call.like)
    ]


def _rows(call: Call, whole: Blocks) -> Any:
    write = call.write
    first, last, _ = slice(call["start"], call["end"]).indices(len(whole.like))
    parts = []
    for at, part in whole.parts:
        begin, end = max(first - at, 0), min(last - at, len(write.like(part)))
        if begin < end:
            parts.append((at + begin - first, write(aten.slice.Tensor, part, 0, begin, end)))
    return _stacked(write, parts, call.like)


def _summed(call: Call, whole: Blocks) -> Any:
    dims = call.get("dim")
    if not dims or any(dim % whole.like.dim() == 0 for dim in dims):
        return None
    return _each(call, whole)


def _multiplied(call: Call, whole: Blocks) -> Any:
    if call.name != "bmm":
        return _each(call, whole)
    matrices = call["mat2"]

    def rows(first: int, last: int) -> dict[str, Any]:
        return {"mat2": call.write(aten.slice.Tensor, matrices, 0, first, last)}

    return _each(call, whole, rows)


def _turned(call: Call) -> Any:
    """``A @ Bᵀ = (B @ Aᵀ)ᵀ``, so that the seeds come first."""
    write, value = call.write, call["self"]
    if call.name == "mm":
        if not isinstance(call["mat2"], Turned) or not isinstance(value, Node):
            return None
        product = write(aten.mm.default, call["mat2"].matrix, write.permute(value, (1, 0)))
        return write.permute(product, (1, 0))
    if order_of(call) != (1, 0):
        return None
    if isinstance(value, Turned):
        return value.matrix
    return Turned(value, call.like) if isinstance(value, Blocks) else None


def _placed(call: Call) -> Any:
    """What is written into rows of zeros is a block; what fills the whole side replaces it."""
    dim, length = call["dim"], call.like.shape[call["dim"]]
    first, last, step = slice(call["start"], call["end"], call["step"]).indices(length)
    if step != 1 or call.write.like(call["src"]).dtype != call.like.dtype:
        return None
    if (first, last) == (0, length):
        return call["src"]
    return (
        block(call.write, first, call["src"], length)
        if dim == 0 and is_zero(call["self"])
        else None
    )


_RULES: dict[str, Callable[[Call, Blocks], Any]] = {
    "expand": _expand,
    **dict.fromkeys(("permute", "t", "transpose"), _permute),
    **dict.fromkeys(("select", "slice", "unbind", "split", "split_with_sizes"), _along),
    "sum": _summed,
    **dict.fromkeys(("mm", "mv", "bmm"), _multiplied),
}
