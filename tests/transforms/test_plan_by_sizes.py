"""What a plan cannot look through it says, keeps to sizes, and evaluates the function in every call."""

import logging
import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchjac
from tests.sparse import DETECTS
from tests.transforms.planned import (
    BY_SIZES,
    MARKS,
    MATRIX,
    ThroughNumpy,
    X,
    Y,
    reason,
    rows,
    single_passes,
)
from torchjac.errors import TorchjacFallbackWarning

pytestmark = MARKS


def over_a_threshold(x: Tensor) -> Tensor:
    y = x.clone()
    y[y > 0] = y[y > 0] * 3
    return y


def halved_until_small(x: Tensor) -> Tensor:
    while (x.abs() > 0.1).any():
        x = x * 0.5
    return x * x


def in_another_thread(x: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(x.sin()))
    thread.start()
    thread.join()
    return found[0]


def unless_it_fails(x: Tensor) -> Tensor:
    try:
        return x * float(x.detach().numpy()[0])
    except (RuntimeError, TypeError):
        return x * 3


def kept_as_numpy(x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.detach().numpy(), lambda t: torch.from_numpy(t)
    ):
        return x.sin() * x


SPARSE = MATRIX.to_sparse()
# Each with a part of what is said.
OPAQUE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "branch": (lambda x: x.sin() if x.sum() > 0 else x.cos(), "looks at values"),
    "item": (lambda x: x * x.detach()[0].item(), "looks at values"),
    "tolist": (lambda x: x * len(x.tolist()), "looks at values"),
    "numpy": (lambda x: x * torch.from_numpy(x.detach().numpy() * 2), "takes values out"),
    "mask": (lambda x: x[x > 0] * 2, "looks at values"),
    "masked write": (over_a_threshold, "looks at values"),
    "nonzero": (lambda x: x[(x > 0).nonzero().squeeze(1)].sin(), "looks at values"),
    "unique": (lambda x: x * len(torch.unique(x.detach())), "looks at values"),
    "loop": (halved_until_small, "looks at values"),
    "equal": (lambda x: x * (2 if torch.equal(x, x) else 3), "looks at values"),
    "backward in numpy": (ThroughNumpy.apply, "takes values out"),
    "hooks in numpy": (kept_as_numpy, "takes values out"),
    "thread": (in_another_thread, "threading, with which work goes to other threads"),
    "text": (lambda x: x * len(str(x.detach())), "turns a tensor into text"),
    "old constructor": (lambda x: x * torch.Tensor([1, 2, 3, 4]), "an old constructor"),
    "except": (unless_it_fails, ""),
    "sparse": (lambda x: torch.sparse.mm(MATRIX.to_sparse(), x[:, None])[:, 0], ""),
    "sparse product": (lambda x: SPARSE @ x, "captures a sparse"),
    "script": (torch.jit.script(nn.Linear(4, 4).double()), "cannot be watched"),
}
if DETECTS:  # before that, torch.compile itself is refused
    compiled = torch.compile(lambda x: x.sin() * x, backend="eager")
    OPAQUE["torch.compile"] = (compiled, "torch.compile compiles anew")
    whole = torch.compile(nn.Linear(4, 3).double(), backend="eager")
    OPAQUE["torch.compile of a module"] = (whole, "torch.compile compiles anew")


@pytest.mark.parametrize("name", OPAQUE)
def test_what_a_plan_cannot_look_through_is_said_and_right(name: str) -> None:
    func, said = OPAQUE[name]
    plan = torchjac.jac(func).plan(X)
    assert BY_SIZES in reason(plan)
    assert said in reason(plan)
    assert "through the function itself" in str(plan)
    for x in (X, Y):
        torch.testing.assert_close(plan(x), single_passes(func, x))


def test_forward_mode_without_a_trace_is_planned_by_sizes_where_pytorch_has_it() -> None:
    func = lambda x: MATRIX @ (x.sin() if x.sum() > 0 else x.cos())  # noqa: E731
    plan = torchjac.jac(func, mode="forward").plan(X)
    assert BY_SIZES in reason(plan)
    torch.testing.assert_close(plan(Y), single_passes(func, Y))


def one_or_the_other(x: Tensor) -> Tensor:
    return x.sin() if x.sum() > 0 else x.cos()


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize(
    "func",
    [one_or_the_other, lambda x: x * x.detach().sum().item(), lambda x: x[x > 0].sum() * x],
    ids=["branch", "item", "mask"],
)
def test_samples_that_pytorch_cannot_vmap_are_planned_one_by_one(func: Any, mode: str) -> None:
    x = torch.stack([X, Y, -X])
    with pytest.warns(TorchjacFallbackWarning, match="cannot vmap this function"):
        plan = torchjac.batched_jac(func, mode=mode).plan(x)
    assert BY_SIZES in reason(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that has been said
        got = plan(x)
    torch.testing.assert_close(got, torch.stack([single_passes(func, row) for row in x]))


def test_a_refused_trace_prints_nothing(capfd: Any, caplog: Any) -> None:
    torchjac.jac(OPAQUE["sparse"][0]).plan(X)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class Stateful:
    """Each changes something whenever it is evaluated."""

    def __init__(self) -> None:
        self.calls, self.log = 0, []
        self.buffer = torch.zeros(4, dtype=torch.float64)
        self.generator = torch.Generator()
        self.norm = nn.BatchNorm1d(4).double()

    def counts(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.sin()

    def logs(self, x: Tensor) -> Tensor:
        self.log.append(1)
        return x.sin()

    def accumulates(self, x: Tensor) -> Tensor:
        self.buffer.add_(1)
        return x.sin()

    def normalises(self, x: Tensor) -> Tensor:
        return self.norm(rows(x)) ** 2

    def draws_of_its_own(self, x: Tensor) -> Tensor:
        torch.rand(4, generator=self.generator)
        return x.sin()


@pytest.mark.parametrize(
    "name", ["counts", "logs", "accumulates", "normalises", "draws_of_its_own"]
)
def test_a_function_with_a_state_is_evaluated_in_every_call(name: str) -> None:
    stateful = Stateful()
    func = getattr(stateful, name)
    plan = torchjac.jac(func).plan(X)
    assert BY_SIZES in reason(plan)

    def state() -> Any:
        drawn = stateful.generator.get_state().tolist()
        tensors = stateful.buffer.sum().item(), stateful.norm.running_mean.sum().item()
        return stateful.calls, len(stateful.log), drawn, tensors

    for x in (X, Y):
        before = state()
        got = plan(x)
        assert state() != before
        torch.testing.assert_close(got, single_passes(func, x))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: random.random(),
        lambda: float(np.random.rand()),
        lambda: torch.from_numpy(np.random.rand(4)),
    ],
    ids=["random", "numpy", "numpy tensor"],
)
def test_what_others_draw_is_not_written_into_the_plan(draw: Callable[[], Any]) -> None:
    plan = torchjac.jac(lambda x: x * draw()).plan(X)
    assert BY_SIZES in reason(plan)
    assert not torch.equal(plan(X), plan(X))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda x: x * torch.rand(4, dtype=torch.float64),
    "rand_like": lambda x: x * torch.rand_like(x),
    "dropout": lambda x: nn.functional.dropout(x, 0.5) * x,
    "randperm": lambda x: x[torch.randperm(4)].sin(),
    "rsample": lambda x: torch.distributions.Normal(x, x.exp()).rsample(),
    "dropout at a waist": lambda x: MATRIX[:, :1] * nn.functional.dropout(x, 0.5).sum(),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("name", DRAWS)
def test_a_plan_draws_what_the_derivative_draws(name: str, mode: str, grad: bool) -> None:
    transform = torchjac.jac(DRAWS[name], mode=mode)
    state = torch.get_rng_state()
    plan = transform.plan(X)
    assert BY_SIZES not in reason(plan)
    x, found = Y.clone().requires_grad_(grad), []
    for derivative in (transform, plan):
        derivative(x)
        torch.manual_seed(3)
        found.append((derivative(x).detach(), torch.get_rng_state()))
    torch.testing.assert_close(*found)
    assert not torch.equal(state, found[0][1])
