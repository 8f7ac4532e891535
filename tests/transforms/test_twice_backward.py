"""Columns by going backward twice, which `mode="auto"` takes for tall Jacobians of elementary functions."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchjac
from tests.counted import Counted
from torchjac.evaluation.evaluator import assemble, run
from torchjac.evaluation.transposed import NotElementaryError, Transposed
from torchjac.foundations.layout import Layout
from torchjac.foundations.pytree import flatten
from torchjac.foundations.seeds import IdentitySeeds
from torchjac.testing import strategies

CLOSE = {"rtol": 1e-7, "atol": 1e-9, "equal_nan": True}
FILTERED = [HealthCheck.filter_too_much]  # many programs are not elementary
T = torch.linspace(0, 1, 1000, dtype=torch.float64)
X = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)


def curve(x: Tensor) -> Tensor:
    return x[0] * torch.exp(x[1] * T) + torch.sin(x[2] * T)


def reference(func: Callable[..., Any]) -> Callable[..., Any]:
    return torchjac.jac(func, mode="reverse", chunk_size=1, check="never")


def elementary(func: Callable[..., Any], args: Sequence[Tensor], chunk_size: int | None) -> Any:
    """The leaves ``[output][input]``."""

    def flat(leaves: Sequence[Tensor]) -> Any:
        return tuple(flatten(func(*[leaf.clone() for leaf in leaves]))[0]), ()

    try:
        engine = Transposed(flat, args)
    except NotElementaryError:
        reject()
    assert not engine.evaluates_anew
    blocks = run(engine, IdentitySeeds(Layout(args)), chunk_size)
    return assemble(blocks, engine, args, batched=False)


@settings(suppress_health_check=FILTERED)
@given(strategies.programs_with_arguments(), st.sampled_from([None, 1, 2]))
def test_equals_plain_backward_passes(case: Any, chunk_size: int | None) -> None:
    program, args = case
    if not all(isinstance(arg, Tensor) for arg in args):
        reject()
    found = elementary(program, args, chunk_size)
    for number in range(len(args)):
        leaves = flatten(torchjac.jac(program, number, mode="reverse", chunk_size=1)(*args))[0]
        for row, leaf in zip(found, leaves, strict=True):
            torch.testing.assert_close(row[number], leaf, **CLOSE)


@settings(suppress_health_check=FILTERED)
@given(strategies.programs_with_arguments(smooth=True))
def test_is_differentiable_as_often(case: Any) -> None:
    program, args = case
    if not all(isinstance(arg, Tensor) for arg in args):
        reject()
    points = [arg.clone().requires_grad_() for arg in args]
    rows = elementary(program, points, None)
    expected = torchjac.jac(program, tuple(range(len(args))), mode="reverse", chunk_size=1)(*points)
    torch.manual_seed(0)
    ours, theirs = [leaf for row in rows for leaf in row], flatten(expected)[0]
    weights = [torch.randn_like(leaf) for leaf in ours]
    gradients = []
    for leaves in (ours, theirs):
        total = sum(
            ((leaf * w).sum() for leaf, w in zip(leaves, weights, strict=True)), points[0].sum()
        )
        found = torch.autograd.grad(total, points, allow_unused=True)
        gradients.append([torch.zeros(()) if g is None else g for g in found])
    for one, other, point in zip(*gradients, points, strict=True):
        a, b = one.expand_as(point), other.expand_as(point)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, equal_nan=True, check_dtype=False)


# --- Which calls go backward twice -----------------------------------------------------------------


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


BANDED = torch.ones(1000, 3).bool()


@pytest.mark.parametrize(
    ("transform", "func", "args", "how"),
    [
        (torchjac.jac, curve, (X,), {}),
        (torchjac.jac, curve, (X,), {"check": "never"}),
        (torchjac.jac, curve, (X,), {"return_value": True}),
        (torchjac.batched_jac, of_samples, (X.expand(4, 3),), {"per_sample": False}),
    ],
)
def test_where_it_is_taken(transform: Any, func: Any, args: Any, how: dict[str, Any]) -> None:
    assert passes(transform, func, *args, **how) == (1, 1)


class Exp(torch.autograd.Function):
    """Of the name of one of PyTorch's, whose derivative ends at its second order."""

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


def convolved(x: Tensor) -> Tensor:
    return torch.nn.functional.conv_transpose1d(x.view(1, 1, 3), T[None, None]).flatten()


@pytest.mark.parametrize(
    ("func", "how"),
    [
        (curve, {"mode": "forward"}),
        (lambda x: T * x.sum(), {"argnums": 0, "chunk_size": 1}),
        (lambda x: torch.cat([x] * 400).sin(), {}),
        (lambda x: torch.special.i0(x[0] * T) * x[1:].sum(), {}),
        (convolved, {}),
    ],
    ids=["forward mode", "no vmap", "many pieces", "not elementary", "convolution"],
)
def test_where_it_is_not_taken(func: Any, how: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, backwards = passes(torchjac.jac, func, X, **how)
    assert backwards == 0
    torch.testing.assert_close(torchjac.jac(func, **how)(X), reference(func)(X))


def test_one_input_is_one_evaluation_with_a_tangent() -> None:
    assert passes(torchjac.jac, lambda x: torch.sin(x * T), X[0]) == (1, 0)


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
    assert passes(torchjac.jac, func, X, sparsity=pattern) == (1, 1)


# --- What goes wrong -------------------------------------------------------------------------------


def test_errors_of_the_function_come_out() -> None:
    raises: list[bool] = []

    def func(x: Tensor) -> Tensor:
        if raises:
            raise ValueError("mine")
        return curve(x)

    counted = Counted(func)
    derivative = torchjac.jac(counted)
    for _ in range(3):
        derivative(X)
    raises.append(True)
    counted.reset()
    with pytest.raises(ValueError, match="mine"):
        derivative(X)
    assert counted.evaluations == 2
    raises.clear()
    counted.reset()
    derivative(X)
    assert (counted.evaluations, counted.passes) == (1, 1)  # it is not held against the way


def test_memory_that_is_short_is_no_error() -> None:
    short = [True]

    def func(x: Tensor) -> Tensor:
        y = curve(x)
        if y.requires_grad:
            y.register_hook(run_short)
        return y

    def run_short(cotangent: Tensor) -> None:
        if short and torch._C._functorch.peek_interpreter_stack() is None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    derivative = torchjac.jac(func, check="never")
    for _ in range(3):
        torch.testing.assert_close(derivative(X), torchjac.jac(curve, mode="forward")(X))
