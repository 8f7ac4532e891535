"""argnums="params": a module by its own parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchjac
from tests.sparse import DETECTS
from torchjac.errors import ArgumentError, DerivativeMismatchWarning, OptionTypeError

MODES = ["auto", "forward", "reverse"]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def by_torch_func(module: nn.Module, x: Tensor) -> Any:
    parameters = {k: p.detach() for k, p in module.named_parameters() if p.requires_grad}
    return torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (x,)))(parameters)


@pytest.mark.parametrize("chunk_size", ["auto", 1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_equals_functional_call(mode: str, chunk_size: Any) -> None:
    module, x = mlp(), torch.randn(5, 3, dtype=torch.float64)
    got = torchjac.jac(module, "params", mode=mode, chunk_size=chunk_size)(x)
    assert list(got) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    torch.testing.assert_close(got, by_torch_func(module, x))


@pytest.mark.parametrize("mode", MODES)
def test_frozen_parameters_are_left_out_and_tied_ones_named_once(mode: str) -> None:
    module = mlp()
    module[0].bias.requires_grad_(False)
    x = torch.randn(3, dtype=torch.float64)
    got = torchjac.jac(module, "params", mode=mode)(x)
    assert list(got) == ["0.weight", "2.weight", "2.bias"]

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False).double()
            self.second = nn.Linear(3, 3, bias=False).double()
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).tanh())

    tied = Tied()
    got = torchjac.jac(tied, "params", mode=mode)(x)
    assert list(got) == ["first.weight"]
    leaf = tied.first.weight
    rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in tied(x)]
    torch.testing.assert_close(got["first.weight"], torch.stack(rows))


@pytest.mark.parametrize("mode", ["auto", "forward-over-reverse", "reverse-over-reverse"])
def test_hessian(mode: str) -> None:
    module, x = nn.Linear(2, 1).double(), torch.randn(2, dtype=torch.float64)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).square().sum()

    got = torchjac.hessian(Loss(), "params", mode=mode)(x)
    torch.testing.assert_close(got["inner.weight"]["inner.weight"].reshape(2, 2), 2 * x.outer(x))
    torch.testing.assert_close(got["inner.bias"]["inner.weight"].reshape(2), 2 * x)


def test_recurrent_module_with_its_flattened_weights() -> None:
    module, x = nn.GRU(2, 3).double(), torch.randn(4, 2, dtype=torch.float64)
    got = torchjac.jac(lambda out: out[0], 0)(module(x))  # a tree of tensors is fine as well
    assert got[0].shape == (4, 3, 4, 3)
    got = torchjac.jac(module, "params")(x)[0]
    for name, leaf in module.named_parameters():
        row = torch.autograd.grad(module(x)[0][1, 2], leaf)[0]
        torch.testing.assert_close(got[name][1, 2], row)


class Halved(torch.autograd.Function):
    """A square whose second derivative is half of what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (x + x.detach()) * grad


class Checkpointed(nn.Module):
    def __init__(self, square: Callable[[Tensor], Tensor] = torch.square) -> None:
        super().__init__()
        self.layers, self.square = mlp(), square

    def forward(self, x: Tensor) -> Tensor:
        def part(x: Tensor) -> Tensor:
            return self.square(self.layers(x)).sum()

        result: Tensor = checkpoint(part, x, use_reentrant=False)
        return result


@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="checkpoints of torch 2.0 differ")
@pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast:FutureWarning")
def test_a_checkpoint_evaluates_a_part_of_the_module_in_backward_passes() -> None:
    """With the parameters of the point that a difference is taken at, and not the module's own."""
    module, x = Checkpointed(), torch.randn(3, dtype=torch.float64)
    parameters = dict(module.layers.named_parameters())
    expected = torch.func.hessian(
        lambda p: torch.func.functional_call(module.layers, p, (x,)).square().sum()
    )({name: p.detach() for name, p in parameters.items()})
    derivative = torchjac.hessian(module, "params", chunk_size=1)
    got = derivative(x)
    for one in parameters:
        for other in parameters:
            block = got[f"layers.{one}"][f"layers.{other}"]
            torch.testing.assert_close(block, expected[one][other])
    if DETECTS:
        assert derivative.plan(x).verify(x)
    assert all(p is module.layers.get_parameter(name) for name, p in parameters.items())
    with pytest.warns(DerivativeMismatchWarning, match="a difference of gradients"):
        torchjac.hessian(Checkpointed(Halved.apply), "params", chunk_size=1)(x)


def test_module_is_left_as_it_was() -> None:
    module, x = mlp(), torch.randn(3, dtype=torch.float64)
    before = {name: (p, p.clone(), p.requires_grad) for name, p in module.named_parameters()}
    for mode in MODES:
        torchjac.jac(module, "params", mode=mode)(x)
    torchjac.batched_jac(module, "params")(x[None])
    for name, p in module.named_parameters():
        same, value, flag = before[name]
        assert p is same
        assert p.requires_grad == flag
        assert p.grad is None
        assert torch.equal(p, value)


def test_keyword_arguments_and_value() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            return self.weight * x * scale

    x = torch.tensor([3.0, 4.0])
    value, got = torchjac.jac(Scaled(), "params", return_value=True)(x, scale=2.0)
    torch.testing.assert_close(value.detach(), torch.tensor([6.0, 16.0]))
    torch.testing.assert_close(got["weight"].detach(), torch.diag(2 * x))


def test_result_trains_the_parameters() -> None:
    module, x = mlp(), torch.randn(3, dtype=torch.float64)
    torchjac.jac(module, "params")(x)["0.weight"].square().sum().backward()
    assert module[2].weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not torchjac.jac(module, "params")(x)["0.weight"].requires_grad


def test_bad_use_is_refused() -> None:
    with pytest.raises(OptionTypeError, match=r"func must be an nn\.Module"):
        torchjac.jac(torch.sin, "params")
    module = mlp().requires_grad_(False)
    with pytest.raises(ArgumentError, match="no parameter of Sequential requires grad"):
        torchjac.jac(module, "params")(torch.ones(3).double())
    with pytest.raises(torchjac.errors.OptionError, match="per_sample=True"):
        torchjac.batched_jac(mlp(), "params", per_sample=False)
