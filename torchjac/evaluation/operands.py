"""Operands that have no tangent, kept out of forward mode's way.

NOTE [Operands without a tangent]
For an operand that has no tangent PyTorch makes a zero tensor, and asks a formula that is written in Python
what comes of it. In torch 2.13 ``d * 2.0`` takes 220 µs for a dual number d of ten elements, where ``d * d``
takes 4: most of a small forward pass is about its constants. These observations leave that out, and give
the same numbers:

- *Numbers.* ``aten::mul.Scalar`` does what ``aten::mul.Tensor`` does with the number as a tensor, and its
  formula has one operand, the dual number.
- *Tensors.* An operation is linear in the one operand that has a tangent, so the tangent of the result is
  the operation on that tangent: of d = (p, t) and a constant c it is (p * c, t * c). For a convolution this
  leaves out another one, of p with zeros, and a sum as large as the tangents.
- *Sums.* The tangent of d + c is that of d. PyTorch copies it, for either may be written into; where it is
  large it is lent instead, and copied when that happens.
- *Norms.* What follows a normalisation is linear, so its tangent is that of the normalisation without weight
  and bias, times the weight.
- *Powers and extremes.* Of d ** c PyTorch works out the slope in c as well, with a logarithm, and of maximum
  (d, c) the difference of two tangents. That of d is enough, times a slope which is the same for all seeds.

Operations are seen where the function calls them, through `torch.overrides`, and so are those that make a
constant. What PyTorch calls within operations of its own is left to PyTorch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from torchjac.foundations.lending import is_plain, lent

__all__ = ["Constants"]

Function: TypeAlias = Callable[..., Any]

_functorch: Any = torch._C._functorch
_aten: Any = torch.ops.aten
_make_dual: Any = torch._VF._make_dual
_unpack_dual: Any = torch._VF._unpack_dual

_PLAIN, _NUMBERS = (Tensor, Parameter), (int, float)
_ANY_CONSTANT = torch.zeros((), device="cpu")


def _level_before_torch_2_1() -> int:
    level: int = _functorch.peek_interpreter_stack().level()
    return level


_get_level = _functorch.maybe_get_level
_is_autocast = torch._C._is_any_autocast_enabled
_current_level = getattr(_functorch, "maybe_current_level", _level_before_torch_2_1)


class _Rule(NamedTuple):
    """How a tangent comes through an operation of which the other operands are constants."""

    operands: slice
    """Which of the arguments they are, among others that are no tensors."""
    linear: range
    """Those in which the operation is linear, but for what does not depend on them."""
    pushed: Callable[[Function, Tensor, int, Sequence[Any], Tensor], Tensor]
    """From the operation, the tangent, its place among the arguments, these and the value."""
    names: Sequence[tuple[str, Any]] = ()
    """Of all arguments, with their defaults, where they may come by keyword."""


def _product(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    found: Tensor = function(*args[:at], tangent, *args[at + 1 :])
    return found


def _sum(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    # Memory of its own, for the value may be written into, and its tangent with it.
    if value.numel() >= _MUCH and tangent.shape == value.shape and tangent.dtype == value.dtype:
        return _lent(tangent)
    return tangent.expand_as(value).to(value.dtype, copy=True)


def _lent(tangent: Tensor) -> Tensor:
    """A copy that is made when somebody writes into it, or into the tangent.

    PyTorch has no batching rule for such copies, so it is made of the memory within.
    """
    level = _get_level(tangent)
    inner = _functorch._unwrap_for_grad(tangent, level)
    is_stack = _functorch.is_batchedtensor(inner)
    memory = _functorch.get_unwrapped(inner) if is_stack else inner
    if memory.requires_grad or not memory.is_contiguous() or not is_plain(memory):
        return tangent.clone()
    copy = _functorch._unwrap_for_grad(lent(memory), level)
    if is_stack:
        batch = _get_level(inner)
        copy = _functorch._add_batch_dim(copy, _functorch.maybe_get_bdim(inner), batch)
    wrapped: Tensor = _functorch._wrap_for_grad(copy, level)
    return wrapped


def _difference(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    if at == 0:
        return _sum(function, tangent, at, args, value)
    return tangent.expand_as(value).neg().to(value.dtype)


def _affine(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    rest = [*args[:2], None, *args[3:]]  # without the bias
    found: Tensor = function(*rest[:at], tangent, *rest[at + 1 :])
    return found


def _power(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    exponent = args[1]
    slope: Tensor = exponent * _primal(args[0]) ** (exponent - 1)
    # The power of zero is a constant, at a base of zero too.
    return tangent * slope.masked_fill(exponent == 0, 0)


def _extreme(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    primal, other = _primal(args[at]), args[1 - at]
    # Both have a half where they are equal.
    chosen = (primal == value).to(value.dtype)
    return tangent * torch.where(primal == other, chosen / 2, chosen)


def _layer_norm(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    normalised = _tangent(function(*args[:2], None, None, *args[4:]))
    return _scaled(normalised, args[2], value)


def _rms_norm(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    return _scaled(_tangent(function(*args[:2], None, *args[3:])), args[2], value)


def _group_norm(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    apart = [*args[:2], _of_channels(args[2], value), *args[3:]]
    return _layer_norm(function, tangent, at, apart, value)


def _batch_norm(
    function: Function, tangent: Tensor, at: int, args: Sequence[Any], value: Tensor
) -> Tensor:
    _, mean, variance, weight, _, training, *rest = args
    if not training and mean is not None:
        # Of statistics that are constants it is linear but for the mean.
        found: Tensor = function(
            tangent, torch.zeros_like(mean), variance, weight, None, False, *rest
        )
        return found
    # Those that run have been brought up to date with the value.
    normalised = _tangent(function(args[0], None, None, None, None, True, *rest))
    return _scaled(normalised, _of_channels(weight, value), value)


def _primal(dual: Tensor) -> Tensor:
    return _unpack_dual(dual, level=0)[0]  # type: ignore[no-any-return]


def _tangent(dual: Tensor) -> Tensor:
    return _unpack_dual(dual, level=0)[1]  # type: ignore[no-any-return]


def _scaled(tangent: Tensor, weight: Tensor | None, value: Tensor) -> Tensor:
    return tangent if weight is None else (tangent * weight).to(value.dtype)


def _of_channels(weight: Tensor | None, value: Tensor) -> Tensor | None:
    # (C,) -> (C, 1, ...), beside (B, C, ...)
    return None if weight is None else weight.reshape(-1, *[1] * (value.dim() - 2))


def _less(x: Tensor, number: float) -> Tensor:
    if not (x.is_floating_point() or x.is_complex()):
        return x - number
    # aten::sub.Scalar hands on the tangent itself. What is added is a number of the other sign, of zeros too.
    found: Tensor = _aten.add.Scalar(x, -number if number else -float(number))
    return found


def _divided_by(x: Tensor, number: float) -> Tensor:
    found: Tensor = _aten.mul.Scalar(x.reciprocal(), number)
    return found


def _multiply(x: Tensor, number: float) -> Tensor:
    # Of half precision aten::mul_.Scalar rounds the number first.
    if x.dtype in (torch.float32, torch.float64):
        found: Tensor = _aten.mul_.Scalar(x, number)
        return found
    return x.mul_(number)


def _methods(*names: str) -> list[Function]:
    return [getattr(Tensor, name) for name in names]


def _table(*rows: tuple[Any, Sequence[Any]]) -> dict[Function, Any]:
    return {function: entry for entry, functions in rows for function in functions}


_SUMS = [torch.add, *_methods("add", "__add__", "__radd__")]
_DIFFERENCES = [torch.sub, torch.subtract, *_methods("sub", "subtract", "__sub__")]
_PRODUCTS = [torch.mul, torch.multiply, *_methods("mul", "multiply", "__mul__", "__rmul__")]
_QUOTIENTS = [
    *(torch.div, torch.divide, torch.true_divide),
    *_methods("div", "divide", "true_divide", "__div__", "__truediv__"),
]
_POWERS = [torch.pow, *_methods("pow", "__pow__")]
_EXTREMES = [torch.maximum, torch.minimum, *_methods("maximum", "minimum")]
_BILINEAR = [
    *(torch.matmul, torch.mm, torch.mv, torch.bmm, torch.dot, torch.inner, torch.outer),
    *_methods("matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "dot", "inner", "outer"),
    torch.linalg.cross,
]

_BY_NUMBERS: dict[Function, Function] = _table(
    (_aten.add.Scalar, _SUMS),
    (_less, _DIFFERENCES),
    (_aten.mul.Scalar, _PRODUCTS),
    (_aten.div.Scalar, _QUOTIENTS),
    (_divided_by, _methods("__rdiv__", "__rtruediv__")),
    (_aten.add_.Scalar, _methods("add_", "__iadd__")),
    (_aten.sub_.Scalar, _methods("sub_", "__isub__")),
    (_multiply, _methods("mul_", "__imul__")),
    (_aten.div_.Scalar, _methods("div_", "__idiv__", "__itruediv__")),
)
"""What an operation of a tensor and a number is, as one of the tensor alone."""

_TWO, _EITHER, _FIRST = slice(2), range(2), range(1)
_MUCH = 2**15  # of sums: to copy fewer takes no longer than not to


def _names(*required: str, **defaults: Any) -> list[tuple[str, Any]]:
    return [*((name, None) for name in required), *defaults.items()]


_LINEAR = _names("input", "weight", bias=None)
_CONVOLUTION = [*_LINEAR, *_names(stride=1, padding=0, dilation=1, groups=1)]
_TRANSPOSED = [*_LINEAR, *_names(stride=1, padding=0, output_padding=0, groups=1, dilation=1)]
_LAYER_NORM = _names("input", "normalized_shape", weight=None, bias=None, eps=1e-5)
_GROUP_NORM = _names("input", "num_groups", weight=None, bias=None, eps=1e-5)
_RMS_NORM = _names("input", "normalized_shape", weight=None, eps=None)
_BATCH_NORM = [
    *_names("input", "running_mean", "running_var", weight=None, bias=None),
    *_names(training=False, momentum=0.1, eps=1e-5),
]

_BY_TENSORS: dict[Function, _Rule] = _table(
    (_Rule(_TWO, _EITHER, _sum), _SUMS),
    (_Rule(_TWO, _EITHER, _difference), _DIFFERENCES),
    (_Rule(_TWO, _EITHER, _product), [*_PRODUCTS, *_BILINEAR]),
    (_Rule(_TWO, _FIRST, _product), _QUOTIENTS),
    (_Rule(_TWO, _FIRST, _power), _POWERS),
    (_Rule(_TWO, _EITHER, _extreme), _EXTREMES),
    (_Rule(slice(3), _EITHER, _affine, _LINEAR), [F.linear]),
    (_Rule(slice(3), _EITHER, _affine, _CONVOLUTION), [F.conv1d, F.conv2d, F.conv3d]),
    (
        _Rule(slice(3), _EITHER, _affine, _TRANSPOSED),
        [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d],
    ),
    (_Rule(slice(1, None), range(1, 100), _product), [torch.einsum]),
    (_Rule(slice(4), _FIRST, _layer_norm, _LAYER_NORM), [F.layer_norm]),
    (_Rule(slice(4), _FIRST, _group_norm, _GROUP_NORM), [F.group_norm]),
    (_Rule(slice(5), _FIRST, _batch_norm, _BATCH_NORM), [F.batch_norm]),
    # Of torch 2.4 and later.
    (_Rule(slice(3), _FIRST, _rms_norm, _RMS_NORM), [F.rms_norm] if hasattr(F, "rms_norm") else []),
)
"""What an operation of tensors is to a tangent of one of them."""

_LENDING = frozenset([*_SUMS, *_DIFFERENCES])
"""Those of which the result has the tangent of its operand."""

_MAKERS = frozenset(
    [
        *(torch.tensor, torch.as_tensor, torch.detach, torch.eye, torch.arange, torch.linspace),
        *(torch.zeros, torch.ones, torch.full),
        *(torch.zeros_like, torch.ones_like, torch.full_like),
        *_methods("new_zeros", "new_ones", "new_full", "new_tensor", "detach"),
    ]
)
"""What makes constants within the function, which may get tangents afterwards by being written into."""


# Operations that are looked at in the time that one operand without a tangent takes.
_WORTH = 32


class Constants(TorchFunctionMode):
    """Lets operations of dual numbers and constants be those of the dual numbers alone.

    See NOTE [Operands without a tangent].
    """

    _level, _grad_mode = -1, False
    _seen = _kept_apart = 0

    def __init__(self) -> None:
        self._made: dict[int, weakref.ref[Tensor]] = {}

    @property
    def are_worth_it(self) -> bool:
        """Whether enough operations had a constant: looking at one that has none takes time."""
        return self._kept_apart * _WORTH >= max(self._seen, 1)

    def of(self, level: int) -> Constants:
        """The same for the dual numbers of a level of `torch.func.jvp`."""
        self._level, self._grad_mode = level, torch.is_grad_enabled()
        return self

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self._seen += 1
        if not kwargs and func in _BY_NUMBERS and len(args) == 2:
            first, second = args
            if type(second) in _NUMBERS and type(first) in _PLAIN:
                of_numbers = _BY_NUMBERS[func]
                lends = func in _LENDING and first.numel() >= _MUCH
                if lends and self._only_dual((first, _ANY_CONSTANT), _TWO) == 0:
                    return self._pushed(_BY_TENSORS[func], of_numbers, args, 0)
                self._kept_apart += 1
                return of_numbers(first, second)
        rule = _BY_TENSORS.get(func)
        if rule is not None:
            ordered = _ordered(rule, args, kwargs) if kwargs else args
            at = self._only_dual(ordered, rule.operands)
            if at in rule.linear:
                return self._pushed(rule, func, ordered, at)
        result = func(*args, **kwargs) if kwargs else func(*args)
        if func in _MAKERS:
            self._made[id(result)] = weakref.ref(result)
        return result

    def _only_dual(self, args: Sequence[Any], operands: slice) -> int:
        """The place of the one operand that can have a tangent; -1 if there is none, several, or no other."""
        level, found, has_others = self._level, -1, False
        if _current_level() != level or torch.is_grad_enabled() is not self._grad_mode:
            # A dual number that is made here is a view, which cannot be written into in the other grad mode.
            return -1
        if _is_autocast():
            return -1  # what goes on in between is rounded less in PyTorch's formulas
        for place, arg in enumerate(args[operands], operands.start or 0):
            if type(arg) not in _PLAIN:
                if isinstance(arg, Tensor):
                    return -1
            # What the function makes is of its level too. Whether that has a tangent is dear to ask.
            elif _get_level(arg) == level and (arg.is_floating_point() or arg.is_complex()):
                if id(arg) in self._made and self._is_constant(arg):
                    has_others = True
                elif found >= 0:
                    return -1
                else:
                    found = place
            else:
                has_others = True
        return found if has_others else -1

    def _is_constant(self, made: Tensor) -> bool:
        """Whether it is what the function made, and nothing with a tangent was written into it."""
        return self._made[id(made)]() is made and _unpack_dual(made, level=0)[1] is None

    def _pushed(self, rule: _Rule, func: Function, args: Sequence[Any], at: int) -> Any:
        primal, tangent = _unpack_dual(args[at], level=0)
        if tangent is None:
            return func(*args)
        self._kept_apart += 1
        value = func(*args[:at], primal, *args[at + 1 :])
        return _make_dual(value, rule.pushed(func, tangent, at, args, value), level=0)


def _ordered(rule: _Rule, args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
    """All arguments by position; none where there are some of other names."""
    rest = dict(rule.names[len(args) :])
    return [*args, *(rest | kwargs).values()] if kwargs.keys() <= rest.keys() else ()
