"""A plan looks through what traces can hold, and gives what plain backward passes give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchjac
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
from torchjac.errors import UnsupportedError

pytestmark = MARKS


class OldSine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class NewSine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return 3 * g


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.5, 0.5)


class Shifted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g + 1


def held_back(x: Tensor) -> Tensor:
    with torch.no_grad():
        held = x * 2
    return x * held * x.detach()


def changed_in_place(x: Tensor) -> Tensor:
    y = x * 1
    y[1:] *= x[:-1]
    y.view(-1)[0] += 3
    return y.sin_()


def saved_elsewhere(x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: 2 * t, lambda t: t / 2):
        return x.sin() * x


def with_a_hook(x: Tensor) -> Tensor:
    y = x.sin()
    if y.requires_grad:
        y.register_hook(lambda g: 2 * g)
    return MATRIX @ y


def with_a_curved_hook(x: Tensor) -> Tensor:
    y = x.sin()
    if y.requires_grad:
        y.register_hook(lambda g: torch.where(g > 0, g, 2 * g))
    return MATRIX @ y


def by_plain_autograd(x: Tensor) -> Tensor:
    with torch.enable_grad():
        here = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad((here**3).sum(), here, create_graph=True)[0]


LINEAR = nn.Linear(4, 4).double()
LSTM = nn.LSTM(4, 3).double()
ATTENTION = nn.MultiheadAttention(4, 2).double()
LAYER = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
EVALUATED = nn.BatchNorm1d(4).double().eval()


LOOKED_THROUGH: dict[str, Callable[[Tensor], Tensor]] = {
    "old autograd.Function": OldSine.apply,
    "new autograd.Function": NewSine.apply,
    "straight through": lambda x: MATRIX @ StraightThrough.apply(x),
    "clipped": lambda x: MATRIX @ Clipped.apply(x),
    "no_grad and detach": held_back,
    "in place": changed_in_place,
    "argument in place": lambda x: x.sin_() * x,
    "checkpoint": lambda x: checkpoint(lambda z: (MATRIX @ z).tanh(), x, use_reentrant=False),
    "saved-tensor hooks": saved_elsewhere,
    "hook": with_a_hook,
    "curved hook": with_a_curved_hook,
    "vmap": lambda x: torch.func.vmap(lambda a: a.sin() * a)(x),
    "grad": lambda x: torch.func.grad(lambda a: (a.sin() * a).sum())(x),
    "jacrev": lambda x: torch.func.jacrev(lambda a: a.sin() * a.sum())(x),
    "jacfwd": lambda x: torch.func.jacfwd(lambda a: a.sin() * a.sum())(x),
    "jvp": lambda x: torch.func.jvp(lambda a: a.sin() * a, (x,), (torch.ones_like(x),))[1],
    "jac": lambda x: torchjac.jac(lambda a: a.sin() * a.sum())(x),
    "plain autograd": by_plain_autograd,
    "functional_call": lambda x: torch.func.functional_call(
        LINEAR, {"weight": MATRIX * x.sum()}, (x,)
    ),
    "LSTM": lambda x: LSTM(rows(x))[0],
    "attention": lambda x: ATTENTION(rows(x), rows(x), rows(x))[0],
    "transformer": lambda x: LAYER(rows(x)[None]),
    "batch norm that does not train": lambda x: EVALUATED(rows(x)),
    "logcumsumexp": lambda x: MATRIX @ x.logcumsumexp(0),
    "reads strides": lambda x: x.reshape(2, 2).T.reshape(4) * x.numel(),
    "new tensors": lambda x: x * torch.arange(4.0) + x.new_tensor([1.0, 2, 3, 4]),
    "lists of numbers": lambda x: x[torch.tensor([0, 2])] * torch.as_tensor([3.0, 4.0]),
    "a stack of captured tensors": lambda x: torch.stack([MATRIX[0], x, MATRIX[1]]).sin(),
}


@pytest.mark.parametrize("check", ["first", "never"])
@pytest.mark.parametrize("name", LOOKED_THROUGH)
def test_what_a_plan_looks_through(name: str, check: Any) -> None:
    func = LOOKED_THROUGH[name]
    plan = torchjac.jac(func, check=check).plan(X)
    assert BY_SIZES not in reason(plan)
    for x in (X, Y):
        torch.testing.assert_close(plan(x), single_passes(func, x))


@pytest.mark.parametrize("sparsity", [None, "detect"])
@pytest.mark.parametrize("mode", ["auto", "reverse"])
@pytest.mark.parametrize("function", [Clipped, Shifted], ids=["clipped", "shifted"])
def test_a_backward_that_is_not_linear_is_never_transposed(
    function: Any, mode: str, sparsity: Any
) -> None:
    def func(x: Tensor) -> Tensor:
        return MATRIX[:, :2] @ function.apply(x[:2])  # fewer inputs than outputs

    transform = torchjac.jac(func, mode=mode, sparsity=sparsity)
    try:
        plan = transform.plan(X)
    except torchjac.errors.SparsityMismatchError:
        assert sparsity == "detect"  # a colour is a sum of seeds
        return
    torch.testing.assert_close(plan(Y), single_passes(func, Y))


@pytest.mark.parametrize(
    ("transform", "x"),
    [
        (lambda f: torchjac.jac(f, mode="forward"), X),
        (lambda f: torchjac.hessian(lambda x: f(x).sum(), mode="reverse-over-forward"), X),
        (lambda f: torchjac.batched_jac(f, mode="forward"), X[None]),
    ],
    ids=["jac", "hessian", "batched_jac"],
)
@pytest.mark.parametrize("func", [Clipped.apply, ThroughNumpy.apply], ids=["clipped", "numpy"])
def test_what_the_mode_cannot_do_is_refused_at_the_plan(func: Any, transform: Any, x: Any) -> None:
    with pytest.raises(UnsupportedError) as by_call:
        transform(func)(x)
    with pytest.raises(UnsupportedError) as by_plan:
        transform(func).plan(x)
    assert str(by_plan.value) == str(by_call.value)
