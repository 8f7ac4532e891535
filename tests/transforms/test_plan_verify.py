"""`Plan.verify` finds what is wrong on purpose, and raises no alarm over rounding."""

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import torchjac
from tests.sparse import DETECTS
from tests.transforms.planned import X
from torchjac.errors import DerivativeMismatchWarning, PlanError, TorchjacError
from torchjac.planning.plans import proof

pytestmark = pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1")

ZERO: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(0).sum(),
    "layer_norm": lambda x: F.layer_norm(x, x.shape).sum(),
    "mean": lambda x: (x - x.mean()).sum(),
    "norm": lambda x: (x / x.norm()).norm(),
    "std": lambda x: ((x - x.mean()) / x.std()).std(),
}
# Some of the entries cancel, and others do not.
CURVED: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(0),
    "layer_norm": lambda x: F.layer_norm(x, x.shape),
    "sum of a softmax and a square": lambda x: x.softmax(0).sum() + x[0] ** 2,
    "log_softmax": lambda x: x.log_softmax(0).exp().cumsum(0),
}
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jac": torchjac.jac,
    "forward": lambda f: torchjac.jac(f, mode="forward"),
    "hessian": torchjac.hessian,
}
Spoil = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def points(size: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [scale * torch.randn(size, dtype=dtype) for scale in (1.0, 1e2, 1e-2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ZERO)
def test_no_alarm_where_the_derivative_is_zero_but_for_rounding(
    name: str, transform: str, dtype: torch.dtype
) -> None:
    for size in (2, 5, 64):
        for x in points(size, dtype):
            assert TRANSFORMS[transform](ZERO[name]).plan(x).verify(x)


def spoiled(plan: Any, spoil: Spoil) -> Any:
    """The same plan with a program whose results are changed."""
    program = copy.copy(plan._program)
    right = program._run
    program._run = lambda *tensors: spoil(right(*tensors))
    return dataclasses.replace(plan, _program=program)


def one_entry_off(by: float, at: int) -> Spoil:
    def spoil(results: Sequence[Tensor]) -> Sequence[Tensor]:
        first = results[0].clone(memory_format=torch.contiguous_format)
        first.view(-1)[at] += by
        return [first, *results[1:]]

    return spoil


def scaled(factor: float) -> Spoil:
    return lambda results: [results[0] * factor, *results[1:]]


@pytest.mark.parametrize("at", [0, 7])
@pytest.mark.parametrize("by", [1e-3, -1.0])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ZERO)
def test_an_entry_that_is_off_where_all_others_cancel(
    name: str, transform: str, by: float, at: int
) -> None:
    x = points(8, torch.float64)[0]
    plan = spoiled(TRANSFORMS[transform](ZERO[name]).plan(x), one_entry_off(by, at))
    with pytest.raises(PlanError, match="one plain backward pass"):
        plan.verify(x)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ZERO)
def test_an_entry_that_is_off_in_single_precision(name: str, transform: str) -> None:
    x = points(8, torch.float32)[0]
    plan = spoiled(TRANSFORMS[transform](ZERO[name]).plan(x), one_entry_off(1e-2, 3))
    with pytest.raises(PlanError, match="one plain backward pass"):
        plan.verify(x)


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("spoil", [scaled(1.001), scaled(-1.0), one_entry_off(1e-3, 5)])
def test_a_program_that_is_off_where_some_entries_cancel(
    spoil: Spoil, name: str, mode: str
) -> None:
    x = points(8, torch.float64)[0]
    plan = torchjac.jac(CURVED[name], mode=mode).plan(x)
    assert plan.verify(x)
    with pytest.raises(PlanError, match="one plain backward pass and one plain forward pass"):
        spoiled(plan, spoil).verify(x)


@pytest.mark.parametrize("spoil", [scaled(1.001), one_entry_off(1e-2, 12)])
def test_a_hessian_that_is_off(spoil: Spoil) -> None:
    x = points(8, torch.float64)[0]
    plan = torchjac.hessian(lambda x: x.softmax(0).square().sum()).plan(x)
    assert plan.verify(x)
    with pytest.raises(PlanError) as caught:
        spoiled(plan, spoil).verify(x)
    assert str(caught.value) == (
        "hessian(<lambda>).verify: the derivative disagrees with one plain backward pass and one plain "
        "forward pass and a difference of gradients. If that is a difference alone, func may hold a "
        "derivative back on purpose (detach, no_grad) or have a kink here; else please report it. "
        "torchjac.testing.check_jac shows where."
    )


def test_a_forward_rule_that_is_wrong_is_not_held_against_a_hessian() -> None:
    x = torch.linspace(-1, 1, 9, dtype=torch.float64).sin().reshape(3, 3)
    x = x + torch.eye(3, dtype=torch.float64)
    plan = torchjac.hessian(torch.det).plan(x)
    torch.testing.assert_close(plan(x), torch.func.jacrev(torch.func.jacrev(torch.det))(x))
    assert plan.verify(x)
    with pytest.raises(PlanError, match="a difference of gradients"):
        spoiled(plan, scaled(1.01)).verify(x)


def test_a_forward_pass_that_a_difference_supports_is_heard(monkeypatch: Any) -> None:
    """The other two do not look: what a forward pass alone finds is found."""
    monkeypatch.setattr(proof, "adjoint_probe", lambda *args, **how: None)
    monkeypatch.setattr(proof, "difference_probe", lambda *args, **how: True)
    plan = torchjac.jac(torch.sin).plan(X)
    with pytest.raises(PlanError, match="disagrees with one plain forward pass"):
        spoiled(plan, scaled(1.01)).verify(X)


@pytest.mark.parametrize("spoil", [scaled(1.001), one_entry_off(1e-3, 4)])
def test_entries_of_a_pattern_that_are_off(spoil: Spoil) -> None:
    x = points(12, torch.float64)[0]
    transform = torchjac.jac(
        lambda x: x[1:].sin() * x[:-1], sparsity="detect", layout=torch.sparse_coo
    )
    plan = transform.plan(x)
    assert plan.verify(x)
    with pytest.raises(PlanError, match="one plain backward pass"):
        spoiled(plan, spoil).verify(x)


def test_where_every_result_is_compared_a_wrong_one_is_made_again() -> None:
    x = points(8, torch.float64)[0]
    transform = torchjac.jac(torch.sin, check="always")
    plan = transform.plan(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(x)
    with pytest.warns(DerivativeMismatchWarning, match="made again without the plan"):
        got = spoiled(plan, scaled(1.001))(x)
    torch.testing.assert_close(got, torch.diag(x.cos()))


def test_verifying_in_inference_mode_and_not_in_a_transform() -> None:
    plan = torchjac.jac(torch.sin).plan(X)
    with torch.inference_mode():
        assert plan.verify(X)
    with pytest.raises(TorchjacError):
        torch.func.vmap(lambda x: x * plan.verify(x))(X[None])


@pytest.mark.parametrize(
    "transform",
    [
        torchjac.jac(lambda x: x.softmax(0).sum()),
        torchjac.jac(torch.abs),
        torchjac.jac(torch.sqrt),
        torchjac.jac(lambda x: (1e6 * x) ** 3),
        torchjac.jac(lambda x: (1e-9 * x) ** 3),
    ],
    ids=["zero", "kink", "infinite", "large", "tiny"],
)
def test_verifying_raises_no_false_alarm(transform: Any) -> None:
    for x in (X.abs(), torch.zeros(4).double()):
        assert transform.plan(x).verify(x)


ROOTS = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_nan_that_plain_autograd_does_not_have(mode: Any, layout: Any, at: int) -> None:
    """Where a derivative is infinite, products with random seeds say nothing of it."""

    def func(x: Tensor) -> Tensor:
        return x[:-1].sqrt() + x[1:]

    transform = torchjac.jac(func, mode=mode, sparsity="detect", layout=layout)
    plan = transform.plan(ROOTS)
    assert plan.verify(ROOTS)
    with pytest.raises(PlanError, match=r"disagrees|is nan where neither"):
        spoiled(plan, one_entry_off(math.nan, at)).verify(ROOTS)


def test_a_nan_beside_an_infinity_is_told_of() -> None:
    plan = spoiled(torchjac.jac(torch.sqrt).plan(ROOTS), one_entry_off(math.nan, 0))
    with pytest.raises(PlanError) as caught:
        plan.verify(ROOTS)
    assert str(caught.value) == (
        "jac(sqrt).verify: the derivative is nan where neither the plain backward pass of the row nor the "
        "plain forward pass of the column is. Please report it. torchjac.testing.check_jac shows where."
    )


@pytest.mark.parametrize(
    "func",
    [
        lambda x: (x.sqrt() ** 2).sum(0, keepdim=True) + x,
        lambda x: torch.outer(x.log(), x).sum(0),
        lambda x: x / x.sum(-1, keepdim=True).detach() * (x * 0).log(),
    ],
    ids=["by rows", "by columns", "everywhere"],
)
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_nan_that_plain_autograd_has_too(mode: Any, func: Any) -> None:
    """By rows of backward passes, or by columns of forward passes."""
    assert torchjac.jac(func, mode=mode).plan(ROOTS).verify(ROOTS)
    batch = torch.stack([ROOTS, ROOTS + 1])
    assert torchjac.batched_jac(func, mode=mode).plan(batch).verify(batch)


def test_a_nan_of_one_sample() -> None:
    batch = torch.stack([ROOTS + 1, ROOTS])
    plan = torchjac.batched_jac(torch.sqrt).plan(batch)
    assert plan.verify(batch)
    with pytest.raises(PlanError, match="is nan where neither"):
        spoiled(plan, one_entry_off(math.nan, 9)).verify(batch)
