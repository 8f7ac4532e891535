"""jac_of: the Jacobian of tensors that hang in a graph already."""

from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from torchjac.errors import ArgumentError, ArgumentTypeError, BatchCouplingError


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("chunk_size", ["auto", None, 1, 2, 100])
def test_equals_jac(chunk_size: Any) -> None:
    x = leaf(3)

    def func(x: Tensor) -> dict[str, Any]:
        return {"a": x.sin() * x.sum(), "none": None, "index": x.argmax(), "b": (x**2).sum()}

    got = torchjac.jac_of(func(x), x, chunk_size=chunk_size)
    torch.testing.assert_close(got, torchjac.jac(func)(x.detach()))
    assert not got["a"].requires_grad


def test_trees_of_inputs_and_unused_ones() -> None:
    x, y, z = leaf(2), leaf(3), leaf(1)
    got = torchjac.jac_of([x * y.sum(), y**2], {"x": x, "more": (y, z)})
    torch.testing.assert_close(got[0]["x"], y.sum().detach() * torch.eye(2).double())
    torch.testing.assert_close(got[1]["x"], torch.zeros(3, 2).double())
    torch.testing.assert_close(got[1]["more"][0], torch.diag(2 * y.detach()))
    torch.testing.assert_close(got[0]["more"][1], torch.zeros(2, 1).double())


def test_an_input_that_is_no_leaf() -> None:
    x = leaf(3)
    hidden = x.sin()
    got = torchjac.jac_of(hidden**2, hidden)
    torch.testing.assert_close(got, torch.diag(2 * hidden.detach()))


def test_batched() -> None:
    x = leaf(5, 3)
    got = torchjac.jac_of((x.sin(), x.prod(1)), x, batched=True)
    torch.testing.assert_close(got[0], torch.diag_embed(x.detach().cos()))
    torch.testing.assert_close(got[1], (x.prod(1, keepdim=True) / x).detach())


def test_batched_refuses_coupled_samples() -> None:
    x = leaf(5, 3)
    with pytest.raises(BatchCouplingError, match="jac_of"):
        torchjac.jac_of(x - x.mean(0), x, batched=True)
    # The same shapes and ops, told apart by their graph: the independent one is fine before or after.
    torchjac.jac_of(x - x.mean(1, keepdim=True), x, batched=True)


def test_create_graph() -> None:
    x = leaf(3)
    jacobian = torchjac.jac_of(x**3, x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(jacobian.sum(), x)[0], (6 * x).detach())


def test_retain_graph_and_second_use() -> None:
    x = leaf(4)
    y = x**3
    first = torchjac.jac_of(y, x, retain_graph=True, chunk_size=2)
    torch.testing.assert_close(torchjac.jac_of(y, x, retain_graph=True, chunk_size=2), first)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (3 * x**2).detach())


def test_grads_are_left_alone() -> None:
    x = leaf(3)
    torchjac.jac_of(x**2, x)
    assert x.grad is None


def test_bad_input_is_refused() -> None:
    x = leaf(3)
    with pytest.raises(ArgumentError, match="no output has an autograd graph"):
        torchjac.jac_of((x**2).detach(), x)
    with pytest.raises(ArgumentError, match="does not require grad"):
        torchjac.jac_of(x**2, x.detach())
    with pytest.raises(ArgumentTypeError, match="expected tensors or None, got float"):
        torchjac.jac_of((x**2, 3.0), x)
    with pytest.raises(ArgumentTypeError, match="complex"):
        torchjac.jac_of(torch.complex(x, x), x)
    with pytest.raises(ArgumentTypeError, match="expected real floating-point tensors, got int"):
        torchjac.jac_of(x**2, 3)
    with pytest.raises(ArgumentError, match="at least one tensor"):
        torchjac.jac_of(x**2, ())
    with pytest.raises(ArgumentError, match="dim 0 of every output and input must be the batch"):
        torchjac.jac_of((x**2).sum(), x, batched=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_refused() -> None:
    x = leaf(3)
    nested = torch.nested.nested_tensor([x.detach(), x.detach()[:2]], requires_grad=True)
    with pytest.raises(ArgumentTypeError, match=r"jac_of\(outputs\): got a nested"):
        torchjac.jac_of(nested * 2, x)
    with pytest.raises(ArgumentTypeError, match=r"jac_of\(inputs\): got a nested"):
        torchjac.jac_of(x * 2, nested)


def test_an_output_that_is_an_input_beside_a_constant() -> None:
    x = leaf(3)
    first, second = torchjac.jac_of([x, torch.ones(3)], x, chunk_size=1)
    torch.testing.assert_close(first, torch.eye(3).double())
    assert second.abs().sum() == 0


@pytest.mark.parametrize("outputs", [lambda x: x.sin() * x, lambda x: (x.sin() * x).sum()])
def test_a_graph_that_has_been_freed_is_named(outputs: Any) -> None:
    x = torch.linspace(-1, 1, 3, requires_grad=True)
    y = outputs(x)
    y.sum().backward()
    with pytest.raises(ArgumentError) as caught:
        torchjac.jac_of(y, x)
    assert str(caught.value) == (
        "jac_of(outputs): their graph has been freed by an earlier backward pass or Jacobian. Pass "
        "retain_graph=True there, or compute the outputs again."
    )
