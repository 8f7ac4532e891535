"""Diagonal seeds through one operation after the other, as far as they stay diagonal."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from torchjac.evaluation.programs.contractions import PRODUCTS, summed
from torchjac.evaluation.programs.diagonals import Diagonal, Diagonals, of_one_seed
from torchjac.evaluation.programs.noops import RESHAPES, order_of, target_shape
from torchjac.evaluation.programs.rewriting import Call, Value
from torchjac.evaluation.programs.zeros import Uniform, is_zero, zeros_like

__all__ = ["diagonal"]

aten = torch.ops.aten


def diagonal(call: Call) -> Any:
    """The rule of this file."""
    if call.name == "eye":
        return _eye(call)
    if call.name == "slice_scatter":
        return _placed(call)
    symbols = [
        (name, symbol) for name, symbol in call.symbols if isinstance(symbol, (Diagonal, Diagonals))
    ]
    if call.name in _SUMS and symbols:
        return _sum_of_two(call)
    if len(symbols) != 1:
        return None
    name, seeds = symbols[0]
    return (
        _distributed(call, name, seeds)
        if isinstance(seeds, Diagonals)
        else _of_one(call, name, seeds)
    )


def _of_one(call: Call, name: str, seeds: Diagonal) -> Any:
    if call.name in RESHAPES and "dtype" not in call.arguments:
        return _reshape(call, seeds)
    if call.name in PRODUCTS:
        return PRODUCTS[call.name](call, seeds, name)
    if not seeds.is_stack:
        return None
    if name in _linear_arguments(call):
        return _elementwise(call, seeds, name)
    return _RULES[call.name](call, seeds) if call.name in _RULES and name == "self" else None


def _eye(call: Call) -> Diagonal | None:
    rows, columns = call.like.shape
    if rows < columns or call.like.layout != torch.strided or not call.like.is_floating_point():
        return None
    write = call.write
    return Diagonal(Uniform(1, write.fake((columns,), call.like)), rows, 0, 1, 0, call.like)


# --- element by element -------------------------------------------------------------------------


def _linear_arguments(call: Call) -> tuple[str, ...]:
    """The arguments that an elementwise operation is linear in, one at a time."""
    if call.name in ("mul",):
        return ("self", "other")
    if call.name in ("div", "neg", "_to_copy", "clone") and call.get("rounding_mode") is None:
        return ("self",)
    if call.name == "where":
        return tuple(
            one for one, other in (("self", "other"), ("other", "self")) if _is_nothing(call[other])
        )
    if call.name == "masked_fill" and _is_nothing(call["value"]):
        return ("self",)
    first = next(iter(call.arguments))
    if call.name in _ELEMENTWISE_BACKWARDS and first.startswith("grad"):
        return (first,)
    return ()


def _is_nothing(value: Any) -> bool:
    number = value.number if isinstance(value, Uniform) else value
    return isinstance(number, (int, float)) and number == 0


_ELEMENTWISE_BACKWARDS = frozenset(
    f"{name}_backward"
    for name in (
        *("tanh", "sigmoid", "threshold", "gelu", "silu", "mish", "elu", "hardtanh", "leaky_relu"),
        *("softplus", "hardswish", "hardsigmoid", "log_sigmoid", "softshrink", "hardshrink"),
        *("native_dropout", "logit"),
    )
)


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
    return seeds.changed(write, d)


# --- sums of diagonals --------------------------------------------------------------------------

_SUMS = frozenset(["add", "sub"])

# Every operation is repeated for each of them.
_MOST_PARTS = 8


def _sum_of_two(call: Call) -> Any:
    """``diag(c) + diag(d) = diag(c + d)``; diagonals of different seeds stay apart."""
    one, other = call["self"], call["other"]
    if not all(isinstance(side, (Diagonal, Diagonals)) for side in (one, other)):
        return None
    if one.like.shape != other.like.shape or one.like.dtype != other.like.dtype:
        return None
    if isinstance(one, Diagonal) and isinstance(other, Diagonal) and _same_places(one, other):
        return one.changed(call.write, call.again(self=one.d, other=other.d))
    if call.name == "sub" or call.get("alpha") not in (None, 1):
        factor = -1 if call.name == "sub" else 1
        scaled = call.write(aten.mul.Scalar, other, factor * call["alpha"])
        return call.write(aten.add.Tensor, one, scaled)
    parts = [part for side in (one, other) for part in getattr(side, "parts", (side,))]
    return _together(parts, call)


def _same_places(one: Diagonal, other: Diagonal) -> bool:
    places = [(side.start, side.stop, side.offset, side.rest) for side in (one, other)]
    return one.is_stack and other.is_stack and places[0] == places[1]


def _together(parts: Sequence[Diagonal], call: Call) -> Diagonals | None:
    parts = sorted(parts, key=lambda part: part.offset)
    apart = all(one.offset + one.length <= other.offset for one, other in itertools.pairwise(parts))
    if not apart or len(parts) > _MOST_PARTS or not all(part.is_stack for part in parts):
        return None
    return Diagonals(tuple(parts), call.like)


def _distributed(call: Call, name: str, whole: Diagonals) -> Any:
    """A linear operation on a sum is the sum of what it makes of the parts."""
    results = []
    for part in whole.parts:
        result = diagonal(Call(call.write, call.target, {**call.arguments, name: part}, call.like))
        if not isinstance(result, Value):
            return None
        results.append(result)
    return functools.reduce(lambda one, other: call.write(aten.add.Tensor, one, other), results)


# --- elements in other places --------------------------------------------------------------------


def _reshape(call: Call, seeds: Diagonal) -> Diagonal:
    """Sides may be split and merged within left, core and right; else it is only seen differently."""
    write, shape = call.write, target_shape(call)
    cuts = _cuts(shape[1:], seeds) if shape[:1] == (seeds.seeds,) else None
    if cuts is None:
        like = write.fake(shape, seeds.like)
        return Diagonal(seeds.d, seeds.seeds, seeds.start, seeds.stop, seeds.offset, like)
    d = write.reshape(seeds.d, shape[1:])
    return seeds.changed(write, d, start=cuts[0], stop=cuts[1])


def _cuts(rest: Sequence[int], seeds: Diagonal) -> tuple[int, int] | None:
    """Where the core begins and ends in another shape of the same elements."""
    left, core = math.prod(seeds.left), seeds.length
    if math.prod(rest) != left * core * math.prod(seeds.right) or math.prod(rest) == 0:
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
    return seeds.changed(call.write, call.write.expand(seeds.d, shape[1:]))


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
    return seeds.changed(call.write, d, start=start, stop=start + len(core))


def _select(call: Call, seeds: Diagonal) -> Any:
    """One element of a core of one side is a row of the identity, whose core is empty."""
    dim = call["dim"] % seeds.like.dim() - 1
    if dim < 0:
        return None
    index = call["index"] % seeds.rest[dim]
    d = call.write(aten.select.int, seeds.d, dim, index)
    if dim >= seeds.stop:
        return seeds.changed(call.write, d)
    if dim < seeds.start:
        return seeds.changed(call.write, d, start=seeds.start - 1, stop=seeds.stop - 1)
    if dim != seeds.start:
        return None
    step = math.prod(seeds.core[1:])
    return seeds.changed(call.write, d, stop=seeds.stop - 1, offset=seeds.offset + index * step)


def _unbind(call: Call, seeds: Diagonal) -> Any:
    dim = call["dim"] % seeds.like.dim()
    parts = [
        call.write(aten.select.int, seeds, dim, index) for index in range(seeds.like.shape[dim])
    ]
    return parts or None


def _slice(call: Call, seeds: Diagonal) -> Any:
    """A range of elements, or of seeds."""
    if call["step"] != 1:
        return None
    dim, length = call["dim"] % seeds.like.dim(), seeds.like.shape[call["dim"]]
    first, last, _ = slice(call["start"], call["end"]).indices(length)
    if dim == 0:
        return _slice_seeds(call, seeds, first, last)
    d = call.write(aten.slice.Tensor, seeds.d, dim - 1, first, last)
    if not seeds.start <= dim - 1 < seeds.stop:
        return seeds.changed(call.write, d)
    if dim - 1 != seeds.start or first >= last:
        return None
    return seeds.changed(call.write, d, offset=seeds.offset + first * math.prod(seeds.core[1:]))


def _slice_seeds(call: Call, seeds: Diagonal, first: int, last: int) -> Any:
    begin, end = seeds.offset, seeds.offset + seeds.length
    if last <= begin or end <= first:
        return zeros_like(call.like)
    if begin < first or last < end:
        return None
    return Diagonal(seeds.d, last - first, seeds.start, seeds.stop, begin - first, call.like)


def _placed(call: Call) -> Any:
    """Seeds written into the rows of zeros; whoever fills the whole side replaces it."""
    dim, length = call["dim"], call.like.shape[call["dim"]]
    first, last, step = slice(call["start"], call["end"], call["step"]).indices(length)
    source = call["src"]
    if (first, last, step) == (0, length, 1):
        return call.write.cast(source, call.like)
    if dim != 0 or step != 1 or not is_zero(call["self"]) or not isinstance(source, Diagonal):
        return None
    if not source.is_stack or source.like.dtype != call.like.dtype:
        return None
    return replace(source, seeds=length, offset=source.offset + first, like=call.like)


def _split(call: Call, seeds: Diagonal) -> Any:
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
