"""First calls that prove nothing, points without a derivative, numbers near the ends of their range."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchjac
from torchjac.errors import DerivativeMismatchWarning, TorchjacFallbackWarning

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def by_rows(func: Any, x: Tensor) -> Tensor:
    """The Jacobian by plain autograd, one row at a time."""
    x = x.detach().clone().requires_grad_()
    y = func(x)
    found = [
        torch.autograd.grad(entry, x, retain_graph=True, allow_unused=True)[0]
        for entry in y.reshape(-1)
    ]
    rows = [torch.zeros_like(x) if row is None else row for row in found]
    return torch.stack(rows).reshape(*y.shape, *x.shape)


# --- first calls ---------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """Its jvp is wrong, which does not show at 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 5 * ctx.saved_tensors[0] ** 2 * tangent


@pytest.mark.parametrize("warm_up", [torch.zeros(3), torch.full((3,), math.nan)])
def test_a_first_call_that_shows_nothing_is_no_proof(warm_up: Tensor) -> None:
    derivative = torchjac.jac(Cube.apply, mode="forward")
    derivative(warm_up.double())
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    with pytest.warns(DerivativeMismatchWarning):
        torch.testing.assert_close(derivative(x), (3 * x**2).diag(), **CLOSE)


def test_distances_after_a_warm_up_with_zeros() -> None:
    """`jacrev(torch.cdist)` is wrong; with all distances zero nobody can tell."""
    derivative, b = torchjac.jac(torch.cdist), torch.randn(4, 2, dtype=torch.float64)
    derivative(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64))
    a = torch.randn(3, 2, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DerivativeMismatchWarning)
        got = derivative(a, b)
    torch.testing.assert_close(got, by_rows(lambda a: torch.cdist(a, b), a), **CLOSE)


def test_what_never_shows_anything_is_not_compared_for_ever() -> None:
    calls = []

    def func(x: Tensor) -> Tensor:
        calls.append(1)
        return x.sign().sum(0, keepdim=True).expand(9) * x[0] * 0

    derivative, x = torchjac.jac(func, mode="forward"), torch.ones(2)
    for _ in range(5):
        derivative(x)
    calls.clear()
    derivative(x)
    assert len(calls) == 1


# --- no derivative -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("func", "at"),
    [
        (torch.log, 0.0),
        (torch.sqrt, 0.0),
        (torch.reciprocal, 0.0),
        (torch.exp, 1e4),
        (torch.acos, 1.0),
        (torch.lgamma, 0.0),
        (torch.sin, math.nan),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "forward"])
def test_a_point_without_a_derivative_blames_no_rule(func: Any, at: float, mode: Any) -> None:
    """What is not finite goes along rows in one mode, and along columns in the other."""
    weights = torch.rand(200, 4, dtype=torch.float64) + 0.5

    def tall(x: Tensor) -> Tensor:
        return (weights * func(x)).sum(1) + 0

    derivative = torchjac.jac(tall, mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        derivative(torch.tensor([at, 0.2, 0.3, 0.4], dtype=torch.float64))
    x = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    torch.testing.assert_close(derivative(x), by_rows(tall, x), **CLOSE)


def test_it_costs_later_calls_nothing() -> None:
    calls = []
    weights = torch.rand(200, 4) + 0.5

    def tall(x: Tensor) -> Tensor:
        calls.append(1)
        return (weights * x.log()).sum(1)

    derivative = torchjac.jac(tall)
    derivative(torch.tensor([0.0, 2.0, 3.0, 4.0]))
    good = torch.tensor([1.0, 2.0, 3.0, 4.0])
    derivative(good)  # this one is compared
    calls.clear()
    derivative(good)
    assert len(calls) == 1  # one vmapped evaluation: forward mode, and no comparison


def test_a_rule_that_makes_nan_of_a_number_is_still_found() -> None:
    class Wrong(Cube):
        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return tangent * math.nan

    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    with pytest.warns(DerivativeMismatchWarning):
        got = torchjac.jac(Wrong.apply, mode="forward")(x)
    torch.testing.assert_close(got, (3 * x**2).diag(), **CLOSE)


# --- large numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e22, torch.float32), (1e30, torch.float32), (1e160, torch.float64)]
)
def test_numbers_whose_squares_overflow(scale: float, dtype: torch.dtype) -> None:
    x = torch.linspace(0.5, 1, 6, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hessian = torchjac.hessian(lambda x: x.sin().sum() * scale)(x)
        jacobian = torchjac.jac(lambda x: x.sin() * scale, mode="forward")(x)
    torch.testing.assert_close(hessian, (-x.sin() * scale).diag(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(jacobian, (x.cos() * scale).diag(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("scale", [1e30, 1e160])
def test_a_wrong_rule_is_found_among_them(scale: float) -> None:
    x = torch.linspace(0.5, 1, 6, dtype=torch.float64)
    with pytest.warns(DerivativeMismatchWarning):
        got = torchjac.jac(lambda x: Cube.apply(x) * scale, mode="forward")(x)
    torch.testing.assert_close(got, (3 * x**2 * scale).diag(), rtol=1e-9, atol=0.0)


# --- memory that elements share ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("first", ["windows", "copies"])
def test_inputs_whose_elements_share_memory(mode: Any, first: str) -> None:
    """PyTorch gives them wrong tangents in forward mode."""
    windows = torch.randn(12, dtype=torch.float64).unfold(0, 3, 1)

    def tall(w: Tensor) -> Tensor:
        return torch.cat([w, w**2, w**3], -1)

    derivative, expected = torchjac.jac(tall, mode=mode), by_rows(tall, windows)
    inputs = [windows, windows.clone()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for w in inputs if first == "windows" else inputs[::-1]:
            torch.testing.assert_close(derivative(w), expected, **CLOSE)


def test_samples_whose_elements_share_memory() -> None:
    windows = torch.randn(8, dtype=torch.float64).unfold(0, 3, 1)

    def func(w: Tensor) -> Tensor:
        return torch.cat([w, w**2], -1)

    expected = torch.func.vmap(torch.func.jacrev(func))(windows.clone())
    for per_sample in (True, False):
        got = torchjac.batched_jac(func, per_sample=per_sample)(windows)
        torch.testing.assert_close(got, expected, **CLOSE)


# --- refusals that are not RuntimeErrors ---------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="checkpoints of torch 2.0 differ")
@pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast:FutureWarning")
def test_a_checkpoint_that_saves_other_shapes_under_vmap() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def func(x: Tensor) -> Tensor:
        result: Tensor = checkpoint(net, x, use_reentrant=False)
        return result

    x = torch.randn(4, dtype=torch.float64)
    with pytest.warns(TorchjacFallbackWarning):
        got = torchjac.jac(func)(x)
    torch.testing.assert_close(got, by_rows(net, x), **CLOSE)


# --- what a graph is known by --------------------------------------------------------------------


def test_functions_of_one_name_are_told_apart_by_jac_of() -> None:
    def cube(factor: float) -> Any:
        class Back(torch.autograd.Function):
            """Its vmap rule is off by ``factor``."""

            @staticmethod
            def forward(grad: Tensor, x: Tensor) -> Tensor:
                return 3 * x**2 * grad

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                pass

            @staticmethod
            def vmap(info: Any, dims: Any, grad: Tensor, x: Tensor) -> Any:
                return factor * 3 * x**2 * grad, dims[0]

        class Cubed(torch.autograd.Function):
            @staticmethod
            def forward(x: Tensor) -> Tensor:
                return x**3

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                ctx.save_for_backward(*inputs)

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Any:
                return Back.apply(grad, *ctx.saved_tensors)

        return Cubed.apply

    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    right, wrong = cube(1.0), cube(2.0)
    torch.testing.assert_close(torchjac.jac_of(right(x), x).diag(), torch.full((3,), 3.0).double())
    with pytest.warns(DerivativeMismatchWarning):
        got = torchjac.jac_of(wrong(x), x)
    torch.testing.assert_close(got.diag(), torch.full((3,), 3.0).double())
