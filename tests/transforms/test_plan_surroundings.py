"""A plan under a default device and autocast, and the caller's tensors, which stay as they were."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from tests.transforms.planned import BY_SIZES, MARKS, MATRIX, X, Y, reason, single_passes
from torchjac.errors import PlanMismatchError
from torchjac.foundations.pytree import flatten

pytestmark = MARKS


# A default device, and autocast


def made_by_default(x: Tensor) -> Tensor:
    return MATRIX @ (x * torch.arange(4.0)).sin()


def default_devices() -> dict[str, Callable[[], Any]]:
    @contextlib.contextmanager
    def set_for_all() -> Iterator[None]:
        torch.set_default_device("cpu")
        try:
            yield
        finally:
            torch.set_default_device(None)

    return {"context": lambda: torch.device("cpu"), "set": set_for_all}


@pytest.mark.parametrize("options", [{}, {"sparsity": "detect"}, {"mode": "forward"}], ids=str)
@pytest.mark.parametrize("around", default_devices())
def test_a_default_device_is_no_reason_not_to_plan(around: str, options: Any) -> None:
    transform = torchjac.jac(made_by_default, **options)
    outside = transform.plan(X)
    with default_devices()[around]():
        inside = transform.plan(X)
        assert BY_SIZES not in reason(inside)
        for plan in (inside, outside):
            assert plan._inputs((Y,), {}) is not None  # it is the program that runs
            torch.testing.assert_close(plan(Y), single_passes(made_by_default, Y))
            assert plan.verify(Y)
    torch.testing.assert_close(inside(Y), single_passes(made_by_default, Y))


@pytest.mark.parametrize("transform", [torchjac.jac, torchjac.hessian], ids=["jac", "hessian"])
def test_whatever_the_default_device_torchjac_itself_says_where(transform: Any) -> None:
    """No kernel here runs on meta: every tensor of torchjac's own has to be elsewhere."""
    func = lambda x: (x[1:].sin() * x[:-1]).sum()  # noqa: E731
    if transform is torchjac.jac:
        func = lambda x: x[1:].sin() * x[:-1]  # noqa: E731
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)
    with torch.device("meta"):
        for sparsity in (None, "detect"):
            plan = transform(func, sparsity=sparsity).plan(x)
            assert BY_SIZES not in reason(plan)
            assert plan.verify(x)
            torch.testing.assert_close(plan(x), transform(func)(x))


def test_what_was_made_on_another_default_device_is_not_in_the_plan() -> None:
    plan = torchjac.jac(made_by_default).plan(X)
    with torch.device("meta"):
        by_default = torch.arange(4.0).device
        with pytest.raises(Exception, match=r"device|meta") as by_plan:
            plan(Y)
        with pytest.raises(type(by_plan.value)):
            torchjac.jac(made_by_default)(Y)
    assert by_default.type == "meta"
    torch.testing.assert_close(plan(Y), single_passes(made_by_default, Y))


def test_whether_algorithms_are_deterministic_at_the_plan_or_at_the_call() -> None:
    def func(x: Tensor) -> Tensor:
        return x * (3 if torch.are_deterministic_algorithms_enabled() else 2)

    plan = torchjac.jac(func).plan(X)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(plan(Y), 3 * torch.eye(4, dtype=torch.float64))
        with pytest.raises(PlanMismatchError, match="and the plan is for"):
            plan.compile()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(plan(Y), 2 * torch.eye(4, dtype=torch.float64))


def in_half(x: Tensor) -> Tensor:
    return (MATRIX.float() @ x).sin() * x.sum()


@pytest.mark.parametrize("options", [{}, {"sparsity": "detect"}, {"mode": "forward"}], ids=str)
def test_whether_autocast_is_on_at_the_plan_or_at_the_call(options: Any) -> None:
    transform = torchjac.jac(in_half, **options)
    x = X.float()
    exact = transform(x)
    outside = transform.plan(x)
    assert BY_SIZES not in reason(outside)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = transform(x)
        inside = transform.plan(x)
        assert "by sizes alone: autocast is on" in reason(inside)
        for plan in (inside, outside):
            torch.testing.assert_close(plan(x), half, rtol=0, atol=0)
        with torch.autocast("cpu", enabled=False):
            for plan in (inside, outside):
                torch.testing.assert_close(plan(x), exact)
    for plan in (inside, outside):
        torch.testing.assert_close(plan(x), exact)
    assert not torch.equal(half, exact)  # else nothing was seen here


# The caller's tensors


def test_nothing_of_the_callers_is_changed() -> None:
    weight = MATRIX.clone().requires_grad_()
    x, y = X.clone(), Y.clone().requires_grad_()
    plan = torchjac.jac(lambda x, y: (x.mul_(2) * y) @ weight).plan(x, y)
    plan(x, y)
    assert plan.verify(x, y)
    assert not x.requires_grad
    assert x._version == 0
    assert torch.equal(x, X)
    assert (x.grad, y.grad, weight.grad) == (None, None, None)


def test_subclasses_of_tensors_keep_what_they_do() -> None:
    class Loud(Tensor):
        pass

    func = functools.partial(torch.mul, 2.0)
    plan = torchjac.jac(func).plan(X)
    got = plan(X.as_subclass(Loud))
    assert isinstance(got, Loud) == isinstance(torchjac.jac(func)(X.as_subclass(Loud)), Loud)
    torch.testing.assert_close(got.as_subclass(Tensor), 2 * torch.eye(4).double())


def test_unchanged_flags_of_leaves() -> None:
    leaves = flatten(torchjac.jac(lambda x: (x, MATRIX)).plan(X)(X))[0]
    assert not any(leaf.requires_grad for leaf in leaves)
    assert not MATRIX.requires_grad
