"""A plan composes as the derivative does: within transforms and modes, and differentiated in its turn."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import torchjac
from tests.sparse import DETECTS, point, tridiagonal
from tests.transforms.curves import MATRIX, Net, X, curve

pytestmark = [
    pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


# Around a plan

ROUND_PLAN: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "vmap": lambda f: torch.func.vmap(f),
    "grad": lambda f: torch.func.grad(lambda x: f(x).square().sum()),
    "jacrev": lambda f: torch.func.jacrev(f),
    "jacfwd": lambda f: torch.func.jacfwd(f),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x + 1,)),
    "jac": lambda f: torchjac.jac(f),
    "batched_jac": lambda f: torchjac.batched_jac(f),
    "vmap of vmap": lambda f: torch.func.vmap(torch.func.vmap(f)),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).square().sum())),
    "plan of a plan": lambda f: lambda x: torchjac.jac(f).plan(x)(x),
    "plan of a plan of a plan": lambda f: (
        lambda x: torchjac.jac(torchjac.jac(f).plan(x)).plan(x)(x)
    ),
}


def branching(x: Tensor) -> Tensor:
    return curve(x) if x.sum() > 9 else curve(1 * x)


@pytest.mark.parametrize("func", [curve, branching])
@pytest.mark.parametrize("around", ROUND_PLAN)
def test_transforms_around_a_plan(around: str, func: Callable[..., Any]) -> None:
    batched = {"vmap of vmap": (2, 3, 3), "vmap": (2, 3), "vmap of grad": (2, 3)}
    shape = {**batched, "batched_jac": (2, 3)}.get(around, (3,))
    x = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    if "vmap" in around or around == "batched_jac":
        func = curve  # vmap cannot branch
    expected = ROUND_PLAN[around](torch.func.jacrev(curve))
    if around == "batched_jac":
        expected = torch.func.vmap(torch.func.jacrev(torch.func.jacrev(curve)))
    if "plan" in around:
        expected = torch.func.jacrev(torch.func.jacrev(curve))
    if around.count("plan") == 3:
        expected = torch.func.jacrev(expected)
    got = ROUND_PLAN[around](torchjac.jac(func).plan(X))(x)
    torch.testing.assert_close(got, expected(x))


@pytest.mark.parametrize("sparsity", [None, "detect"])
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_a_tuned_plan_within_a_transform(mode: str, sparsity: Any) -> None:
    """What was measured with other seeds is no part of what runs without the program."""
    x = point(60)
    plan = torchjac.jac(tridiagonal, mode=mode, sparsity=sparsity).plan(x, tune=True)
    expected = torch.func.jacrev(tridiagonal)
    torch.testing.assert_close(plan(2 * x), expected(2 * x))
    torch.testing.assert_close(torch.func.vmap(plan)(x[None]), torch.func.vmap(expected)(x[None]))
    weighed = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(loss(plan(weighed)), weighed)
    torch.testing.assert_close(got, torch.autograd.grad(loss(expected(weighed)), weighed)[0])


def test_under_forward_mode_of_the_callers_own() -> None:
    plan = torchjac.jac(torch.sin).plan(X)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        tangent = forward_ad.unpack_dual(plan(dual)).tangent
    torch.testing.assert_close(tangent, torch.diag(-X.sin()))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_made_and_called_under_no_grad_and_inference_mode(guard: Any) -> None:
    outside = torchjac.jac(curve).plan(X)
    expected = torch.func.jacrev(curve)(2 * X)
    with guard():
        inside, x = torchjac.jac(curve).plan(X * 1), X * 2
        for plan in (outside, inside):
            torch.testing.assert_close(plan(x), expected)
            assert not plan(x).requires_grad
    torch.testing.assert_close(outside(x), expected)
    torch.testing.assert_close(inside(x), expected)


def test_called_under_autocast_as_the_derivative_is() -> None:
    def func(x: Tensor) -> Tensor:
        return (MATRIX.float() @ x).tanh()

    transform, x = torchjac.jac(func), X.float()
    plan = transform.plan(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(plan(x), transform(x))
    torch.testing.assert_close(plan(x), torch.func.jacrev(func)(x))


# Differentiating a result


def loss(jacobian: Tensor) -> Tensor:
    return jacobian.square().sum()


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_gradients_of_a_result_to_second_order(mode: str) -> None:
    net, x = Net(), X.clone().requires_grad_()
    plan = torchjac.jac(net, mode=mode).plan(X)
    for order in (1, 2):
        found = []
        for derivative in (plan, torch.func.jacrev(net)):
            grads = torch.autograd.grad(loss(derivative(x)), (x, net.weight), create_graph=True)
            if order == 2:
                grads = torch.autograd.grad(sum(map(loss, grads)), (x, net.weight))
            found.append(grads)
        torch.testing.assert_close(*found)


def test_requires_grad_is_looked_at_in_every_call() -> None:
    net = Net()
    plan = torchjac.jac(net).plan(X)
    for flag in (True, False, True):
        net.weight.requires_grad_(flag)
        assert plan(X).requires_grad == flag
    with torch.no_grad():
        assert not plan(X).requires_grad


def test_gradients_of_values_and_aux() -> None:
    def func(x: Tensor) -> Any:
        return x**3, x.sin()

    found = []
    transform = torchjac.jac(func, has_aux=True, return_value=True)
    for derivative in (transform, transform.plan(X)):
        x = X.clone().requires_grad_()
        found.append(torch.autograd.grad(sum(map(loss, derivative(x))), x))
    torch.testing.assert_close(*found)


def later_changes() -> dict[str, Callable[[Net, Tensor], Any]]:
    def in_place(pick: Callable[[Net, Tensor], Tensor]) -> Callable[[Net, Tensor], Any]:
        def change(net: Net, x: Tensor) -> None:
            with torch.no_grad():
                pick(net, x).add_(1)

        return change

    return {
        "argument": in_place(lambda net, x: x),
        "parameter": in_place(lambda net, x: net.weight),
        "buffer": in_place(lambda net, x: net.shift),
        "attribute": lambda net, x: setattr(net, "rate", 5.0),
        "data": lambda net, x: setattr(net.weight, "data", 2 * net.weight.data),
        "rebound": lambda net, x: setattr(net, "shift", 2 * net.shift),
    }


@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "plain"])
@pytest.mark.parametrize("change", later_changes())
def test_what_is_changed_before_backward_is_never_a_wrong_gradient(
    change: str, tracked: bool
) -> None:
    """Either an error, or the gradient at what was there."""
    net, x = Net(), X.clone().requires_grad_(tracked)
    (expected,) = torch.autograd.grad(loss(torch.func.jacrev(net)(x)), net.weight)
    weight = net.weight
    result = loss(torchjac.jac(net).plan(X)(x))
    later_changes()[change](net, x)
    try:
        (got,) = torch.autograd.grad(result, weight)
    except RuntimeError as error:
        assert "modified" in str(error) or "changed" in str(error)  # noqa: PT017
    except torchjac.errors.TorchjacError:
        pass
    else:
        torch.testing.assert_close(got, expected)
