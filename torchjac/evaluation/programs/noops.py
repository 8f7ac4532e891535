"""Operations that change nothing: copies, views of views, and arithmetic with neutral elements."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from torchjac.evaluation.programs.rewriting import Call, Rewriter, Value, same_layout

__all__ = ["RESHAPES", "noop", "order_of", "target_shape"]

aten = torch.ops.aten

RESHAPES = frozenset(
    ["view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "view_as"]
)
"""Operations that keep the elements in their order."""
_SAME = frozenset(["detach", "alias", "lift_fresh"])
_COPIES = frozenset(["clone", "lift_fresh_copy", "contiguous", "_to_copy"])
_PERMUTES = frozenset(["t", "transpose", "permute", "numpy_T"])


def noop(call: Call) -> Any:
    """The rule of this file."""
    if call.name in _SAME:
        return call["self"]
    if call.name in RESHAPES and "dtype" not in call.arguments:
        return _reshape(call.write, call["self"], target_shape(call))
    if call.name in _PERMUTES:
        return _permute(call.write, call["self"], order_of(call))
    if call.name in _COPIES:
        return _copy(call)
    if call.name == "expand":
        return _expand(call)
    if call.name in _BROADCASTING:
        return _broadcast(call) or _neutral(call)
    if call.name in ("pow", "neg"):
        return _neutral(call)
    if call.name == "mm" and call.write.shape(call["mat2"])[0] == 1:
        return call.write(aten.mul.Tensor, call["self"], call["mat2"])
    if call.name == "slice":
        return call["self"] if call.like.shape == call.write.like(call["self"]).shape else None
    if call.name == "copy":
        return call.write.cast(call["src"], call.like)
    if call.name == "sum" and call.get("dim") is not None:
        return _sum_of_one(call)
    return None


def target_shape(call: Call) -> tuple[int, ...]:
    """The shape that a reshape comes to."""
    given = call.get("size") if call.name != "reshape" else call.get("shape")
    if given is None:
        return tuple(call.like.shape)
    if -1 not in given:
        return tuple(given)
    rest = math.prod(side for side in given if side != -1)
    total = math.prod(call.write.shape(call["self"]))
    return tuple(total // max(rest, 1) if side == -1 else side for side in given)


def _reshape(write: Rewriter, value: Value, shape: tuple[int, ...]) -> Value | None:
    """``reshape(reshape(x))`` is one reshape, or none, and where strides allow it is a view.

    A copy that only made the view possible is left out: the reshape makes it where it is needed.
    """
    if not isinstance(value, Node):
        return None
    source = value
    while _is_call(source, "view", "reshape", "clone"):
        source = source.args[0]  # type: ignore[assignment]
    if write.shape(source) == shape:
        return source
    like = write.can_view(source, shape)
    # Two reshapes that need a copy share it.
    copy = write.remember(("copy", source)) if like is None else None
    if copy is not None:
        source, like = copy, write.can_view(copy, shape)
    if like is not None:
        return _written(write, "view", source, list(shape), like)
    node = _written(write, "reshape", source, list(shape), write.fake(shape, write.like(source)))
    return write.remember(("copy", source), node)


def _written(write: Rewriter, name: str, source: Node, argument: list[int], like: Any) -> Node:
    target = getattr(aten, name).default
    arguments = {"self": source, "shape" if name == "reshape" else "size": argument}
    node: Node = write.write(Call(write, target, arguments, like))
    return node


def order_of(call: Call) -> tuple[int, ...]:
    """Which dimension of the operand each one of the result is."""
    rank = len(call.write.shape(call["self"]))
    order = list(range(rank))
    if call.name == "permute":
        return tuple(dim % rank for dim in call["dims"])
    if call.name == "transpose":
        if rank:
            one, other = call["dim0"] % rank, call["dim1"] % rank
            order[one], order[other] = other, one
        return tuple(order)
    return tuple(reversed(order))


def _permute(write: Rewriter, value: Value, order: tuple[int, ...]) -> Value | None:
    """``permute(permute(x))`` is one permutation, and one that only moves sides of 1 is a view."""
    if not isinstance(value, Node):
        return None
    while _is_call(value, "permute", "t"):
        inner: Any = value.args[1] if len(value.args) > 1 else (1, 0)
        order = tuple(inner[dim] for dim in order)
        value = value.args[0]  # type: ignore[assignment]
    shape = write.shape(value)
    long = [dim for dim in order if shape[dim] != 1]
    if long == sorted(long):
        return _reshape(write, value, tuple(shape[dim] for dim in order))
    if order == (1, 0):
        return write.write(Call(write, aten.t.default, {"self": value}))  # type: ignore[no-any-return]
    arguments = {"self": value, "dims": list(order)}
    return write.write(Call(write, aten.permute.default, arguments))  # type: ignore[no-any-return]


def _copy(call: Call) -> Value | None:
    """A copy into the same layout: nothing in the graph can tell it from the original."""
    value = call["self"]
    if not isinstance(value, Value):
        return None  # a number
    before = call.write.like(value)
    if before.layout != torch.strided or call.like.layout != torch.strided:
        return None
    if isinstance(value, Node) and not same_layout(before, call.like):
        return None
    if before.is_conj() or before.is_neg():
        return None
    alike = before.dtype == call.like.dtype and before.device == call.like.device
    return value if alike else None


def _is_call(node: Any, *names: str) -> bool:
    return isinstance(node, Node) and any(
        node.target is getattr(aten, name).default for name in names
    )


def _expand(call: Call) -> Value | None:
    """``expand(expand(x))`` is one expansion, or none."""
    value, shape = call["self"], tuple(call.like.shape)
    if call.write.shape(value) == shape:
        return value  # type: ignore[no-any-return]
    if _is_call(value, "expand"):
        return call.write.expand(value.args[0], shape)  # type: ignore[no-any-return]
    return None


_BROADCASTING = frozenset(["add", "sub", "mul", "div", "tanh_backward", "sigmoid_backward"])


def _broadcast(call: Call) -> Value | None:
    """An operand need not be expanded where the others have the shape of the result."""
    tensors = {name: a for name, a in call.arguments.items() if isinstance(a, Node)}
    likes = {name: call.write.like(tensor) for name, tensor in tensors.items()}
    if len({like.dtype for like in likes.values()}) != 1:
        return None
    for name, tensor in tensors.items():
        if not _is_call(tensor, "expand"):
            continue
        shapes = [like.shape for other, like in likes.items() if other != name]
        source: Any = tensor.args[0]
        if torch.broadcast_shapes(call.write.shape(source), *shapes) == call.like.shape:
            return call.again(**{name: source})  # type: ignore[no-any-return]
    return None


# Operations with a number, and the number that makes them do nothing.
_NEUTRAL = {"mul": 1, "div": 1, "add": 0, "sub": 0, "pow": 1}


def _neutral(call: Call) -> Value | None:
    """``x * 1``, ``x + 0``, ``x ** 1``, ``-(-x)``."""
    if call.name not in _NEUTRAL and call.name != "neg":
        return None
    value = call["self"]
    if call.name == "neg":
        return value.args[0] if _is_call(value, "neg") else None
    number = call.get("exponent") if call.name == "pow" else call.get("other")
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        return None
    if not isinstance(value, Node) or call.get("rounding_mode") is not None:
        return None
    if number != _NEUTRAL[call.name]:
        return None
    return value if call.write.like(value).dtype == call.like.dtype else None


def _sum_of_one(call: Call) -> Value | None:
    """A sum over sides of length 1."""
    shape, dims = call.write.shape(call["self"]), call["dim"]
    if not dims or not shape or any(shape[dim] != 1 for dim in dims):
        return None
    value = call.write.reshape(call["self"], call.like.shape)
    return call.write.cast(value, call.like)  # type: ignore[no-any-return]
