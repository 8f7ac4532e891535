"""Recorded functions: what is copied in and out, on a CPU with a stand-in for the graph of a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from tests.sparse import DETECTS
from torchjac.evaluation.programs import replayed
from torchjac.evaluation.programs.replayed import Replayed

CPU = torch.device("cpu")
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    ],
)


def by_hand(
    call: Callable[[], Sequence[Tensor]], device: torch.device
) -> tuple[Callable[[], object], Sequence[Tensor]]:
    """What a CUDA graph does: the same memory is read and written at every replay."""
    del device
    results = call()

    def replay() -> None:
        for result, again in zip(results, call(), strict=True):
            result.copy_(again)

    return replay, results


def function(x: Tensor, y: Tensor) -> Sequence[Tensor]:
    return x.sin() @ y, y * 2


def recorded(device: str, *tensors: Tensor) -> Replayed:
    record = replayed._recorded if device == "cuda" else by_hand
    return Replayed(function, tensors, torch.device(device), record)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pair(seed: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, generator=generator)[:, ::2]  # strides with gaps
    return x.to(device), torch.randn(2, 3, generator=generator).t().to(device)


def test_results_are_those_of_the_arguments_of_the_call(device: str) -> None:
    made = recorded(device, *pair(0, device))
    kept = [made(*pair(seed, device)) for seed in range(4)]
    for seed, got in enumerate(kept):  # none has been written over
        for one, other in zip(got, function(*pair(seed, device)), strict=True):
            torch.testing.assert_close(one, other)


def test_inputs_are_left_alone(device: str) -> None:
    x, y = pair(0, device)
    copies = x.clone(), y.clone()
    made = recorded(device, x, y)
    made(x, y)[1].zero_()
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])


def test_threads_have_it_one_after_another(device: str) -> None:
    made = recorded(device, *pair(0, device))
    wrong: list[int] = []

    def work(seed: int) -> None:
        args = pair(seed, device)
        expected = function(*args)
        for _ in range(50):
            for one, other in zip(made(*args), expected, strict=True):
                if not torch.allclose(one, other):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert replayed.replayed(function, pair(0, "cpu")) is function


# --- On a GPU ----------------------------------------------------------------------------------------


def launches(call: Callable[[], Any]) -> list[str]:
    """The names of what the host calls to have something launched."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return [event.name for event in seen.events() if "Launch" in event.name]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1")
def test_a_small_compiled_plan_is_one_launch() -> None:
    weight = torch.randn(8, 8, device="cuda")

    def func(x: Tensor) -> Tensor:
        return torch.tanh(weight @ torch.tanh(weight @ x)).cumsum(0)

    x = torch.randn(8, device="cuda")
    plan = torchjac.jac(func).plan(x).compile()
    plan(x)
    assert sum("cudaGraphLaunch" in name for name in launches(lambda: plan(x))) == 1
    for _ in range(3):
        x = torch.randn(8, device="cuda")
        weight.mul_(0.9)  # captured tensors are read as they are
        torch.testing.assert_close(plan(x), torch.func.jacrev(func)(x))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1")
def test_a_large_compiled_plan_is_launched_as_it_is() -> None:
    x = torch.randn(2**11, device="cuda")
    plan = torchjac.jac(lambda x: x.sin().outer(x)[0].cumsum(0)).plan(x).compile()
    plan(x)
    assert not any("cudaGraphLaunch" in name for name in launches(lambda: plan(x)))
