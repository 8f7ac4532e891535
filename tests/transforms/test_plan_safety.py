"""A plan is right or says that it keeps to sizes: whatever func captures, changes, draws or branches on."""

import contextlib
import functools
import logging
import os
import random
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import torchjac
from tests.sparse import DETECTS
from torchjac.errors import (
    PlanError,
    PlanMismatchError,
    TorchjacError,
    TorchjacFallbackWarning,
    UnsupportedError,
)
from torchjac.foundations.pytree import flatten

pytestmark = [
    pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    # Of PyTorch 2.4 and 2.14 about their own parts: checkpoints, and the compiler.
    pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]

X = torch.tensor([0.3, -0.8, 1.2, 0.5], dtype=torch.float64)
Y = torch.tensor([-0.4, 0.9, 0.2, -1.5], dtype=torch.float64)
MATRIX = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
BY_SIZES = "by sizes alone: "


def reason(plan: Any) -> str:
    """The chosen way and why, as it is printed."""
    return str(plan).split("chosen\n  ")[1].splitlines()[0]


def single_passes(func: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The Jacobian by plain autograd, which shares no code with a plan."""
    x = x.clone().requires_grad_()
    y = func(x * 1)
    rows = [
        torch.autograd.grad(entry, x, retain_graph=True, materialize_grads=True)[0]
        for entry in y.reshape(-1)
    ]
    return torch.stack(rows).reshape(*y.shape, *x.shape)


# What a plan looks through


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


class ThroughNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx, g):
        return g * torch.from_numpy(np.cos(ctx.saved_tensors[0].detach().numpy()))


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


def rows(x: Tensor) -> Tensor:
    return torch.stack([x, 2 * x, x**2])


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


def test_forward_mode_without_a_trace_is_planned_by_sizes_where_pytorch_has_it() -> None:
    func = lambda x: MATRIX @ (x.sin() if x.sum() > 0 else x.cos())  # noqa: E731
    plan = torchjac.jac(func, mode="forward").plan(X)
    assert BY_SIZES in reason(plan)
    torch.testing.assert_close(plan(Y), single_passes(func, Y))


# What it cannot look through


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
    "script": (torch.jit.script(nn.Linear(4, 4).double()), "cannot be watched"),
    "torch.compile": (torch.compile(lambda x: x.sin() * x, backend="eager"), "cannot be watched"),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_a_plan_cannot_look_through_is_said_and_right(name: str) -> None:
    func, said = OPAQUE[name]
    plan = torchjac.jac(func).plan(X)
    assert BY_SIZES in reason(plan)
    assert said in reason(plan)
    assert "through the function itself" in str(plan)
    for x in (X, Y):
        torch.testing.assert_close(plan(x), single_passes(func, x))


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


# Values that are captured


def in_a_thread(read: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def run(held: Tensor) -> Any:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(read(held)))
        thread.start()
        thread.join()
        return found[0]

    return run


POOL = ThreadPoolExecutor(1)


def by_a_pool(read: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda held: POOL.submit(read, held).result()


def number_in(text: str) -> float:
    return float(re.findall(r"\d+\.\d*", text)[0])


def past_the_modes(held: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        return held.tolist()


def captured_values() -> dict[str, tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]]:
    """A tensor that is captured, and a function of it that is about its value."""
    two, numbers = torch.tensor(2.0, dtype=torch.float64), torch.arange(1.0, 5).double()
    whole = torch.tensor(2)
    return {
        "item": (two, lambda x, held: x * held.item()),
        "float": (two, lambda x, held: x * float(held)),
        "int": (whole, lambda x, held: x ** int(held)),
        "index": (whole, lambda x, held: x[:held] * 2),
        "branch": (two, lambda x, held: x * 2 if held > 2 else x * 3),
        "tolist": (numbers, lambda x, held: x * x.new_tensor(held.tolist())),
        "numpy": (numbers, lambda x, held: x * torch.from_numpy(held.numpy() * 2)),
        "asarray": (numbers, lambda x, held: x * torch.as_tensor(np.asarray(held) * 2)),
        "max": (numbers, lambda x, held: x * max(held)),
        "entry": (numbers, lambda x, held: x * held[0].item()),
        "nonzero": (numbers, lambda x, held: x[(held > 3).nonzero()[:, 0]]),
        "full": (two, lambda x, held: x * torch.full((4,), held)),
        "arange": (two, lambda x, held: x[torch.arange(0, held).long()]),
        "alpha": (two, lambda x, held: torch.add(x * x, x, alpha=held)),
        "split": (whole, lambda x, held: x.split([held, 4 - held])[0] * 1),
        "shifted": (two, lambda x, held: x * (held + 1).item()),
        "converted": (two, lambda x, held: x * held.int().item()),
        "row": (two, lambda x, held: x.square()[held.long()]),
        "list": (two, lambda x, held: x * torch.tensor([held] * 4)),
        "new list": (two, lambda x, held: x * x.new_tensor([held] * 4)),
        "old constructor": (two, lambda x, held: x * torch.Tensor([held]).double()),
        "old new": (two, lambda x, held: x * x.new([held])),
        "list of entries": (
            whole,
            lambda x, held: torch.sparse_coo_tensor([[0], [0]], [held], (4, 4)).double() @ x,
        ),
        "old index": (whole, lambda x, held: x[torch.LongTensor([held, 0])] ** 2),
        "allclose": (two, lambda x, held: x * torch.allclose(held, torch.tensor(2.0).double())),
        "in": (two, lambda x, held: x * (3 if held in [torch.tensor(2.0).double()] else 4)),
        "equals a literal": (two, lambda x, held: x * (3 if held == torch.tensor(2.0) else 4)),
        "format": (two, lambda x, held: x * float(f"{held:.3f}")),
        "str": (two, lambda x, held: x * number_in(str(held))),
        "repr": (two, lambda x, held: x * number_in(repr(held))),
        "texts": (numbers, lambda x, held: x * number_in(f"{[held]}")),
        "index of a range": (whole, lambda x, held: sum(x * n for n in range(held + 1))),
        "item in a thread": (two, lambda x, held: x * in_a_thread(Tensor.item)(held)),
        "float in a thread": (two, lambda x, held: x * in_a_thread(float)(held)),
        "numpy in a thread": (two, lambda x, held: x * float(in_a_thread(Tensor.numpy)(held))),
        "str in a thread": (two, lambda x, held: x * number_in(in_a_thread(str)(held))),
        "product in a thread": (two, lambda x, held: x * in_a_thread(lambda h: 2 * h)(held)),
        "item by a pool": (two, lambda x, held: x * by_a_pool(Tensor.item)(held)),
        "past the modes": (two, lambda x, held: x * past_the_modes(held)),
        # These are about the tensor, and stay in the graph.
        "power": (two, lambda x, held: x.abs() ** held),
        "clamp": (two, lambda x, held: (9 * x).clamp(max=held)),
        "gather": (whole, lambda x, held: x.gather(0, held.reshape(1))),
        "detach": (numbers, lambda x, held: x * held.detach()),
        "data": (numbers, lambda x, held: x * held.data),
        "cast": (numbers, lambda x, held: x * held.float()),
        "rows": (numbers, lambda x, held: x.square()[held.long() % 4]),
        "write": (two, lambda x, held: (x * x).index_fill(0, torch.tensor([1]), held)),
        "copy": (numbers, lambda x, held: x * torch.as_tensor(held)),
        "derived": (numbers, lambda x, held: x * (held * 2)),
        "shared": (numbers, lambda x, held: x * torch.from_dlpack(held)),
    }


@pytest.mark.parametrize("name", captured_values())
def test_a_captured_tensor_that_is_written_to_is_seen(name: str) -> None:
    held, func = captured_values()[name]
    plan = torchjac.jac(lambda x: func(x, held)).plan(X)
    held.add_(1)
    torch.testing.assert_close(plan(Y), single_passes(lambda x: func(x, held), Y))


def test_writes_into_a_module_are_seen() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval()).double()
    func = lambda x: module(x[None])[0]  # noqa: E731
    plan = torchjac.jac(func).plan(X)
    with torch.no_grad():
        for held in (*module.parameters(), module[1].running_mean, module[1].running_var):
            held.mul_(2)
    module[0].weight.data = module[0].weight.data + 1
    module.load_state_dict({name: t + 1 for name, t in module.state_dict().items()})
    torch.testing.assert_close(plan(X).detach(), single_passes(func, X))


GRADIENT = torch.ones(4, dtype=torch.float64)
BELONGING: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], Any]]] = {
    "gradient": (
        lambda x: x * (2 if GRADIENT.grad is None else GRADIENT.grad),
        lambda: setattr(GRADIENT, "grad", 3 * torch.ones(4).double()),
    ),
    "version": (lambda x: x * (1 + GRADIENT._version % 2), lambda: GRADIENT.mul_(1)),
    "environment": (
        lambda x: x * float(os.environ.get("TORCHJAC_TESTS_SCALE", "2")),
        lambda: os.environ.__setitem__("TORCHJAC_TESTS_SCALE", "3"),
    ),
}


@pytest.mark.parametrize("name", BELONGING)
def test_what_belongs_to_a_tensor_or_to_the_world_is_not_written_down(name: str) -> None:
    func, change = BELONGING[name]
    plan = torchjac.jac(func).plan(X)
    assert BY_SIZES in reason(plan)
    try:
        change()
        torch.testing.assert_close(plan(Y), single_passes(func, Y))
    finally:
        GRADIENT.grad = None
        os.environ.pop("TORCHJAC_TESTS_SCALE", None)


# Bindings that are captured


def rebindings() -> dict[str, tuple[Callable[[nn.Module], Any], str]]:
    parameter = nn.Parameter(torch.ones(4, 4))
    return {
        "eval": (nn.Module.eval, "training was True and is False now"),
        "parameter": (lambda m: setattr(m[0], "weight", parameter), "0.weight is another tensor"),
        "submodule": (lambda m: m.__setitem__(0, nn.Linear(4, 4)), "0 is another Linear now"),
        "hook": (lambda m: m[1].register_forward_hook(lambda *_: None), "_forward_hooks"),
        "attribute": (lambda m: setattr(m[1], "approximate", "tanh"), "was 'none' and is 'tanh'"),
        "double": (nn.Module.double, "another shape, dtype or device now"),
        "resized": (
            lambda m: setattr(m[0].bias, "data", torch.ones(1)),
            "another shape, dtype or device now",
        ),
        "transposed": (
            lambda m: setattr(m[0].weight, "data", torch.randn(4, 4).T),
            "or other strides",
        ),
    }


@pytest.mark.parametrize("change", rebindings())
def test_what_is_rebound_is_refused_by_name(change: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    plan = torchjac.jac(module).plan(X.float())
    run, said = rebindings()[change]
    run(module)
    with pytest.raises(PlanMismatchError, match="Make a new plan") as caught:
        plan(X.float())
    assert said in str(caught.value)


def test_what_is_rebound_is_refused_within_a_transform_too() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    plan = torchjac.jac(module).plan(X.float())
    module.eval()
    with pytest.raises(PlanMismatchError, match="training was True and is False now"):
        torch.func.vmap(plan)(X.float()[None])


def test_numbers_and_tensors_of_closures() -> None:
    scale, weight, options = 2.0, MATRIX, {"shift": [1.0]}

    def func(x: Tensor) -> Tensor:
        return (weight @ x) ** scale + options["shift"][0] * x

    plan = torchjac.jac(func).plan(X)
    scale = 3.0
    with pytest.raises(PlanMismatchError, match=r"'scale' of func was 2.0 and is 3.0 now"):
        plan(X)
    scale = 2.0
    plan(X)
    options["shift"][0] = 5.0
    with pytest.raises(PlanMismatchError, match="'shift'"):
        plan(X)
    options["shift"][0] = 1.0
    weight = MATRIX.clone()
    with pytest.raises(PlanMismatchError, match="'weight'"):
        plan(X)
    weight = MATRIX
    torch.testing.assert_close(plan(Y), single_passes(func, Y))


def test_which_parameters_require_grad_is_part_of_the_plan() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(X.clone()), nn.Parameter(Y.clone(), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.a**2 * self.b.sin()

    net = Net()
    transform = torchjac.jac(net, argnums="params")
    plan = transform.plan(X)
    net.b.requires_grad_(True)
    with pytest.raises(PlanMismatchError):
        plan(X)
    net.a.requires_grad_(False)
    with pytest.raises(PlanMismatchError):
        plan(X)
    net.a.requires_grad_(True)
    net.b.requires_grad_(False)
    torch.testing.assert_close(plan(Y), transform(Y))


# Arguments


def scaled(x: Tensor, tree: Any, *, power: Any = 2) -> Tensor:
    return x**power * tree["a"]


def test_all_fields_that_differ_are_listed() -> None:
    plan = torchjac.jac(scaled).plan(X, {"a": X}, power=2)
    with pytest.raises(PlanMismatchError) as caught:
        plan(X[:2], {"a": X[:2].float()}, power=3)
    assert str(caught.value) == (
        "jac(scaled): these arguments are not those that were planned for:\n"
        "  argument 0: shape (4,) was planned, got (2,)\n"
        "  argument 1: shape (4,) was planned, got (2,)\n"
        "  argument 1: dtype torch.float64 was planned, got torch.float32\n"
        "  keyword 'power': value 2 was planned, got 3\n"
        "Make a plan for them: .plan(...) with such arguments."
    )


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "argument 0 was planned, and is missing"),
        ((X,), {}, "argument 1 was planned, and is missing"),
        ((X, {"a": X}, X), {}, "argument 2 was not planned"),
        ((X, {"a": X}), {"power": 2}, "keyword 'power' was not planned"),
        ((X, {"b": X}), {}, "argument 1: another tree"),
        ((X, {"a": X, "b": X}), {}, "argument 1: another tree"),
        ((X, {"a": 2.0}), {}, "argument 1: a tensor was planned, got a float"),
        ((X, [X]), {}, "argument 1: another tree"),
        ((X.to("meta"), {"a": X}), {}, "argument 0: device device(type='cpu') was planned"),
        ((X.tolist(), {"a": X}), {}, "argument 0: another tree"),
        ((X[None], {"a": X}), {}, "argument 0: shape (4,) was planned, got (1, 4)"),
        ((X.int(), {"a": X}), {}, "argument 0: dtype torch.float64 was planned"),
    ],
)
def test_other_arguments_are_refused(args: Any, kwargs: Any, said: str) -> None:
    plan = torchjac.jac(scaled).plan(X, {"a": X})
    with pytest.raises(PlanMismatchError) as caught:
        plan(*args, **kwargs)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("planned", "given"), [(2, 3), (2, 2.0), (1, True), (0.0, -0.0), ("a", "b"), (2.0, None)]
)
@pytest.mark.parametrize("keyword", [False, True])
def test_another_value_is_another_argument(planned: Any, given: Any, keyword: bool) -> None:
    def func(x: Tensor, value: Any) -> Tensor:
        return x.sin()

    put = (lambda v: ((X,), {"value": v})) if keyword else (lambda v: ((X, v), {}))
    args, kwargs = put(planned)
    plan = torchjac.jac(func).plan(*args, **kwargs)
    plan(*args, **kwargs)
    args, kwargs = put(given)
    with pytest.raises(PlanMismatchError, match="was planned, got"):
        plan(*args, **kwargs)


def test_an_object_among_the_arguments_is_watched() -> None:
    class Config:
        scale = 2.0

    config = Config()
    plan = torchjac.jac(lambda x, config: x * config.scale).plan(X, config)
    torch.testing.assert_close(plan(Y, config), 2 * torch.eye(4).double())
    config.scale = 3.0
    with pytest.raises(PlanMismatchError, match="scale"):
        plan(Y, config)


def test_an_argument_that_is_an_array_is_read_in_every_call() -> None:
    array = np.ones(4)
    plan = torchjac.jac(lambda x, array: x * torch.from_numpy(array)).plan(X, array)
    array[:] = 5.0
    torch.testing.assert_close(plan(X, array), 5 * torch.eye(4).double())


# Where a plan cannot be made


def planned(x: Tensor) -> Tensor:
    return torchjac.jac(torch.sin).plan(x)(x)


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.func.vmap(planned)(X[None]),
        lambda: torch.func.grad(lambda x: planned(x).sum())(X),
        lambda: torch.func.jvp(planned, (X,), (X,)),
        lambda: torchjac.jac(planned)(X),
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
