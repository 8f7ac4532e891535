"""Graphs of small tensors as one run of scalar C++, without loops, buffers or zeros.

Inductor gives every intermediate tensor its own memory and its own loop, and leaves matrix products to
BLAS. Where tensors have a dozen elements, that costs a hundred times what they compute.

NOTE [Numbered expressions]
Every element of every tensor is an expression, which has a number; a tensor of the graph is an integer
tensor of those numbers. Whatever only moves elements (views, cat, pad, ...) is done once, by PyTorch
itself, to the numbers, and never again. For x = (x0, x1) and the graph of J = diag(2x):

    x            numbers (2, 3)               2: in0[0]   3: in0[1]
    mul(x, 2)    numbers (5, 6)               5: t2*2     6: t3*2
    diag_embed   numbers ((5, 0), (0, 6))     0: the constant zero, also what PyTorch pads numbers with

Equal expressions have one number. A factor that is the constant zero makes a zero, so the zeros of seeds
are gone, whatever they are multiplied with; and so is all that no result needs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate

__all__ = ["ScalarCode", "UnfitError", "straight_line"]

# The compiler takes a second for two thousand statements, and a loop is no slower from here on;
_MOST_STATEMENTS = 4000
# a call of a function counts as so many, for loops compute eight or sixteen of them at once.
_CALL = 20
# What is numbered, one by one, to find out how many statements there will be.
_MOST_ELEMENTS = 50_000

_TYPES = {torch.float32: "float", torch.float64: "double", torch.bool: "bool"}
_MOVES = frozenset(
    [
        *("alias", "cat", "clone", "constant_pad_nd", "detach", "diag_embed", "diagonal", "expand"),
        *("flip", "gather", "index", "index_select", "permute", "repeat", "reshape", "rev", "roll"),
        *("select", "select_backward", "select_scatter", "slice", "slice_backward"),
        *("slice_scatter", "split", "split_with_sizes", "squeeze", "stack", "t", "transpose"),
        *("tril", "triu", "unbind", "unsqueeze", "view", "_unsafe_view"),
    ]
)
_C_FUNCTIONS = (
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh"),
    *("atanh", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sqrt", "erf", "abs"),
    *("floor", "ceil", "trunc"),
)
# Of expressions, as C++ with their places; a NaN is never lost.
_FORMULAS = {
    **{name: f"std::{name}({{0}})" for name in _C_FUNCTIONS},
    "convert_element_type": "{0}",
    "_to_copy": "{0}",
    "reciprocal": "1 / {0}",
    "rsqrt": "1 / std::sqrt({0})",
    "sigmoid": "1 / (1 + std::exp(-{0}))",
    "sign": "({0} > 0) - ({0} < 0)",
    "relu": "{0} < 0 ? 0 : {0}",
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}",
    "minimum": "{0} < {1} || {0} != {0} ? {0} : {1}",
    "clamp_min": "{0} < {1} ? {1} : {0}",
    "clamp_max": "{0} > {1} ? {1} : {0}",
    "where": "{0} ? {1} : {2}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "atan2": "std::atan2({0}, {1})",
}


class UnfitError(Exception):
    """The graph is not one for scalar code: too much of it, or an operation that has no formula."""


class ScalarCode(NamedTuple):
    """A C++ function ``kernel`` of pointers: to all arguments, and then to all results."""

    pointers: list[str]
    """The types of its parameters."""
    source: str
    results: list[Tensor]
    """Fake ones, dense."""


def straight_line(graph: GraphModule, tensors: Sequence[Tensor]) -> ScalarCode:
    """Write a decomposed graph down as scalar C++.

    Raises:
        UnfitError: Inductor is to be asked instead.
    """
    _refuse_large(graph, tensors)
    numbering = _Numbering(graph)
    returned = numbering.run(*[numbering.load(at, like) for at, like in enumerate(tensors)])
    *_, output = graph.graph.nodes
    likes = [node.meta["val"].clone() for node in output.args[0]]
    stores = [
        _laid_out(numbering.numbers(value), like)
        for value, like in zip(returned, likes, strict=True)
    ]
    lines = list(_statements(numbering.tape, [n for numbers in stores for n in numbers]))
    lines += [
        f"out{at}[{offset}] = {numbering.tape.operand(number, like.dtype)};"
        for at, (numbers, like) in enumerate(zip(stores, likes, strict=True))
        for offset, number in enumerate(numbers)
    ]
    parameters = [(f"const {_TYPES[t.dtype]}*", f"in{at}") for at, t in enumerate(tensors)]
    parameters += [(f"{_TYPES[t.dtype]}*", f"out{at}") for at, t in enumerate(likes)]
    head = ", ".join(f"{kind} __restrict__ {name}" for kind, name in parameters)
    body = "\n    ".join(lines)
    source = f'#include <cmath>\nextern "C" void kernel({head})\n{{\n    {body}\n}}\n'
    return ScalarCode([kind for kind, _ in parameters], source, likes)


def _refuse_large(graph: GraphModule, tensors: Sequence[Tensor]) -> None:
    made = tuple(node.meta.get("val") for node in graph.graph.nodes)
    values = [*tensors, *_of_kind(made, Tensor)]
    if any(value.device.type != "cpu" or value.layout != torch.strided for value in values):
        raise UnfitError("it is not for the processor")
    if sum(value.numel() for value in values) > _MOST_ELEMENTS:
        raise UnfitError("it has too many elements")


def _laid_out(numbers: Tensor, like: Tensor) -> list[int]:
    """The numbers of a dense tensor in the order of its memory."""
    if like.dtype not in _TYPES:
        raise UnfitError(f"a result of {like.dtype}")
    memory = torch.empty_strided(like.shape, like.stride(), dtype=torch.int64)
    memory.copy_(numbers)
    found: list[int] = memory.as_strided((memory.numel(),), (1,)).tolist()
    return found


def _statements(tape: _Tape, wanted: list[int]) -> Iterator[str]:
    """What computes the wanted expressions, and what they are made of."""
    live: set[int] = set()
    while wanted:
        number = wanted.pop()
        if number not in live:
            live.add(number)
            wanted.extend(tape.made[number].operands)
    forms = [str(tape.made[number].form) for number in live]
    if sum(_CALL if "std::" in form else 1 for form in forms) > _MOST_STATEMENTS:
        raise UnfitError("it takes too many operations")
    for number in sorted(live):
        made = tape.made[number]
        if not isinstance(made.form, float):
            operands = [tape.operand(o, made.within or made.dtype) for o in made.operands]
            yield f"const {_TYPES[made.dtype]} t{number} = {made.form.format(*operands)};"


class _Made(NamedTuple):
    """An expression: a constant, or a formula of others."""

    form: str | float
    dtype: torch.dtype
    operands: tuple[int, ...] = ()
    within: torch.dtype | None = None
    """The type that constants among the operands have, where it is not that of the result."""


class _Tape:
    """All expressions, in the order in which they were made."""

    def __init__(self) -> None:
        self._known: dict[_Made, int] = {}
        self.made: list[_Made] = []
        self.zero, self.one = self.constant(0), self.constant(1)

    def put(self, made: _Made) -> int:
        number = self._known.setdefault(made, len(self.made))
        if number == len(self.made):
            self.made.append(made)
        return number

    def constant(self, value: float) -> int:
        if not math.isfinite(value):
            raise UnfitError("an infinite constant")
        return self.put(_Made(float(value) + 0.0, torch.float64))  # no negative zero

    def value(self, number: int) -> float | None:
        form = self.made[number].form
        return form if isinstance(form, float) else None

    def operand(self, number: int, dtype: torch.dtype) -> str:
        value = self.value(number)
        return f"t{number}" if value is None else f"{_TYPES[dtype]}({value!r})"

    def mul(self, dtype: torch.dtype, a: int, b: int) -> int:
        x, y = self.value(a), self.value(b)
        if self.zero in (a, b):
            return self.zero
        if x is not None and y is not None:
            return self.constant(x * y)
        if self.one in (a, b):
            return b if a == self.one else a
        return self.put(_Made("{0} * {1}", dtype, (min(a, b), max(a, b))))

    def add(self, dtype: torch.dtype, a: int, b: int) -> int:
        x, y = self.value(a), self.value(b)
        if x is not None and y is not None:
            return self.constant(x + y)
        if self.zero in (a, b):
            return b if a == self.zero else a
        return self.put(_Made("{0} + {1}", dtype, (min(a, b), max(a, b))))

    def neg(self, dtype: torch.dtype, a: int) -> int:
        x = self.value(a)
        return self.constant(-x) if x is not None else self.put(_Made("-{0}", dtype, (a,)))

    def sub(self, dtype: torch.dtype, a: int, b: int) -> int:
        if b == self.zero:
            return a
        return self.neg(dtype, b) if a == self.zero else self.put(_Made("{0} - {1}", dtype, (a, b)))

    def div(self, dtype: torch.dtype, a: int, b: int) -> int:
        if self.value(b) == 0:
            raise UnfitError("a division by zero")
        return a if a == self.zero or b == self.one else self.put(_Made("{0} / {1}", dtype, (a, b)))

    def pow(self, dtype: torch.dtype, a: int, b: int) -> int:
        exponent = self.value(b)
        if exponent in (0.0, 1.0, 2.0, 3.0):
            factors = [a] * int(exponent)
            return functools.reduce(functools.partial(self.mul, dtype), factors, self.one)
        return self.put(_Made("std::pow({0}, {1})", dtype, (a, b)))


@dataclass(frozen=True)
class _Numbers:
    """A tensor of the graph, element by element."""

    of: Tensor
    dtype: torch.dtype


class _Numbering(Interpreter):
    """Runs a graph on numbers; see NOTE [Numbered expressions]. Constants stay tensors of their own."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.tape = _Tape()

    def load(self, argument: int, like: Tensor) -> _Numbers:
        """The elements of an argument, read from its memory."""
        if like.dtype not in _TYPES:
            raise UnfitError(f"an argument of {like.dtype}")
        offsets = torch.zeros(like.shape, dtype=torch.int64, device="cpu")
        for dim, (side, stride) in enumerate(zip(like.shape, like.stride(), strict=True)):
            ahead = torch.arange(side, device="cpu") * stride
            # (side,) -> (side, 1, ..., 1)
            offsets = offsets + ahead.view(-1, *[1] * (like.dim() - dim - 1))

        def read(at: int) -> int:
            return self.tape.put(_Made(f"in{argument}[{at}]", like.dtype))

        return self._each(like.dtype, read, offsets)

    def numbers(self, value: Any) -> Tensor:
        """The numbers of any operand: a constant has the numbers of its elements."""
        if isinstance(value, _Numbers):
            return value.of
        if isinstance(value, Tensor):
            return self._each(value.dtype, self.tape.constant, value.to(torch.float64)).of
        return torch.tensor(self.tape.constant(value), device="cpu")

    def _each(self, dtype: torch.dtype, make: Callable[..., int], *tensors: Tensor) -> _Numbers:
        """Make an expression of each element and its partners, after broadcasting."""
        spread = torch.broadcast_tensors(*tensors)
        rows = zip(*[tensor.reshape(-1).tolist() for tensor in spread], strict=True)
        made = torch.tensor([make(*row) for row in rows], dtype=torch.int64, device="cpu")
        return _Numbers(made.view(spread[0].shape), dtype)

    def run_node(self, n: Node) -> Any:
        self._like = n.meta.get("val")
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(target, torch._ops.OpOverload):
            return target(*args, **kwargs)  # one of several results
        numbered = _of_kind((args, kwargs), _Numbers)
        if torch.Tag.nondeterministic_seeded in target.tags:
            raise UnfitError("it draws random numbers")
        if not numbered:
            return target(*args, **kwargs)
        name: str = target._schema.name.partition("::")[2]
        dtype = _of_kind(self._like, Tensor)[0].dtype
        if dtype not in _TYPES:
            raise UnfitError(f"{target} gives {dtype}")
        if name in _MOVES:
            return self._moved(name, target, dtype, args, kwargs)
        return self._computed(name, numbered[0].dtype, dtype, args, kwargs)

    def _moved(self, name: str, target: Any, dtype: torch.dtype, args: Any, kwargs: Any) -> Any:
        pads = name == "constant_pad_nd" and len(args) > 2 and args[2] != 0
        if pads or any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):
            raise UnfitError(f"{target} makes other elements")

        def numbered(value: Any) -> Any:
            constant = isinstance(value, Tensor) and (value.is_floating_point() or name == "cat")
            return self.numbers(value) if constant or isinstance(value, _Numbers) else value

        # A view of the graph's memory need not be one of the numbers', which lie as they come.
        move = torch.reshape if name in ("view", "_unsafe_view") else target
        options = {k: v for k, v in kwargs.items() if k != "memory_format"}
        result: Any = move(*map_aggregate(args, numbered), **map_aggregate(options, numbered))
        several = isinstance(result, (tuple, list))
        return [_Numbers(one, dtype) for one in result] if several else _Numbers(result, dtype)

    def _computed(
        self, name: str, before: torch.dtype, dtype: torch.dtype, args: Any, kwargs: Any
    ) -> _Numbers:
        tape = self.tape
        if name in ("sum", "mean", "amax", "amin"):
            return self._reduced(name, dtype, *args[:3])
        if name in ("mul", "add", "sub", "div", "pow", "neg"):
            if kwargs.get("rounding_mode"):
                raise UnfitError("a division that rounds has no formula")
            operands = [self.numbers(operand) for operand in args]
            if "alpha" in kwargs:
                scale, times = self.numbers(kwargs["alpha"]), functools.partial(tape.mul, dtype)
                operands[1] = self._each(dtype, times, scale, operands[1]).of
            return self._each(dtype, functools.partial(getattr(tape, name), dtype), *operands)
        if name == "where" and isinstance(args[0], Tensor):
            yes, no = map(self.numbers, args[1:])
            return _Numbers(torch.where(args[0], yes, no), dtype)
        if name in ("convert_element_type", "_to_copy"):
            args, kwargs = args[:1], {}
        if name not in _FORMULAS or kwargs:
            raise UnfitError(f"{name} has no formula")
        # What is compared or converted has another type than what comes of it.
        within = before if dtype == torch.bool or len(args) == 1 else dtype

        def formula(*operands: int) -> int:
            return tape.put(_Made(_FORMULAS[name], dtype, operands, within))

        return self._each(dtype, formula, *map(self.numbers, args))

    def _reduced(
        self, name: str, dtype: torch.dtype, x: Any, dims: Any = None, keepdim: bool = False
    ) -> _Numbers:
        tape, shape, rank = self.tape, x.of.shape, x.of.dim()
        over = sorted({dim % rank for dim in dims}) if dims else list(range(rank))
        kept = [dim for dim in range(rank) if dim not in over]
        count, rows = (math.prod(shape[dim] for dim in dims) for dims in (over, kept))
        # (*shape) -> (what is kept, what is reduced)
        table = x.of.permute(*kept, *over).reshape(rows, count).tolist()
        if name in ("amax", "amin"):
            form = _FORMULAS["maximum" if name == "amax" else "minimum"]
            made = [
                functools.reduce(lambda a, b: tape.put(_Made(form, dtype, (a, b))), row)
                for row in table
            ]
        else:
            add = functools.partial(tape.add, dtype)
            scale = tape.constant(1 / count if name == "mean" and count else 1)
            sums = [functools.reduce(add, row, tape.zero) for row in table]
            made = [tape.mul(dtype, scale, total) for total in sums]
        sides = [1 if dim in over else shape[dim] for dim in range(rank) if keepdim or dim in kept]
        return _Numbers(torch.tensor(made, dtype=torch.int64, device="cpu").view(sides), dtype)


def _of_kind(tree: Any, kind: type) -> list[Any]:
    found: list[Any] = []
    map_aggregate(tree, lambda leaf: found.append(leaf) if isinstance(leaf, kind) else None)
    return found
