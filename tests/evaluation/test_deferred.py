"""Results in chunks are differentiable without keeping their graphs, and right whatever was captured."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torchjac

WEIGHT = torch.randn(4, 3, dtype=torch.float64)
POINT = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def in_two_ways(
    build: Callable[[], tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]],
) -> list[list[tuple[Tensor, ...]]]:
    """First and second derivatives of a Jacobian, in chunks and all at once."""
    results = []
    for chunk_size in (2, None):
        func, x, tensors = build()
        jacobian = torchjac.jac(func, mode="reverse", chunk_size=chunk_size)(x)
        loss = (jacobian.sin() * torch.arange(3.0).double()).sum()
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
        results.append([first, second])
    return results


def input_and_parameter() -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
    x, weight = leaf(POINT), leaf(WEIGHT)
    return lambda x: (weight @ x).sin() * x.sum(), x, [x, weight]


def parameter_alone() -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
    weight = leaf(WEIGHT)
    return lambda x: (weight @ x).sin() * x.sum(), POINT, [weight]


def input_in_the_middle_of_a_graph() -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
    x, weight = leaf(POINT), leaf(WEIGHT)
    hidden = x.exp()
    return lambda x: (weight @ x).sin() * x.sum(), hidden, [x, hidden, weight]


def captured_in_the_middle_of_a_graph() -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
    x, weight = leaf(POINT), leaf(WEIGHT)
    hidden = weight.exp()
    return lambda x: (hidden @ x).sin() * x.sum(), x, [x, hidden, weight]


def captured_and_input_from_one_leaf() -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
    x = leaf(POINT)
    return lambda y: (WEIGHT @ (x * y)).sin() * y.sum(), x * 2, [x]


def the_input_itself_is_captured() -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
    x = leaf(POINT)
    return lambda y: (WEIGHT @ (x * y)).sin() * y.sum(), x, [x]


@pytest.mark.parametrize(
    "build",
    [
        input_and_parameter,
        parameter_alone,
        input_in_the_middle_of_a_graph,
        captured_in_the_middle_of_a_graph,
        captured_and_input_from_one_leaf,
        the_input_itself_is_captured,
    ],
)
def test_derivatives_of_a_result_in_chunks(
    build: Callable[[], tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]],
) -> None:
    chunked, whole = in_two_ways(build)
    torch.testing.assert_close(chunked, whole)


def test_by_something_between_the_leaf_and_the_function() -> None:
    """An outer transform differentiates by a tensor that is no leaf; nothing may bypass it."""
    x = leaf(POINT)

    def outer(weight: Tensor) -> Tensor:
        return torchjac.jac(lambda x: (weight @ x).sin(), mode="reverse", chunk_size=2)(POINT)

    weight = leaf(WEIGHT)
    got = torchjac.jac(outer, mode="reverse")(weight)
    expected = torch.func.jacrev(
        lambda weight: torch.func.jacrev(lambda x: (weight @ x).sin())(POINT)
    )(weight)
    torch.testing.assert_close(got, expected)

    def nested(x: Tensor) -> Tensor:
        return torchjac.jac(lambda x: (WEIGHT @ x).sin(), mode="reverse", chunk_size=3)(x)

    got = torchjac.jac(nested, mode="reverse", chunk_size=5)(x)
    torch.testing.assert_close(got, torchjac.jac(nested, mode="forward")(x))


def test_parameters_of_a_module() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5))
    module = module.double()
    grads = []
    for chunk_size in (2, None):
        jacobian = torchjac.jac(module, "params", chunk_size=chunk_size)(POINT)
        loss = sum(block.square().sum() for block in jacobian.values())
        grads.append(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))
    torch.testing.assert_close(grads[0][:3], grads[1][:3])


def test_a_result_in_chunks_may_be_changed_in_place() -> None:
    jacobian = torchjac.jac(lambda x: x**2, chunk_size=2, mode="reverse")(leaf(POINT))
    jacobian[0, 0] = 5
    jacobian.sum().backward()


@pytest.mark.skipif(
    not hasattr(torch.autograd, "_get_sequence_nr"), reason="before torch 2.1 graphs are kept"
)
def test_nothing_is_kept_of_the_passes() -> None:
    """The products of a chunk die with it, as those of a pass without a graph do."""
    alive = 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            nonlocal alive
            alive += torch.is_grad_enabled()
            return grad

    weight = leaf(WEIGHT)
    jacobian = torchjac.jac(
        lambda x: (weight @ Counted.apply(x)).sin(), mode="reverse", chunk_size=2, check="never"
    )(POINT)
    assert alive == 0
    assert jacobian.requires_grad
    jacobian.sum().backward()
    assert alive == 2
