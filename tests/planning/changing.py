"""Functions and what changes in what they reach: generators of a function first, then of a step each."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["CHANGES", "MATRIX"]

MATRIX = torch.eye(3)


def of_cell() -> Iterator[Any]:
    held: Any = torch.ones(2)

    def func(x: Tensor) -> Any:
        return x, held

    yield func
    things = torch.zeros(2), 1, 2, 1.0, True, None, "a", [MATRIX], (MATRIX,), nn.Linear(1, 1)
    for held in things:
        yield held
    del held
    yield
    held = 1
    yield


def of_list() -> Iterator[Any]:
    items: list[Any] = [torch.ones(2), [1, torch.ones(3)]]
    yield lambda x: items
    items[1][1] = torch.ones(3)
    yield
    items.append(2)
    yield
    items[1].insert(0, None)
    yield
    items.reverse()
    yield
    items.append(items)
    yield
    items.clear()
    yield


def of_one_list_for_another() -> Iterator[Any]:
    one, other = [MATRIX, 1], [MATRIX, 1]
    yield lambda x: (one, other)
    other = one
    yield other
    one = [MATRIX, 2]
    yield one


def of_tensor() -> Iterator[Any]:
    weight, bias = torch.ones(2), torch.ones(2, requires_grad=True)
    yield lambda x: (weight, bias)
    weight.requires_grad_()
    yield
    bias.requires_grad_(False)
    yield
    weight.data = torch.ones(5)
    yield


def of_parameter() -> Iterator[Any]:
    parameter = nn.Parameter(torch.ones(3))
    yield lambda x: parameter
    parameter.data = torch.ones(4)
    yield


def of_globals() -> Iterator[Any]:
    space: dict[str, Any] = {"torch": torch, "helper": lambda x: x, "n": 1}
    yield types.FunctionType(
        compile("lambda x: abs(helper(x)) + n", "", "eval").co_consts[0], space
    )
    space["n"] = 2
    yield
    space["abs"] = lambda x: x
    yield
    space["helper"] = torch.sin
    yield
    del space["n"]
    yield
    space["n"] = torch.ones(2)
    yield


def of_python_module() -> Iterator[Any]:
    module = types.ModuleType("constants")
    space: dict[str, Any] = {"constants": module}
    yield types.FunctionType(compile("lambda x: constants.n", "", "eval").co_consts[0], space)
    for module.n in (None, 1, MATRIX, None, torch.sin):  # type: ignore[attr-defined]
        yield
    space["constants"] = math
    yield


def of_python_module_in_a_closure() -> Iterator[Any]:
    module = types.ModuleType("constants")
    yield lambda x: module.n
    for module.n in (None, 1, 2, None, MATRIX, torch.sin, math):  # type: ignore[attr-defined]
        yield
    del module.n
    yield


def of_zero() -> Iterator[Any]:
    zero: Any = 0.0
    yield lambda x: x if math.copysign(1, zero) > 0 else -x
    for zero in (-0.0, 0, False):
        yield zero


def of_keys() -> Iterator[Any]:
    words: Any = {0.0: 1}
    yield lambda x: words
    for words in ({-0.0: 1}, {0: 1}, {False: 1}, {"": 1}, {"''": 1}):
        yield words


def of_defaults() -> Iterator[Any]:
    def func(x: Tensor, n: int = 1, weight: Tensor = MATRIX) -> Any:
        return x

    yield func
    func.__defaults__ = (2, MATRIX)
    yield
    func.__defaults__ = (2, torch.eye(3))
    yield
    func.__kwdefaults__ = {"n": 3}
    yield
    func.__kwdefaults__ = {"n": 4}
    yield
    func.mark = True  # type: ignore[attr-defined]
    yield


def of_code() -> Iterator[Any]:
    def helper(x: Tensor) -> Tensor:
        return x.sin()

    yield lambda x: helper(x)
    helper.__code__ = (lambda x: x.cos()).__code__
    yield


def of_library() -> Iterator[Any]:
    def stack(x: Tensor) -> Tensor:
        return x

    library = types.FunctionType(stack.__code__, {"__name__": "torch"}, "stack")
    space: dict[str, Any] = {"stack": library}
    yield types.FunctionType(compile("lambda x: stack(x)", "", "eval").co_consts[0], space)
    library.__code__ = (lambda x: -x).__code__
    yield


def of_library_closure() -> Iterator[Any]:
    n: Any = 1

    def stack(x: Tensor) -> Any:
        return n

    library = types.FunctionType(
        stack.__code__, {"__name__": "torch"}, "stack", None, stack.__closure__
    )
    space: dict[str, Any] = {"stack": library}
    yield types.FunctionType(compile("lambda x: stack(x)", "", "eval").co_consts[0], space)
    for n in (2, MATRIX):
        yield n


@dataclasses.dataclass(frozen=True)
class Numbers:
    n: int


def of_what_may_change_otherwise() -> Iterator[Any]:
    words, record = {"n": 1}, Numbers(1)
    partial, method = functools.partial(torch.roll, shifts=1), MATRIX.mul
    yield lambda x: (words, record, partial, method)
    words["n"] = 2
    yield
    object.__setattr__(record, "n", 2)
    yield
    partial.__setstate__((torch.roll, (), {"shifts": 2}, {}))
    yield
    method = torch.eye(3).mul
    yield method


def of_a_partial_itself() -> Iterator[Any]:
    func = functools.partial(torch.roll, shifts=1)
    yield func
    func.keywords["shifts"] = 2
    yield
    func.__setstate__((torch.roll, (), {"shifts": 3}, {}))
    yield


class Shifts(list[Any]):
    def roll(self, x: Tensor) -> Tensor:
        return torch.roll(x, self[0])


class Pair(NamedTuple):
    items: list[Any]

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.items[0]


def of_methods_themselves(take: Callable[[list[Any]], Any]) -> Iterator[Any]:
    items = Shifts([1])
    yield take(items)
    for items[0] in (2, torch.ones(2), torch.ones(2, requires_grad=True), "a"):
        yield


def of_a_built_in_method_itself() -> Iterator[Any]:
    matrix = torch.eye(3)
    yield matrix.mul
    matrix.requires_grad_()
    yield


CHANGES = [
    *(
        of_keys,
        of_python_module_in_a_closure,
        of_zero,
        of_a_partial_itself,
        of_a_built_in_method_itself,
    ),
    *[
        functools.partial(of_methods_themselves, take)
        for take in (
            lambda items: items.roll,
            Pair,
            lambda items: types.MethodType(lambda held, x: x * held[0], items),
        )
    ],
    *(of_cell, of_list, of_one_list_for_another, of_tensor, of_parameter, of_globals),
    *(of_python_module, of_defaults, of_code, of_library, of_library_closure),
    of_what_may_change_otherwise,
]
