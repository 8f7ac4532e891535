"""Functions get copies of their arguments, in every call alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac

DOUBLE = torch.float64
FULL = torch.ones(6, 6).bool()


def point() -> Tensor:
    return torch.linspace(1, 2, 6, dtype=DOUBLE)


def weight() -> Tensor:
    return torch.linspace(2, 3, 6, dtype=DOUBLE)


class Writing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * x * w

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        product = 2 * grads[0] * x * w
        w.add_(1)
        return product, None


def writing(x: Tensor, w: Tensor) -> Tensor:
    x.mul_(2)
    return x * x * w.mul_(3)


def writing_in_backward(x: Tensor, w: Tensor) -> Tensor:
    return Writing.apply(x, w)  # type: ignore[no-any-return]


def writing_in_grad_mode(x: Tensor, w: Tensor) -> Tensor:
    y = x * 1
    if torch.is_grad_enabled():
        x.detach().mul_(2)
        w.mul_(2)
    return y * y * w


def writing_into_memory(x: Tensor, w: Tensor) -> Tensor:
    w.numpy()[:] *= 2
    return x * x * w


def writing_at_a_point(x: Tensor, w: Tensor) -> Tensor:
    return x * x * (w.mul_(2) if x.sum() < 0 else w)


def learning(x: Tensor, w: Tensor) -> Tensor:
    w.requires_grad_()
    with torch.enable_grad():
        (w**3).sum().backward()
    assert w.grad is not None
    return x * x * w.grad


def asking_who(x: Tensor, w: Tensor) -> Tensor:
    return x * x * (7 if w is SHARED else 2)


def asking_of_what_kind(x: Tensor, w: Tensor) -> Tensor:
    return x * x * (7 if isinstance(w, nn.Parameter) else 2)


def viewing(x: Tensor, w: Tensor) -> Tensor:
    return (x.view(-1) ** 2) * w.view(-1)


SHARED = weight()
FUNCTIONS: list[Callable[[Tensor, Tensor], Tensor]] = [
    writing,
    writing_in_backward,
    writing_in_grad_mode,
    writing_into_memory,
    writing_at_a_point,
    learning,
    asking_who,
    asking_of_what_kind,
    viewing,
]
WEIGHTS = {
    "shared": lambda: SHARED,
    "parameter": lambda: nn.Parameter(weight(), requires_grad=False),
    "strided": lambda: torch.stack([weight(), weight()], 1)[:, 0],
}


@pytest.mark.parametrize("sparsity", [FULL, None], ids=["sparse", "dense"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda func: func.__name__)
def test_every_call_is_like_the_first(func: Any, kind: str, grad: bool, sparsity: Any) -> None:
    w = WEIGHTS[kind]()
    derivative = torchjac.jac(func, mode="reverse", sparsity=sparsity)
    with torch.set_grad_enabled(grad):
        for sign in (1, 1, 1, 1, -1, 1, -1):
            x = torch.stack([point(), point()], 1)[:, 0] * sign
            with torch.enable_grad():
                copy = x.detach().clone().requires_grad_()
                (expected,) = torch.autograd.grad(func(copy * 1, w.detach().clone()).sum(), copy)
            torch.testing.assert_close(derivative(x, w), torch.diag(expected))
            torch.testing.assert_close(x, point() * sign)
            torch.testing.assert_close(w.detach(), weight())
            assert (w.requires_grad, w.grad) == (False, None)


def test_what_is_handed_out_is_no_argument() -> None:
    derivative = torchjac.jac(lambda x: x, sparsity=torch.eye(6).bool(), return_value=True)
    for _ in range(4):
        x = point()
        value, _ = derivative(x)
        value.zero_()
        torch.testing.assert_close(x, point())


def test_containers_are_copied_too() -> None:
    derivative = torchjac.jac(lambda x, more: x * more.pop(), sparsity=torch.eye(6).bool())
    for _ in range(4):
        more = [weight()]
        torch.testing.assert_close(derivative(point(), more), torch.diag(weight()))
        assert len(more) == 1
