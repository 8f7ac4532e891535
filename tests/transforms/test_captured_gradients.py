"""However a function finds a tensor that requires grad, its Jacobian can be differentiated by it."""

import dataclasses
import functools
import itertools
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac
from torchjac.evaluation import engines

X = torch.linspace(0.5, 2, 3, dtype=torch.float64)


def weight() -> Tensor:
    return torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)


GLOBAL = weight()
LISTED = [1.0, [{"w": GLOBAL}]]


def uses_global(x: Tensor) -> Tensor:
    return x**2 * GLOBAL


def uses_listed(x: Tensor) -> Tensor:
    return x**2 * LISTED[1][0]["w"]  # type: ignore[index]


def uses_globals(x: Tensor) -> Any:
    return x**2 * globals()["GLO" + "BAL"]


def uses_import(x: Tensor) -> Any:
    from tests.transforms import test_captured_gradients

    return x**2 * test_captured_gradients.GLOBAL


def uses_getattr(x: Tensor) -> Any:
    return x**2 * getattr(sys.modules[__name__], "GLO" + "BAL")


def calls_another(x: Tensor) -> Tensor:
    return uses_global(x)


elsewhere = types.ModuleType("elsewhere")
elsewhere.inner = types.ModuleType("elsewhere.inner")  # type: ignore[attr-defined]
elsewhere.w = elsewhere.inner.w = GLOBAL  # type: ignore[attr-defined]


def uses_module(x: Tensor) -> Any:
    return x**2 * elsewhere.w


def uses_module_within(x: Tensor) -> Any:
    return x**2 * elsewhere.inner.w


@dataclasses.dataclass(frozen=True)
class Record:
    w: Tensor


class Slotted:
    __slots__ = ("w",)

    def __init__(self, w: Tensor) -> None:
        self.w = w


class Holder:
    def __init__(self, w: Tensor) -> None:
        self.w = w

    def scaled(self, x: Tensor) -> Tensor:
        return x**2 * self.w

    def __call__(self, x: Tensor) -> Tensor:
        return self.scaled(x)


class Scale(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x**2 * self.w


class Own(Tensor):
    """A subclass of tensors."""


def closure(held: Any, get: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
    def func(x: Tensor) -> Tensor:
        return x**2 * get(held)

    return func


def default(w: Tensor) -> Callable[[Tensor], Tensor]:
    def func(x: Tensor, w: Tensor = w) -> Tensor:
        return x**2 * w

    return func


def keyword(w: Tensor) -> Callable[[Tensor], Tensor]:
    def func(x: Tensor, *, w: Tensor = w) -> Tensor:
        return x**2 * w

    return func


def direct(w: Tensor) -> Callable[[Tensor], Tensor]:
    def func(x: Tensor) -> Tensor:
        return x**2 * w

    return func


class Labelled(dict):  # type: ignore[type-arg]
    """A dict with attributes."""


def attribute_of_itself(w: Tensor) -> Callable[[Tensor], Tensor]:
    def func(x: Tensor) -> Any:
        return x**2 * func.w  # type: ignore[attr-defined]

    func.w = w  # type: ignore[attr-defined]
    return func


def attribute_of_a_dict(w: Tensor) -> Callable[[Tensor], Tensor]:
    labelled = Labelled()
    labelled.w = w  # type: ignore[attr-defined]
    return closure(labelled, lambda held: held.w)


def default_object(w: Tensor) -> Callable[[Tensor], Tensor]:
    def func(x: Tensor, holder: Holder = Holder(w)) -> Tensor:  # noqa: B008
        return holder.scaled(x)

    return func


WAYS: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
    "closure": direct,
    "default": default,
    "keyword": keyword,
    "tuple": lambda w: closure((1, w), lambda held: held[1]),
    "dict in a list": lambda w: closure([{"w": w}], lambda held: held[0]["w"]),
    "long list": lambda w: closure([0.0] * 100 + [w], lambda held: held[100]),
    "list of objects": lambda w: closure([Slotted(w)], lambda held: held[0].w),
    "default object": default_object,
    "record in a record": lambda w: closure(Record(Record(w)), lambda held: held.w.w),  # type: ignore[arg-type]
    "attribute of itself": attribute_of_itself,
    "attribute of a dict": attribute_of_a_dict,
    "attribute of a class": lambda w: closure(type("C", (), {"w": w}), lambda held: held.w),
    "iterator": lambda w: closure(itertools.repeat(w), next),
    "set": lambda w: closure({w}, lambda held: next(iter(held))),
    "frozen record": lambda w: closure(Record(w), lambda held: held.w),
    "slots": lambda w: closure(Slotted(w), lambda held: held.w),
    "attribute": lambda w: closure(Holder(w), lambda held: held.w),
    "namespace": lambda w: closure(types.SimpleNamespace(w=w), lambda held: held.w),
    "method": lambda w: Holder(w).scaled,
    "callable object": lambda w: Holder(w),
    "partial": lambda w: functools.partial(lambda w, x: x**2 * w, w),
    "partial keyword": lambda w: functools.partial(lambda x, w: x**2 * w, w=w),
    "function in a closure": lambda w: closure(direct(w), lambda held: held(X.new_ones(3))),
    "bound method of a tensor": lambda w: closure(w.mul, lambda held: held(1)),
    "computed": lambda w: direct(w * 1),
    "view": lambda w: direct(w[:]),
    "subclass": lambda w: direct(w.as_subclass(Own)),
    "wrapped": lambda w: functools.wraps(uses_global)(direct(w)),
    "cached": lambda w: closure(functools.lru_cache(lambda: w), lambda held: held()),
}
GLOBALS = [
    *(uses_global, uses_listed, uses_globals, uses_import, uses_getattr, calls_another),
    *(uses_module, uses_module_within),
]


def assert_differentiable(derivative: Callable[[], Any], w: Tensor) -> None:
    for _ in range(2):
        jacobian = derivative()
        (by_w,) = torch.autograd.grad(jacobian.sum(), w, retain_graph=True)
        torch.testing.assert_close(by_w, 2 * X)


@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_function_holds(way: str, mode: Any) -> None:
    w = weight()
    func = WAYS[way](w)
    assert_differentiable(lambda: torchjac.jac(func, mode=mode)(X).as_subclass(Tensor), w)


@pytest.mark.parametrize("func", GLOBALS)
def test_what_a_function_finds(func: Callable[[Tensor], Tensor]) -> None:
    assert_differentiable(lambda: torchjac.jac(func)(X), GLOBAL)


def test_a_module() -> None:
    net = Scale(weight())
    assert_differentiable(lambda: torchjac.jac(net)(X), net.w)
    assert_differentiable(lambda: torchjac.jac(lambda x: net(x))(X), net.w)
    assert_differentiable(lambda: torchjac.jac(net.forward)(X), net.w)


def test_other_arguments() -> None:
    w = weight()
    assert_differentiable(lambda: torchjac.jac(lambda x, w: x**2 * w)(X, w), w)
    assert_differentiable(lambda: torchjac.jac(lambda x, w: x**2 * w["w"][0])(X, {"w": [w]}), w)
    assert_differentiable(lambda: torchjac.jac(lambda x, *, w: x**2 * w)(X, w=w), w)
    assert_differentiable(lambda: torchjac.jac(lambda x, h: h.scaled(x))(X, Holder(w)), w)


def test_what_requires_grad_only_later() -> None:
    w = weight().detach()
    derivative = torchjac.jac(lambda x: x**2 * w)
    assert not derivative(X).requires_grad
    w.requires_grad_()
    assert_differentiable(lambda: derivative(X), w)


def test_of_a_function_that_holds_nothing_the_graph_is_not_walked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "captures", lambda *_: pytest.fail("walked"))
    matrix = torch.eye(3, dtype=torch.float64)
    parts = [matrix, {"power": 2}]
    for func in (
        torch.sin,
        lambda x: matrix @ x.sin(),
        lambda x: parts[0] @ x ** parts[1]["power"],
    ):
        for _ in range(2):
            torchjac.jac(func, check="never")(X)
