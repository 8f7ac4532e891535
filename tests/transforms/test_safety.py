"""Nothing of the caller's is changed, no flag leaks, and exceptions come out as they are."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from tests.cases import written_into
from torchjac.errors import UnsupportedError

MODES = ["auto", "forward", "reverse"]


@pytest.mark.parametrize("chunk_size", ["auto", 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_inputs_changed_in_place_by_func(mode: str, chunk_size: Any) -> None:
    def func(x: Tensor, y: Tensor) -> Tensor:
        x.mul_(2)
        y.add_(1)
        return x**2 * y

    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)
    for _ in range(2):
        got = torchjac.jac(func, mode=mode, chunk_size=chunk_size)(x, y)
        torch.testing.assert_close(got, torch.diag(16 * x))
    assert x.tolist() == [1, 2, 3]
    assert y.tolist() == [1, 1, 1]
    assert x._version == 0
    assert y._version == 0


@pytest.mark.parametrize("mode", MODES)
def test_in_place_on_intermediates_and_views(mode: str) -> None:
    def func(x: Tensor) -> Tensor:
        y = x * 1
        y[1:] *= x[:-1]
        y.view(-1)[0] += 3
        return y

    x = torch.tensor([2.0, 3.0, 5.0])
    expected = torch.tensor([[1.0, 0, 0], [3, 2, 0], [0, 5, 3]])
    torch.testing.assert_close(torchjac.jac(func, mode=mode)(x), expected)


@pytest.mark.parametrize("mode", MODES)
def test_no_flag_and_no_gradient_leaks(mode: str) -> None:
    weight = torch.ones(3, requires_grad=True)
    x, y = torch.ones(3), torch.ones(3, requires_grad=True)
    torchjac.jac(lambda x, y: x * y * weight, mode=mode)(x, y)
    assert not x.requires_grad
    assert x.grad is None
    assert y.grad is None
    assert weight.grad is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(guard: Any, mode: str) -> None:
    with guard():
        x, y = torch.ones(3), torch.full((3,), 2.0)
        got = torchjac.jac(lambda x, y: x**2 * y, mode=mode)(x, y)
        torch.testing.assert_close(got, 4 * torch.eye(3))
        assert not got.requires_grad
        hessian = torchjac.hessian(lambda x, y: (x**2 * y).sum())(x, y)
        torch.testing.assert_close(hessian, 4 * torch.eye(3))


def test_no_grad_inside_func_holds_back_the_derivative() -> None:
    def func(x: Tensor) -> Tensor:
        with torch.no_grad():
            constant = x * 1
        return x * constant

    torch.testing.assert_close(torchjac.jac(func)(torch.full((2,), 3.0)), 3 * torch.eye(2))


class CustomError(Exception):
    pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyError("mine"), RuntimeError("mine"), CustomError("x")]
)
def test_exceptions_of_func_come_out_as_they_are(error: Exception, mode: str) -> None:
    broken = False

    def func(x: Tensor) -> Tensor:
        if broken:
            raise error
        return x**2

    broken = True
    with pytest.raises(type(error)) as caught:
        torchjac.jac(func, mode=mode)(torch.ones(2))
    assert caught.value is error
    broken = False
    torchjac.jac(func, mode=mode)(torch.ones(2))
    broken = True  # and so it is when the signature is known
    with pytest.raises(type(error)) as caught:
        torchjac.jac(func, mode=mode)(torch.ones(2))
    assert caught.value is error


class Raises(torch.autograd.Function):
    """Its backward raises whatever it is told to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Exception) -> Tensor:
        ctx.error = error
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise ctx.error


@pytest.mark.parametrize("error", [ValueError("mine"), RuntimeError("mine"), CustomError("x")])
@pytest.mark.parametrize(
    "derivative",
    [
        lambda f, x: torchjac.jac(f)(x),
        lambda f, x: torchjac.jac(f, mode="reverse", chunk_size=1)(x),
        lambda f, x: torchjac.hessian(lambda x: f(x).sum())(x),
        lambda f, x: torchjac.batched_jac(f)(x[None]),
        lambda f, x: torchjac.jac_diag(f)(x),
        lambda f, x: torchjac.jac_operator(f)(x).T @ x,
        lambda f, x: torchjac.jac_of(f(x.requires_grad_()), x),
        lambda f, x: list(torchjac.jac_blocks(f, chunk_size=2)(x)),
    ],
    ids=["jac", "plain", "hessian", "batched", "diag", "operator", "jac_of", "blocks"],
)
def test_exceptions_of_a_backward_come_out_as_they_are(
    derivative: Callable[..., Any], error: Exception
) -> None:
    """For plain autograd raises them too."""
    error = copy.copy(error)
    error.__cause__ = cause = KeyError("why")
    with pytest.raises(type(error)) as caught:
        derivative(lambda x: Raises.apply(x, error), torch.ones(3))
    assert caught.value is error
    assert error.__cause__ is cause


def test_a_backward_that_is_missing_is_no_exception_of_its_own() -> None:
    class Missing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

    with pytest.raises(UnsupportedError, match="The function itself runs"):
        torchjac.jac(Missing.apply)(torch.ones(3))


@pytest.mark.parametrize("mode", MODES)
def test_views_expanded_and_non_contiguous_inputs(mode: str) -> None:
    base = torch.arange(6.0, dtype=torch.float64)
    for x in (base[::2], base.view(2, 3).T, torch.ones(1).double().expand(4), base[1:4]):
        got = torchjac.jac(torch.sin, mode=mode)(x)
        torch.testing.assert_close(got.reshape(x.numel(), -1), torch.diag(x.cos().reshape(-1)))


@pytest.mark.parametrize("mode", MODES)
def test_the_same_tensor_twice(mode: str) -> None:
    x = torch.ones(2)
    got = torchjac.jac(lambda a, b: a * 2 + b * 3, (0, 1), mode=mode)(x, x)
    torch.testing.assert_close(got, (2 * torch.eye(2), 3 * torch.eye(2)))


@pytest.mark.parametrize("mode", MODES)
def test_inference_tensors_outside_inference_mode(mode: str) -> None:
    with torch.inference_mode():
        x, y = torch.ones(3), torch.full((3,), 2.0)
    got = torchjac.jac(lambda x, y: x**2 * y, mode=mode)(x, y)
    torch.testing.assert_close(got, 4 * torch.eye(3))


def test_an_exception_that_comes_only_once_comes_out() -> None:
    calls = 0

    def func(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise CustomError("once")
        return x.sin()

    while calls < 3:
        torchjac.jac(func)(torch.ones(3))
    with pytest.raises(CustomError):
        torchjac.jac(func)(torch.ones(3))


@pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning")
def test_seeds_that_a_function_writes_over_are_copies() -> None:
    x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    diagonal, v = 2 * x.exp(), torch.ones(3, dtype=torch.float64)
    op = torchjac.jac_operator(written_into)(x)
    for _ in range(2):
        torch.testing.assert_close(op @ v, diagonal)
        assert (v == 1).all()
    torch.testing.assert_close(torchjac.jac_diag(written_into)(x), diagonal)
    torch.testing.assert_close(torchjac.divergence(written_into)(x), diagonal.sum())


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_leaves_that_a_chunk_does_not_touch_may_be_written_into(chunk_size: int | None) -> None:
    def func(x: Tensor, y: Tensor) -> Tensor:
        y.mul_(x)
        return y

    x = torch.rand(3, dtype=torch.float64)
    found = torchjac.jac(func, (0, 1), mode="forward", chunk_size=chunk_size)(x, x)
    for leaf in found:
        torch.testing.assert_close(leaf, torch.diag(x))
