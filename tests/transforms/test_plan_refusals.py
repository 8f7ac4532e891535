"""Where a plan cannot be made, that is said; what the derivative refuses, the plan refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import torchjac
from tests.transforms.planned import MARKS, X, Y
from torchjac.errors import PlanError, TorchjacError

pytestmark = MARKS


def planned(x: Tensor) -> Tensor:
    return torchjac.jac(torch.sin).plan(x)(x)


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.func.vmap(planned)(X[None]),
        lambda: torch.func.grad(lambda x: planned(x).sum())(X),
        lambda: torch.func.jvp(planned, (X,), (X,)),
        lambda: torchjac.jac(planned, mode="forward")(X),
    ],
    ids=["vmap", "grad", "jvp", "jac"],
)
def test_no_plan_is_made_within_a_transform(around: Callable[[], Any]) -> None:
    with pytest.raises(PlanError, match="Make it outside"):
        around()


class Reversed(TorchFunctionMode):
    """A mode that changes what functions do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return -result if func is torch.sin else result


def test_under_a_function_mode_a_plan_does_what_the_derivative_does() -> None:
    plan = torchjac.jac(lambda x: torch.sin(x)).plan(X)
    with Reversed():
        torch.testing.assert_close(plan(Y), -torch.diag(Y.cos()))
        with pytest.raises(PlanError, match="Make it outside"):
            planned(X)


class OwnError(Exception):
    pass


def raises(x: Tensor) -> Tensor:
    raise OwnError


@pytest.mark.parametrize(
    ("func", "options", "args"),
    [
        (torch.sin, {"argnums": 3}, (X,)),
        (torch.sin, {}, (X.int(),)),
        (torch.sin, {}, (2.0,)),
        (torch.sin, {}, ()),
        (lambda x: 3, {}, (X,)),
        (lambda x: x > 0, {}, (X,)),
        (lambda x: torch.view_as_complex(x.reshape(2, 2)), {}, (X,)),
        (lambda x: x, {"has_aux": True}, (X,)),
        (torch.sin, {"sparsity": torch.eye(3).bool()}, (X,)),
        (raises, {}, (X,)),
    ],
)
def test_what_the_derivative_refuses_the_plan_refuses(func: Any, options: Any, args: Any) -> None:
    transform = torchjac.jac(func, **options)
    with pytest.raises((TorchjacError, OwnError)) as by_call:
        transform(*args)
    with pytest.raises(type(by_call.value)) as by_plan:
        transform.plan(*args)
    assert str(by_plan.value) == str(by_call.value)


def test_what_a_function_raises_later_comes_out() -> None:
    broken: list[int] = []

    def func(x: Tensor) -> Tensor:
        if x.sum() > 100 or broken:
            raise OwnError
        return x.sin()

    plan = torchjac.jac(func).plan(X)
    broken.append(1)
    with pytest.raises(OwnError):
        plan(X)


def test_whether_to_tune_is_true_or_false() -> None:
    with pytest.raises(
        TorchjacError, match=r"jac\(\.\.\.\)\.plan\(tune='yes'\): expected True or Fal"
    ):
        torchjac.jac(torch.sin).plan(X, tune="yes")


def test_a_path_that_is_none() -> None:
    with pytest.raises(TypeError, match="PathLike"):
        torchjac.jac(torch.sin).plan(X).save(None)  # type: ignore[arg-type]
