"""When operands without a tangent are kept apart, when PyTorch is left to do it, and what that saves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

import torchjac
from torchjac.evaluation import engines
from torchjac.evaluation.batching import vectorised
from torchjac.evaluation.duals import pushed
from torchjac.evaluation.operands import Constants

DOUBLE = torch.float64
VECTOR = torch.tensor([2.0, -1.0, 0.5], dtype=DOUBLE)


# --- What it cannot do, PyTorch does -----------------------------------------------------------------


def detached(x: Tensor) -> Tensor:
    y = x * VECTOR
    y.detach_()
    return x * y


def within_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = x * VECTOR
    return y * x


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("func", [detached, within_inference])
def test_what_fails_is_done_as_pytorch_does_it(func: Any) -> None:
    try:
        expected = torch.func.jacfwd(func)(VECTOR)
    except RuntimeError:
        pytest.skip("this PyTorch cannot do it either")
    derivative = torchjac.jac(func, mode="forward", check="never")
    for _ in range(4):
        torch.testing.assert_close(derivative(VECTOR), expected)


@pytest.mark.filterwarnings("ignore:.*jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_forward_jacobian_can_be_traced() -> None:
    derivative = torchjac.jac(lambda x: x + VECTOR - 2 * x, mode="forward", check="never")
    traced = torch.jit.trace(derivative, (VECTOR,), check_trace=False)
    torch.testing.assert_close(traced(VECTOR), -torch.eye(3, dtype=DOUBLE))


def test_no_level_is_left_open_within_one_of_the_users() -> None:
    derivative = torchjac.jac(lambda x: 2 * x, mode="forward", check="never")
    expected = derivative(VECTOR)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(torchjac.errors.UnsupportedError):
        derivative(VECTOR)
    assert torch._C._functorch.peek_interpreter_stack() is None
    torch.testing.assert_close(derivative(VECTOR), expected)


# --- What it is for --------------------------------------------------------------------------------


def python_formulas(call: Callable[[], Any]) -> int:
    """How many functions of PyTorch's formulas in Python are run."""
    count = 0

    def watch(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        del arg
        if event == "call":
            count += "/torch/_refs/" in frame.f_code.co_filename
            count += "/torch/_prims" in frame.f_code.co_filename

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def brusselator(x: Tensor) -> Tensor:
    u, v = x.reshape(2, -1)
    flow = torch.roll(u, 1) - 2 * u + torch.roll(u, -1)
    return torch.cat([1 + u * u * v - 4.4 * u + 50.0 * flow, 3.4 * u - u * u * v])


def test_no_formula_in_python_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    x, scale = torch.linspace(-1, 1, 10), torch.tensor(2.0)

    def func(x: Tensor) -> Tensor:
        turned = torch.eye(2) + torch.ones(2, 2) * x[0]
        return (
            brusselator(x) / scale * torch.tensor(2.0) - (turned @ torch.tensor([1.0, 2.0])).sum()
        )

    derivative = torchjac.jac(func, mode="forward")
    derivative(x)
    assert python_formulas(lambda: derivative(x)) == 0
    monkeypatch.setattr(engines, "unwatched", lambda: False)
    assert python_formulas(lambda: derivative(x)) > 0


@pytest.mark.skipif(not hasattr(torch, "_lazy_clone"), reason="PyTorch cannot lend memory")
def test_no_tangent_is_copied_for_a_sum_of_many() -> None:
    x, shift = torch.linspace(-1, 1, 2**15), torch.ones(2**15)
    seeds = torch.ones(3, 2**15)

    def copies(func: Callable[[Tensor], Tensor], apart: bool) -> int:
        def product(one: Any) -> Any:
            constants = Constants() if apart else None
            return pushed(lambda x: ((func(x),), ()), [x], [one[0]], constants)[1]

        vectorised(product, {0: seeds})
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, record_shapes=True) as profile:
            vectorised(product, {0: seeds})
        copied = [
            event.input_shapes[0] for event in profile.events() if event.name == "aten::copy_"
        ]
        return sum(shape != [] for shape in copied)  # PyTorch makes the numbers tensors

    def func(x: Tensor) -> Tensor:
        return (x * x + 1.0 - 2.0 + shift - shift) * x

    assert copies(func, apart=True) == 0
    assert copies(func, apart=False) > 0


# --- Where it is done ------------------------------------------------------------------------------


def test_not_where_somebody_looks_on() -> None:
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        got = torchjac.jac(lambda x: torch.mul(x, 2), mode="forward", check="never")(VECTOR)
    assert torch.mul in seen
    torch.testing.assert_close(got, 2 * torch.eye(3, dtype=DOUBLE))


def test_not_for_a_function_without_constants() -> None:
    for func, around in [
        (lambda x: x.sin() * x, []),
        (lambda x: x * 2, [Constants]),
        (lambda x: F.conv1d(x.view(1, 1, 3), torch.ones(1, 1, 2, dtype=DOUBLE)), [Constants]),
        (lambda x: sum([x.sin() for _ in range(50)], x * 2), []),
    ]:
        counted = Counted(func)
        derivative = torchjac.jac(counted, mode="forward")
        for _ in range(3):
            counted.modes.clear()
            derivative(VECTOR)
        assert counted.modes == [around]


class Counted:
    """Notes the modes around each evaluation."""

    def __init__(self, func: Callable[[Tensor], Tensor]) -> None:
        self._func = func
        self.modes: list[list[type]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.modes.append([type(mode) for mode in _get_current_function_mode_stack()])
        return self._func(x)


def test_with_a_default_device() -> None:
    with torch.device("cpu"):
        got = torchjac.jac(lambda x: 2 * x * torch.ones(3), mode="forward")(VECTOR)
    torch.testing.assert_close(got, 2 * torch.eye(3, dtype=DOUBLE))
