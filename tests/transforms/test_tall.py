"""Tall Jacobians, whose columns `mode="auto"` takes in forward mode: one pass on dual numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac
from tests.counted import Counted

T = torch.linspace(0, 1, 1000, dtype=torch.float64)
X = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)


def curve(x: Tensor) -> Tensor:
    return x[0] * torch.exp(x[1] * T) + torch.sin(x[2] * T)


def reference(func: Callable[..., Any]) -> Callable[..., Any]:
    return torchjac.jac(func, mode="reverse", chunk_size=1, check="never")


def passes(transform: Callable[..., Any], func: Callable[..., Any], *args: Any, **how: Any) -> Any:
    """How often a later call evaluates ``func``, and goes backward over its output."""
    counted = Counted(func)
    derivative = transform(counted, **how)
    for _ in range(3):
        derivative(*args)
    counted.reset()
    derivative(*args)
    return counted.evaluations, counted.passes


def of_samples(x: Tensor) -> Tensor:
    return torch.exp(x[:, :1] * T) + torch.sin(x[:, 1:2] * T) * x[:, 2:]


@pytest.mark.parametrize(
    ("transform", "func", "args", "how"),
    [
        (torchjac.jac, curve, (X,), {}),
        (torchjac.jac, curve, (X,), {"check": "never"}),
        (torchjac.jac, curve, (X,), {"return_value": True}),
        (torchjac.batched_jac, of_samples, (X.expand(4, 3),), {"per_sample": False}),
        (torchjac.jac, lambda x: torch.sin(x * T), (X[0],), {}),
    ],
)
def test_all_columns_are_one_evaluation(
    transform: Any, func: Any, args: Any, how: dict[str, Any]
) -> None:
    assert passes(transform, func, *args, **how) == (1, 0)


class Exp(torch.autograd.Function):
    """It has a derivative of the first order, in reverse alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return cotangent.detach() * output

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        raise NotImplementedError


class Sine(torch.autograd.Function):
    """The sine, whose derivative ends at its second order; its forward rule is right."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return cotangent.detach() * x.cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * x.cos()


@pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning")
@pytest.mark.parametrize("check", ["first", "never"])
def test_functions_of_the_user_are_not_believed(check: Any) -> None:
    def func(x: Tensor) -> Tensor:
        return Exp.apply(x[0] * T) * x[1:].sum()

    torch.testing.assert_close(torchjac.jac(func, check=check)(X), reference(func)(X))


def test_a_function_that_comes_to_be_another() -> None:
    """At one draw, and never by what a custom function does backwards."""
    is_other: list[bool] = []

    def func(x: Tensor) -> Tensor:
        y = Sine.apply(x[0] * T) if is_other else torch.sin(x[0] * T)
        return y * x[1:].sum() * torch.rand(1000, dtype=T.dtype)

    derivative = torchjac.jac(func)
    for other in (False, False, False, True, True, False):
        is_other[:] = [True] * other
        torch.manual_seed(1)
        got = derivative(X)
        torch.manual_seed(1)
        torch.testing.assert_close(got, reference(func)(X))


PLACES = torch.arange(1000) % 3
KINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "powers": lambda x: (x[PLACES] * T + x[0]) ** PLACES,
    "powers by themselves": lambda x: x[PLACES] ** x[PLACES] * T,
    "squares": lambda x: (x[PLACES] * T) ** 2 + x[0] ** 3,
    "sinc": lambda x: torch.sinc(x[0] * (T + 1)) * x[1] * x[2],
    "xlogy": lambda x: torch.xlogy(x[PLACES], 0.0) + T,
    "roots": lambda x: torch.sqrt(x[PLACES] * T) + torch.hypot(x[0] * T, x[1]),
    "bounds": lambda x: torch.clamp(x[PLACES] * T, 0, 1) + torch.relu(x[0] * T) + abs(x[1]),
    "ties": lambda x: torch.maximum(x[PLACES], x[0] * T),
    "logarithms": lambda x: torch.log(x[PLACES]) * T + torch.where(x[0] > 0, x[1] / x[0], x[1]),
}


@pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning")
@pytest.mark.parametrize("first", [X, torch.zeros_like(X)], ids=["later", "at once"])
@pytest.mark.parametrize("name", KINKS)
def test_points_where_a_backward_formula_is_masked(name: str, first: Tensor) -> None:
    """What one of the modes has a number for is never nan."""
    func, zero = KINKS[name], torch.zeros_like(X)
    derivative = torchjac.jac(func)
    for _ in range(3):
        derivative(first)
    got, rows = derivative(zero), reference(func)(zero)
    columns = torchjac.jac(func, mode="forward", check="never")(zero)
    matches = [torch.isclose(got, one, equal_nan=True) for one in (rows, columns)]
    assert (matches[0] | matches[1]).all()


# --- What a result is ------------------------------------------------------------------------------


def test_results_carry_a_graph_where_others_do() -> None:
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def func(x: Tensor) -> Tensor:
        return torch.exp(x[0] * T * weight[0]) + (x[1] * weight[1] * T).sin() * x[2]

    derivative = torchjac.jac(func, return_value=True)
    for _ in range(4):
        value, got = derivative(X)
        assert not value.requires_grad
        assert not got.requires_grad
    x = X.clone().requires_grad_()
    weight.requires_grad_()
    for _ in range(4):
        value, got = derivative(x)
        expected = torch.func.jacrev(func)(x)
        torch.testing.assert_close(value, func(x))
        for one, other in zip(
            torch.autograd.grad((got**2).sum(), (x, weight)),
            torch.autograd.grad((expected**2).sum(), (x, weight)),
            strict=True,
        ):
            torch.testing.assert_close(one, other)
        with torch.no_grad():
            assert not derivative(x)[1].requires_grad


def test_modules_and_their_parameters() -> None:
    net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 700)).double()
    derivative = torchjac.jac(net)
    for _ in range(3):
        got = derivative(X)
    expected = torch.func.jacrev(net)(X)
    torch.testing.assert_close(got, expected)
    theirs = torch.autograd.grad(expected.square().sum(), list(net.parameters()), allow_unused=True)
    ours = torch.autograd.grad(got.square().sum(), list(net.parameters()), allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        if other is None:
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one, other)


def test_within_other_transforms() -> None:
    derivative, expected = torchjac.jac(curve), reference(curve)(X)
    for _ in range(3):
        torch.testing.assert_close(derivative(X), expected)
    torch.testing.assert_close(torch.func.vmap(derivative)(X[None])[0], expected)
    second = torch.func.jacfwd(torch.func.jacfwd(curve))(X)
    torch.testing.assert_close(torch.func.jacfwd(derivative)(X), second)
    torch.testing.assert_close(torchjac.jac(derivative)(X), second)
    torch.testing.assert_close(torchjac.jac(derivative, mode="forward")(X), second)
    summed = torch.func.grad(lambda x: derivative(x).sum())(X)
    torch.testing.assert_close(summed, second.sum((0, 1)))


def test_sparse_columns() -> None:
    def func(x: Tensor) -> Tensor:
        return (x[:2, None] * T).sin().flatten() * x[2]

    pattern = torch.zeros(2000, 3).bool()
    pattern[:1000, 0] = pattern[1000:, 1] = pattern[:, 2] = True
    derivative = torchjac.jac(func, sparsity=pattern)
    for _ in range(4):
        torch.testing.assert_close(derivative(X), reference(func)(X))
    assert passes(torchjac.jac, func, X, sparsity=pattern) == (1, 0)
