"""Diagonal seeds through one operation after the other, as far as they stay diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from torchjac.evaluation.programs.blocks import block
from torchjac.evaluation.programs.contractions import PRODUCTS, summed
from torchjac.evaluation.programs.diagonals import Diagonal, of_one_seed
from torchjac.evaluation.programs.elementwise import linear_arguments
from torchjac.evaluation.programs.noops import RESHAPES, order_of, target_shape
from torchjac.evaluation.programs.rewriting import Call, Value
from torchjac.evaluation.programs.zeros import Uniform

__all__ = ["diagonal"]

aten = torch.ops.aten


def diagonal(call: Call) -> Any:
    """The rule of this file."""
    if call.name == "eye":
        return _eye(call)
    symbols = [(name, symbol) for name, symbol in call.symbols if isinstance(symbol, Diagonal)]
    if call.name in ("add", "sub") and len(symbols) == 2:
        return _sum(call)
    if len(symbols) != 1:
        return None
    name, seeds = symbols[0]
    if call.name in RESHAPES and "dtype" not in call.arguments:
        return _reshape(call, seeds)
    if call.name in PRODUCTS:
        return PRODUCTS[call.name](call, seeds, name)
    if not seeds.is_stack:
        return None
    if name in linear_arguments(call.name, call.arguments):
        return _elementwise(call, seeds, name)
    return _RULES[call.name](call, seeds) if call.name in _RULES and name == "self" else None


def _eye(call: Call) -> Value | None:
    rows, columns = call.like.shape
    if rows < columns or call.like.layout != torch.strided or not call.like.is_floating_point():
        return None
    if rows == columns == 1:
        return Uniform(1, call.like)
    write = call.write
    square = Diagonal.stack(write, Uniform(1, write.fake((columns,), call.like)), 0, 1)
    return square if rows == columns else block(write, 0, square, rows)


# --- element by element -------------------------------------------------------------------------


def _elementwise(call: Call, seeds: Diagonal, name: str) -> Diagonal | None:
    """The same operation on the diagonal.

    ``tanh_backward((k, *rest), y) = diag(tanh_backward(d, y))``
    """
    write, shape = call.write, tuple(call.like.shape)
    core = shape[1 + seeds.start : 1 + seeds.stop]
    if len(shape) != 1 + len(seeds.rest) or shape[0] != seeds.seeds or core != seeds.core:
        return None
    changed: dict[str, Any] = {name: seeds.d}
    for other, argument in call.arguments.items():
        if other != name and isinstance(argument, Value):
            changed[other] = of_one_seed(write, argument, len(shape))
            if changed[other] is None:
                return None
    if call.name == "_to_copy" and not call.like.is_floating_point():
        return None
    d = write.cast(call.again(**changed), write.fake(shape[1:], call.like))
    return seeds.with_d(write, d)


def _sum(call: Call) -> Diagonal | None:
    """``diag(c) + diag(d) = diag(c + d)``."""
    one, other = call["self"], call["other"]
    if not (one.is_stack and other.is_stack):
        return None
    if (one.rest, one.start, one.stop) != (other.rest, other.start, other.stop):
        return None
    total: Diagonal = one.with_d(call.write, call.again(self=one.d, other=other.d))
    return total


# --- elements in other places --------------------------------------------------------------------


def _reshape(call: Call, seeds: Diagonal) -> Diagonal:
    """Sides may be split and merged within left, core and right; else it is only seen differently."""
    write, shape = call.write, target_shape(call)
    cuts = _cuts(shape[1:], seeds) if shape[:1] == (seeds.seeds,) else None
    if cuts is None:
        return replace(seeds, like=write.fake(shape, seeds.like))
    return Diagonal.stack(write, write.reshape(seeds.d, shape[1:]), *cuts)


def _cuts(rest: Sequence[int], seeds: Diagonal) -> tuple[int, int] | None:
    """Where the core begins and ends in another shape of the same elements."""
    left, core = math.prod(seeds.rest[: seeds.start]), seeds.seeds
    if math.prod(rest) != math.prod(seeds.rest) or math.prod(rest) == 0:
        return None
    found = [
        (stop - start, start, stop)
        for start in range(len(rest) + 1)
        for stop in range(start, len(rest) + 1)
        if math.prod(rest[:start]) == left and math.prod(rest[start:stop]) == core
    ]
    # The fewest sides: those of length 1 can be broadcast where they are not in the core.
    return min(found)[1:] if found else None


def _expand(call: Call, seeds: Diagonal) -> Diagonal | None:
    shape = tuple(call.like.shape)
    core = shape[1 + seeds.start : 1 + seeds.stop]
    if len(shape) != 1 + len(seeds.rest) or shape[0] != seeds.seeds or core != seeds.core:
        return None
    return seeds.with_d(call.write, call.write.expand(seeds.d, shape[1:]))


def _permute(call: Call, seeds: Diagonal) -> Diagonal | None:
    """The core's sides stay together and in order, and the seeds in front; or it is a square."""
    order = order_of(call)
    if order == (1, 0) and seeds.is_matrix:
        return seeds
    if order[0] != 0:
        return None
    rest = [dim - 1 for dim in order[1:]]
    core = list(range(seeds.start, seeds.stop))
    start = rest.index(core[0]) if core else 0
    if rest[start : start + len(core)] != core:
        return None
    d = call.write.permute(seeds.d, rest)
    return Diagonal.stack(call.write, d, start, start + len(core))


def _select(call: Call, seeds: Diagonal) -> Any:
    """One element of a side of the core leaves a block of a diagonal, or a row."""
    dim = call["dim"] % seeds.like.dim() - 1
    if dim < 0:
        return None
    write, index = call.write, call["index"] % seeds.rest[dim]
    d = write(aten.select.int, seeds.d, dim, index)
    if dim >= seeds.stop:
        return seeds.with_d(write, d)
    if dim < seeds.start:
        return Diagonal.stack(write, d, seeds.start - 1, seeds.stop - 1)
    if dim > seeds.start:
        return None
    # A core of no sides has one element.
    part: Value = Diagonal.stack(write, d, seeds.start, seeds.stop - 1)
    if len(seeds.core) == 1:
        part = write.reshape(d, (1, *write.shape(d)))
    return block(write, index * math.prod(seeds.core[1:]), part, seeds.seeds)


def _unbind(call: Call, seeds: Diagonal) -> Any:
    dim = call["dim"] % seeds.like.dim()
    return [
        call.write(aten.select.int, seeds, dim, index) for index in range(seeds.like.shape[dim])
    ]


def _slice(call: Call, seeds: Diagonal) -> Any:
    """A range of the core's first side leaves a block of a diagonal."""
    write, dim = call.write, call["dim"] % seeds.like.dim() - 1
    if call["step"] != 1 or dim < 0:
        return None
    first, last, _ = slice(call["start"], call["end"]).indices(seeds.rest[dim])
    d = write(aten.slice.Tensor, seeds.d, dim, first, last)
    part = seeds.with_d(write, d)
    if not seeds.start <= dim < seeds.stop:
        return part
    if dim > seeds.start or first >= last:
        return None
    return block(write, first * math.prod(seeds.core[1:]), part, seeds.seeds)


def _split(call: Call, seeds: Diagonal) -> Any:
    if call["dim"] % seeds.like.dim() == 0:
        return None
    parts, at = [], 0
    for part in call.like:
        stop = at + part.shape[call["dim"]]
        parts.append(call.write(aten.slice.Tensor, seeds, call["dim"], at, stop))
        at = stop
    return parts


_RULES: dict[str, Callable[[Call, Diagonal], Any]] = {
    "expand": _expand,
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    "select": _select,
    "unbind": _unbind,
    "slice": _slice,
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "sum": summed,
}
