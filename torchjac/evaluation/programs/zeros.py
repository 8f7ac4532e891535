"""Tensors with one number everywhere, zeros above all, and what operations on them come to.

A zero that is known from the structure is exact: it stays zero when it is multiplied with infinity or
NaN, as PyTorch's own efficient zero tensors do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchjac.evaluation.programs.noops import RESHAPES
from torchjac.evaluation.programs.rewriting import Call, Rewriter, Symbolic, Value

__all__ = ["Uniform", "is_zero", "uniform", "zeros_like"]

aten = torch.ops.aten
Number = bool | int | float | complex


@dataclass(frozen=True, eq=False)
class Uniform(Symbolic):
    """A tensor with ``number`` everywhere."""

    number: Number
    like: Tensor

    def dense(self, write: Rewriter) -> Value:
        given = {"dtype": self.like.dtype, "device": self.like.device}
        shape = list(self.like.shape)
        if self.number == 0:
            return write.raw(aten.zeros.default, shape, **given)
        return write.raw(aten.full.default, shape, self.number, **given)


def is_zero(value: Any) -> bool:
    """Whether a value, or a number, is known to be zero everywhere."""
    number = value.number if isinstance(value, Uniform) else value
    return isinstance(number, Number) and number == 0


def zeros_like(like: Any) -> Any:
    """Zeros for every tensor of a result."""
    if isinstance(like, (list, tuple)):
        return [zeros_like(one) for one in like]
    return Uniform(0, like) if isinstance(like, Tensor) else like


def uniform(call: Call) -> Any:
    """The rule of this file."""
    if call.name in _SOURCES:
        return _source(call)
    if call.name in _RULES:
        return _RULES[call.name](call)
    if call.name in _MOVES or call.name in RESHAPES:
        return _moved(call)
    if call.name in _LINEAR and is_zero(call[_LINEAR[call.name]]):
        return zeros_like(call.like)
    if call.name.endswith(("_backward", "_backward_data")):
        return _backward(call)
    return None


def _source(call: Call) -> Uniform | None:
    number = _SOURCES[call.name]
    if isinstance(number, str):
        number = call[number]
    plain = call.like.layout == torch.strided and isinstance(number, Number)
    return Uniform(number, call.like) if plain else None


# The number that each of these fills a tensor with, or the argument which says that.
_SOURCES: dict[str, Number | str] = {
    "zeros": 0,
    "zeros_like": 0,
    "new_zeros": 0,
    "_efficientzerotensor": 0,
    "_new_zeros_with_same_feature_meta": 0,
    "ones": 1,
    "ones_like": 1,
    "new_ones": 1,
    "full": "fill_value",
    "full_like": "fill_value",
    "new_full": "fill_value",
    "scalar_tensor": "s",
}


def _moved(call: Call) -> Any:
    """The elements in other places, in another number, or in other types."""
    value = call["self"]
    if not isinstance(value, Uniform):
        return None
    like = call.like
    if isinstance(like, (list, tuple)):
        return [Uniform(value.number, one) for one in like]
    if value.number != 0 and not _holds(like.dtype, value.number):
        return None
    return Uniform(value.number, like)


def _holds(dtype: torch.dtype, number: Number) -> bool:
    """Whether ``dtype`` has this number up to rounding."""
    return dtype.is_complex or (dtype.is_floating_point and not isinstance(number, complex))


_MOVES = frozenset(
    [
        *(
            "clone",
            "lift_fresh_copy",
            "contiguous",
            "_to_copy",
            "expand",
            "permute",
            "t",
            "transpose",
        ),
        *("select", "slice", "unbind", "split", "split_with_sizes", "diagonal", "flip", "roll"),
        *("repeat", "index_select", "gather", "index", "unfold"),
    ]
)

# Operations that are linear in the argument named, the others held.
_LINEAR = {
    **dict.fromkeys(("neg", "sum", "cumsum", "tril", "triu", "diag_embed", "trace"), "self"),
    **dict.fromkeys(
        ("_conj", "_conj_physical", "conj_physical", "real", "imag", "view_as_real"), "self"
    ),
}


def _backward(call: Call) -> Any:
    """The gradients of no gradient."""
    grads = [
        argument
        for name, argument in call.arguments.items()
        if name.startswith("grad") and argument is not None and not isinstance(argument, Number)
    ]
    first = next(iter(call.arguments))
    if not first.startswith("grad") or not grads or not all(map(is_zero, grads)):
        return None
    return zeros_like(call.like)


def _sum(call: Call) -> Any:
    """``x + 0`` is x, with the shape and the dtype of the sum."""
    one, other, alpha = call["self"], call["other"], call.get("alpha")
    alpha = 1 if alpha is None else alpha
    sign = -1 if call.name == "sub" else 1
    if is_zero(other) and isinstance(one, Value):
        return call.write.cast(one, call.like)
    if is_zero(one) and isinstance(other, Value):
        cast = call.write.cast(other, call.like)
        if sign * alpha == 1:
            return cast
        if alpha == 1:
            return call.write(aten.neg.default, cast)
        return call.write(aten.mul.Scalar, cast, sign * alpha)
    return None


def _product(call: Call) -> Any:
    """``x * 0`` is 0, ``x * 1`` is x, and any other number need not be a tensor."""
    one, other = call["self"], call["other"]
    if is_zero(one) or is_zero(other):
        return zeros_like(call.like)
    if isinstance(one, Uniform) and isinstance(other, Number):
        number = one.number * other
        return Uniform(number, call.like) if _holds(call.like.dtype, number) else None
    for factor, kept in ((other, one), (one, other)):
        if not isinstance(factor, Uniform) or not isinstance(kept, Value):
            continue
        if isinstance(kept, Uniform):
            number = factor.number * kept.number
            return Uniform(number, call.like) if _holds(call.like.dtype, number) else None
        if factor.number == 1:
            return call.write.cast(kept, call.like)
        if call.write.like(kept).dtype == call.like.dtype and call.like.is_floating_point():
            scaled = call.write(aten.mul.Tensor, kept, factor.number)
            return call.write.expand(scaled, call.like.shape)
    return None


def _quotient(call: Call) -> Any:
    if call.get("rounding_mode") is not None:
        return None
    if is_zero(call["self"]):
        return zeros_like(call.like)
    if isinstance(call["other"], Uniform) and call["other"].number == 1:
        return call.write.cast(call["self"], call.like)
    return None


def _power(call: Call) -> Any:
    """``x ** 0`` is 1 everywhere."""
    if is_zero(call["exponent"]) and not isinstance(call["self"], Number):
        return Uniform(1, call.like)
    return None


def _choice(call: Call) -> Any:
    """Where both sides are zero; the condition does not matter."""
    sides = [call["self"], call["value"] if call.name == "masked_fill" else call["other"]]
    if all(is_zero(side) for side in sides):
        return zeros_like(call.like)
    return None


def _matrix_product(call: Call) -> Any:
    names = [name for name in call.arguments if name in ("self", "mat2", "vec", "tensor")]
    return zeros_like(call.like) if any(is_zero(call[name]) for name in names) else None


def _added_product(call: Call) -> Any:
    """``addmm(x, a, 0)`` is x; ``addmm(0, a, b)`` is the product."""
    added, *factors = [a for a in call.arguments.values() if isinstance(a, Value)]
    if call["alpha"] != 1 or call["beta"] != 1:
        return None
    if any(map(is_zero, factors)):
        return call.write.cast(added, call.like)
    product = {"addmm": aten.mm, "baddbmm": aten.bmm, "addmv": aten.mv}[call.name]
    return call.write(product.default, *factors) if is_zero(added) else None


def _convolution(call: Call) -> Any:
    no_bias = call["bias"] is None or is_zero(call["bias"])
    if no_bias and (is_zero(call["input"]) or is_zero(call["weight"])):
        return zeros_like(call.like)
    return None


def _joined(call: Call) -> Any:
    return zeros_like(call.like) if all(map(is_zero, call["tensors"])) else None


def _padded(call: Call) -> Any:
    return zeros_like(call.like) if is_zero(call["self"]) and call["value"] == 0 else None


_RULES: dict[str, Callable[[Call], Any]] = {
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(("mm", "bmm", "mv", "dot"), _matrix_product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _added_product),
    **dict.fromkeys(("where", "masked_fill"), _choice),
    **dict.fromkeys(("cat", "stack"), _joined),
    "mul": _product,
    "div": _quotient,
    "pow": _power,
    "convolution": _convolution,
    "constant_pad_nd": _padded,
}
