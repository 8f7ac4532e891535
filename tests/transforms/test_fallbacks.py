"""mode="auto" works whenever any mode works, and says once what it fell back from."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import torchjac
from tests.sparse import DETECTS
from torchjac.errors import TorchjacFallbackWarning, UnsupportedError


def loop(func: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian by the plain loop over rows: slow, obvious, and PyTorch's most trusted path."""
    leaf = x.detach().clone().requires_grad_()
    y = func(leaf)
    rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in y.reshape(-1)]
    return torch.stack(rows).reshape(*y.shape, *x.shape)


def said(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result, and torchjac's own warnings; PyTorch's about its slow batching rules are let go."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    own = [w for w in caught if issubclass(w.category, TorchjacFallbackWarning)]
    return result, [str(w.message) for w in own]


GRID = torch.rand(1, 6, 6, 2, dtype=torch.float64) * 2 - 1
OTHER = torch.randn(7, 2, dtype=torch.float64)
LSTM = nn.LSTM(2, 6).double()

# No forward rule, and more outputs than inputs by far, so that auto wants forward mode.
WITHOUT_FORWARD: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, str]] = {
    "grid_sample": (
        lambda x: functional.grid_sample(x, GRID, align_corners=False),
        torch.randn(1, 1, 3, 3, dtype=torch.float64),
        "grid_sampler_2d",
    ),
    "pdist": (functional.pdist, torch.randn(9, 1, dtype=torch.float64), "_pdist_forward"),
    "lstm": (lambda x: LSTM(x)[0], torch.randn(3, 2, dtype=torch.float64), ""),
    "attention": (
        lambda x: functional.scaled_dot_product_attention(
            x, x.repeat(1, 1, 1, 1), x.repeat(1, 1, 1, 1)
        ).repeat(1, 1, 1, 4),
        torch.randn(1, 1, 2, 4, dtype=torch.float64),
        "attention",
    ),
}


@pytest.mark.parametrize("name", WITHOUT_FORWARD)
def test_no_forward_rule(name: str) -> None:
    func, x, op = WITHOUT_FORWARD[name]
    got, messages = said(lambda: torchjac.jac(func)(x))
    torch.testing.assert_close(got, loop(func, x))
    if messages:  # newer versions of PyTorch may know the rule
        (message,) = messages
        assert op in message
        assert "forward mode" in message
        assert "passes" in message
    again, messages = said(lambda: torchjac.jac(func)(x))
    assert messages == []
    torch.testing.assert_close(again, got)


class NoVmap(torch.autograd.Function):
    """A backward that PyTorch cannot batch: it looks at the values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad if grad.abs().sum().item() >= 0 else grad


def test_forward_asked_for_explicitly_is_refused() -> None:
    x = torch.randn(3, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="forward mode, one pass at a time") as caught:
        torchjac.jac(NoVmap.apply, mode="forward")(x)
    assert "mode='auto'" in str(caught.value)


def test_a_backward_without_batching_rule_is_looped() -> None:
    x = torch.randn(3, dtype=torch.float64)
    got, messages = said(lambda: torchjac.jac(NoVmap.apply)(x))
    torch.testing.assert_close(got, torch.diag(2 * x))
    (message,) = messages
    assert "NoVmapBackward" in message
    assert "reverse mode, one pass at a time, 3 passes" in message


class OldStyle(torch.autograd.Function):
    """Without setup_context, which torch.func insists on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


PLAIN_AUTOGRAD: dict[str, Callable[[Tensor], Tensor]] = {
    "old-style function": OldStyle.apply,
    "checkpoint": lambda x: checkpoint(lambda z: z**3, x, use_reentrant=False),
    "saved-tensor hooks": lambda x: _on_hooks(x),
}


def _on_hooks(x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(), torch.from_numpy):
        return x**3


@pytest.mark.parametrize("name", PLAIN_AUTOGRAD)
def test_what_torch_func_refuses_works(name: str) -> None:
    x = torch.randn(4, dtype=torch.float64)
    func = PLAIN_AUTOGRAD[name]
    torch.testing.assert_close(said(lambda: torchjac.jac(func)(x))[0], torch.diag(3 * x**2))
    hessian, _ = said(lambda: torchjac.hessian(lambda x: func(x).sum())(x))
    torch.testing.assert_close(hessian, torch.diag(6 * x))


def hooked(x: Tensor) -> Tensor:
    y = x**3
    y.register_hook(lambda grad: grad * 1)
    return y


def with_gradient_retained(x: Tensor) -> Tensor:
    y = x**3
    y.retain_grad()
    return y


@pytest.mark.parametrize("func", [hooked, with_gradient_retained])
def test_hooks_of_tensors_ask_for_a_graph(func: Callable[[Tensor], Tensor]) -> None:
    """Without one they cannot even be registered, as where a function is first looked at."""
    x = torch.randn(4, dtype=torch.float64)
    expected = torch.diag(3 * x**2)
    for sparsity in (None, "detect") if DETECTS else (None,):
        torch.testing.assert_close(torchjac.jac(func, sparsity=sparsity)(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(torchjac.jac(func, mode="reverse")(x), expected)
    batched = torchjac.batched_jac(func, per_sample=False)(x[:, None])
    torch.testing.assert_close(batched.flatten(), expected.diagonal())


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_control_flow_that_depends_on_values(mode: str) -> None:
    def func(x: Tensor) -> Tensor:
        steps = int(x.sum().item())
        for _ in range(steps):
            x = x * x[:1]
        return x

    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    got, _ = said(lambda: torchjac.jac(func, mode=mode)(x))
    torch.testing.assert_close(got, loop(func, x))


def test_per_sample_function_with_old_style_op_or_hooks() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    for func in PLAIN_AUTOGRAD.values():
        got, _ = said(lambda func=func: torchjac.batched_jac(func)(x))
        torch.testing.assert_close(got, torch.diag_embed(3 * x**2))


def test_hessian_without_double_backward_rule() -> None:
    """A backward that cannot be differentiated again is left for forward mode, or refused."""
    x = torch.randn(1, 1, 3, 4, dtype=torch.float64)

    def func(x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x).square().sum()

    try:
        torch.func.hessian(func)(x)
    except RuntimeError:
        with pytest.raises(UnsupportedError, match="hessian"):
            torchjac.hessian(func)(x)
    else:  # newer versions of PyTorch may know how
        torch.testing.assert_close(torchjac.hessian(func)(x), torch.func.hessian(func)(x))
