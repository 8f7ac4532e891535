"""Functions get copies of their arguments, but for those that are certain to write into nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac
from tests.sparse import DETECTS

pytestmark = pytest.mark.skipif(not DETECTS, reason="detection needs PyTorch 2.1")

DOUBLE = torch.float64
FULL = torch.ones(6, 6).bool()
WEIGHT = torch.linspace(1, 2, 6, dtype=DOUBLE)
LEARNED = WEIGHT.clone().requires_grad_()


def point() -> Tensor:
    return torch.linspace(1, 2, 6, dtype=DOUBLE)


def copies(call: Callable[[], Any]) -> int:
    """How often a whole vector is cloned."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, record_shapes=True) as profile:
        call()
    clones = [event.input_shapes[0] for event in profile.events() if event.name == "aten::clone"]
    return sum(shape == [6] for shape in clones)


def pure(x: Tensor) -> Tensor:
    return x.sin() * x.flip(0) * WEIGHT


def writing(x: Tensor) -> Tensor:
    return x.mul_(2) * x.flip(0)


def writing_elsewhere(x: Tensor) -> Tensor:
    y = x * x
    y[0] = x[1]
    return y


def branching(x: Tensor) -> Tensor:
    return x.mul_(2) * x if x.sum() < 0 else x * x


def choosing(x: Tensor) -> Tensor:
    return x.mul_(2) * x if len((x < 0).nonzero()) > 3 else x * x


def looking_into_memory(x: Tensor) -> Tensor:
    return x.mul_(2) * x if x.detach().numpy()[0] < 0 else x * x


def asking(x: Tensor) -> Tensor:
    if x.requires_grad:
        with torch.no_grad():
            x.data.mul_(1)
    return x * x


def learning(x: Tensor) -> Tensor:
    return x * x * LEARNED


FUNCTIONS: dict[Callable[[Tensor], Tensor], bool] = {
    pure: True,
    writing: False,
    writing_elsewhere: False,
    branching: False,
    choosing: False,
    looking_into_memory: False,
    asking: False,
    learning: False,
}


@pytest.mark.parametrize("sparsity", [FULL, "detect"], ids=["given", "detect"])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda func: func.__name__)
def test_who_gets_copies(func: Any, mode: Any, sparsity: Any) -> None:
    derivative = torchjac.jac(func, mode=mode, sparsity=sparsity)
    needs_values = func in (branching, choosing, looking_into_memory)
    if needs_values and (mode == "forward" or sparsity == "detect"):
        pytest.skip("such a function cannot be batched, or followed without values")
    x = point()
    for _ in range(3):
        derivative(x)
    made = copies(lambda: derivative(x))
    assert (made == 0) is FUNCTIONS[func], made


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_graph_keeps_no_argument(mode: Any) -> None:
    """Who writes into an argument afterwards still has the derivative of the old one."""
    derivative = torchjac.jac(learning, mode=mode, sparsity=FULL)
    for _ in range(4):
        x = point()
        result = derivative(x)
        x.zero_()
        (got,) = torch.autograd.grad(result.sum(), LEARNED)
        torch.testing.assert_close(got, 2 * point())


def test_without_a_graph_nothing_is_copied() -> None:
    derivative, x = torchjac.jac(learning, sparsity=FULL), point()
    with torch.no_grad():
        for _ in range(3):
            derivative(x)
        assert copies(lambda: derivative(x)) == 0
    assert copies(lambda: derivative(x)) > 0
    assert copies(lambda: torchjac.jac(pure, sparsity=FULL)(x.requires_grad_())) > 0


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda func: func.__name__)
def test_arguments_stay_what_they_are_wherever_the_function_goes(func: Any) -> None:
    derivative = torchjac.jac(func, mode="reverse", sparsity=FULL)
    for sign in (1, 1, 1, -1, 1, -1):
        x = point() * sign
        expected = torch.autograd.functional.jacobian(lambda x, func=func: func(x.clone()), x)
        torch.testing.assert_close(derivative(x), expected)
        torch.testing.assert_close(x, point() * sign)


def test_what_is_handed_out_is_no_argument() -> None:
    derivative = torchjac.jac(lambda x: x, sparsity=torch.eye(6).bool(), return_value=True)
    for _ in range(4):
        x = point()
        value, _ = derivative(x)
        value.zero_()
        torch.testing.assert_close(x, point())


def test_containers_are_copied_all_the_same() -> None:
    derivative = torchjac.jac(lambda x, more: x * more.pop(), sparsity=torch.eye(6).bool())
    for _ in range(4):
        more = [WEIGHT]
        torch.testing.assert_close(derivative(point(), more), torch.diag(WEIGHT))
        assert len(more) == 1


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) * x if self.writes > 0 else x * x


def test_modules_that_are_watched() -> None:
    module, x = Module(), point()
    derivative = torchjac.jac(module, sparsity=torch.eye(6).bool())
    for _ in range(3):
        derivative(x)
    with torch.no_grad():  # else it may have parameters
        assert copies(lambda: derivative(x)) == 0
    module.writes = 1
    for _ in range(4):
        torch.testing.assert_close(derivative(x), torch.diag(8 * x))
    torch.testing.assert_close(x, point())


def test_modules_that_nobody_watches() -> None:
    module, x = Module(), point()
    for writes in (0, 0, 0, 1, 0, 1):
        module.writes = writes
        derivative = torchjac.jac(module, sparsity=torch.eye(6).bool())
        torch.testing.assert_close(derivative(x), torch.diag((8 if writes else 2) * x))
        torch.testing.assert_close(x, point())


def test_numbers_that_change_are_part_of_what_is_known() -> None:
    state, x = 1, point()

    def func(x: Tensor) -> Tensor:
        return x.mul_(state) * x if state > 1 else x * x

    derivative = torchjac.jac(func, sparsity=torch.eye(6).bool())
    for _ in range(3):
        derivative(x)
    state = 2
    torch.testing.assert_close(derivative(x), torch.diag(8 * x))
    torch.testing.assert_close(x, point())


def test_a_hessian() -> None:
    derivative = torchjac.hessian(lambda x: (pure(x) ** 2).sum(), sparsity=FULL)
    x = point()
    expected = torch.func.hessian(lambda x: (pure(x) ** 2).sum())(x)
    for _ in range(4):
        torch.testing.assert_close(derivative(x), expected)
    torch.testing.assert_close(x, point())
