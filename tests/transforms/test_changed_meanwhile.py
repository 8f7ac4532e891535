"""Calls like one before whose function has changed since then."""

import gc
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import torchjac
from tests.counted import Counted
from torchjac.errors import TorchjacFallbackWarning

TIMES = 3  # the first call looks, the second is noted, the third repeats
W = torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]], dtype=torch.float64)
X = torch.tensor([0.5, -1.5], dtype=torch.float64)


def test_outputs_of_other_sizes() -> None:
    sizes = [3]
    derivative = torchjac.jac(lambda x: torch.cat([x.sin()] * sizes[0]))
    for size in (3, 3, 3, 1, 2, 2, 2, 3, 3):
        sizes[0] = size
        torch.testing.assert_close(derivative(X), torch.cat([X.cos().diag()] * size))


def test_one_output_that_becomes_several() -> None:
    """Whose rows one pass would add up."""
    sizes = [1]
    derivative = torchjac.jac(lambda x: torch.stack([x.sin().sum()] * sizes[0]))
    for size in (1, 1, 1, 2, 2, 2, 1):
        sizes[0] = size
        torch.testing.assert_close(derivative(X), X.cos().expand(size, 2))


def test_outputs_of_another_tree() -> None:
    wraps: list[Callable[[Tensor], Any]] = [lambda y: y]
    derivative = torchjac.jac(lambda x: wraps[0](x.sin()))
    for _ in range(TIMES):
        derivative(X)
    wraps[0] = lambda y: {"y": y, "none": None}
    got = derivative(X)
    assert got["none"] is None
    torch.testing.assert_close(got["y"], X.cos().diag())


@pytest.mark.parametrize("error", [ValueError("mine"), RuntimeError("mine"), KeyError("mine")])
def test_errors_of_the_function_come_out(error: Exception) -> None:
    raises: list[Exception] = []

    def func(x: Tensor) -> Tensor:
        for one in raises:
            raise one
        return x.sin()

    counted = Counted(func)
    derivative = torchjac.jac(counted)
    for _ in range(TIMES):
        derivative(X)
    raises.append(error)
    counted.reset()
    with pytest.raises(type(error), match="mine"):
        derivative(X)
    # Once more to see whose it is, where PyTorch raises such errors too.
    assert counted.evaluations == (1 if isinstance(error, KeyError) else 2)
    raises.clear()
    torch.testing.assert_close(derivative(X), X.cos().diag())


def test_errors_keep_nothing_alive() -> None:
    raises = False
    alive: list[weakref.ref[Tensor]] = []

    def func(x: Tensor) -> Tensor:
        y = x.sin()
        alive.append(weakref.ref(y))
        if raises:
            raise KeyError("mine")
        return y

    derivative = torchjac.jac(func)
    for _ in range(TIMES):
        derivative(X)
    raises = True
    gc.disable()
    try:
        with pytest.raises(KeyError):
            derivative(X)
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


OUT_OF_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory")


class Short(torch.autograd.Function):
    """The identity, which runs out of memory when asked to, forwards and backwards."""

    asked: ClassVar[list[str]] = []

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def _run_short(where: str) -> None:
        if where in Short.asked:
            Short.asked.remove(where)
            raise OUT_OF_MEMORY

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        Short._run_short("backward")
        return cotangent.clone()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        Short._run_short("jvp")
        return tangent.clone()

    generate_vmap_rule = True


@pytest.mark.parametrize("where", ["backward", "jvp"])
def test_memory_that_was_short_once(where: str) -> None:
    mode: Any = {"backward": "reverse", "jvp": "forward"}[where]
    func = Counted(lambda x: Short.apply(x).sin() * torch.rand(2, dtype=x.dtype))
    derivative = torchjac.jac(func, mode=mode, return_value=True)
    for _ in range(TIMES):
        derivative(X)
    Short.asked.append(where)
    func.reset()
    torch.manual_seed(1)
    value, got = derivative(X)
    torch.manual_seed(1)
    torch.testing.assert_close(value, func(X))
    torch.testing.assert_close(got, (X.cos() * value / X.sin()).diag())
    assert not Short.asked
    assert func.evaluations <= 2 + (mode == "forward")


@pytest.mark.parametrize("reduced", [False, True])
def test_evaluations_and_draws_where_sizes_change(reduced: bool) -> None:
    """One evaluation by the caller's draw, whatever has come of it."""

    def func(x: Tensor, copies: int) -> Tensor:
        dropped = torch.nn.functional.dropout(x, 0.5).repeat(copies)
        return dropped.sum() if reduced and copies > 2 else dropped

    counted = Counted(func)
    derivative, x = torchjac.jac(counted, return_value=True), torch.ones(4)
    for k in range(10):
        copies = 2 + k % 2
        counted.reset()
        torch.manual_seed(k)
        value, got = derivative(x, copies)
        assert k == 0 or counted.evaluations == 1
        torch.manual_seed(k)
        expected = func(x, copies)
        assert torch.equal(value, expected)
        torch.testing.assert_close(got @ x, expected)


def test_sizes_that_do_not_always_fit() -> None:
    func = Counted(lambda x, copies: (x**2).repeat(copies))
    derivative, x = torchjac.jac(func, mode="reverse"), torch.rand(300)
    for _ in range(TIMES):
        derivative(x, 1)
    for _ in range(TIMES):
        func.reset()
        assert derivative(x, 40).shape == (12000, 300)
        assert func.evaluations == 1


def test_parameters_of_another_dtype() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, i: Tensor) -> Tensor:
            return (self.w * 1e6).sum() * 1e-6 * (i + 1)

    net, i = Large().half(), torch.arange(6)
    derivative = torchjac.jac(net, "params", mode="forward", check="never")
    for _ in range(TIMES):
        derivative(i)
    net.double()
    expected = (i.double() + 1)[:, None].expand(6, 2)
    torch.testing.assert_close(derivative(i)["w"], expected)


def test_samples_that_cannot_be_vmapped_any_more() -> None:
    class WrappedError(RuntimeError):
        pass

    def func(x: Tensor, power: int) -> Tensor:
        try:
            return x * float(x.detach().sum()) if power > 1 else x**2
        except RuntimeError as error:
            raise WrappedError from error

    derivative = torchjac.batched_jac(func, in_dims=(0, None))
    x = torch.stack([X, X + 1])
    for _ in range(TIMES):
        derivative(x, 1)
    with pytest.warns(TorchjacFallbackWarning, match="cannot vmap"):
        got = derivative(x, 2)
    torch.testing.assert_close(got, x.sum(1)[:, None, None] * torch.eye(2, dtype=x.dtype))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_results_that_are_written_into(mode: Any) -> None:
    derivative = torchjac.jac(lambda x: x, mode=mode)
    for _ in range(TIMES + 2):
        result = derivative(X)
        torch.testing.assert_close(result, torch.eye(2, dtype=X.dtype))
        result.fill_(9)


def test_arguments_stay_as_they_are() -> None:
    derivative = torchjac.jac(lambda x, y: x.mul_(2).sin_() * y.add_(1), 0)
    x, y = X.clone(), X.clone()
    for _ in range(TIMES + 1):
        torch.testing.assert_close(derivative(x, y), (2 * (2 * X).cos() * (X + 1)).diag())
    assert torch.equal(x, X)
    assert torch.equal(y, X)


def test_gradients_of_what_was_captured() -> None:
    weight = W.clone()
    derivative = torchjac.jac(lambda x: (weight @ x).sin())
    for _ in range(TIMES):
        assert not derivative(X).requires_grad
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(derivative(X).sum(), weight)
    expected = torch.func.grad(lambda w: torch.func.jacrev(lambda x: (w @ x).sin())(X).sum())(W)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert not derivative(X).requires_grad
