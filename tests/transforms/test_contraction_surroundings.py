"""Diagonals and traces inside transforms, compiled, and differentiated in their turn."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

import torchjac
from tests.transforms.contracted import close, model, point, trace_of_hessian

OLD_COMPILER = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5)

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def test_vmap_over_points() -> None:
    net, xs = model(), point(6, 5)
    dense = vmap(trace_of_hessian(net))(xs)
    torch.testing.assert_close(vmap(torchjac.laplacian(net))(xs), dense)
    torch.testing.assert_close(vmap(torchjac.laplacian(net, chunk_size=2))(xs), dense)
    jacobians = vmap(torch.func.jacrev(net))(xs).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(vmap(torchjac.jac_diag(net))(xs), jacobians)
    torch.testing.assert_close(vmap(torchjac.divergence(net))(xs), jacobians.sum(-1))


def test_a_training_loss_has_the_gradients_of_the_dense_formula() -> None:
    net, xs = model(3, 1), point(6, 3)
    parameters = list(net.parameters())[:3]  # the last bias has no part in it

    def u(x: Tensor) -> Tensor:
        return net(x).squeeze(-1)

    for transform in (torchjac.laplacian, trace_of_hessian):
        loss = vmap(transform(u))(xs).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        if transform is torchjac.laplacian:
            found = gradients
    close(found, gradients)
    one = torch.autograd.grad(torchjac.laplacian(u)(xs[0]).square(), parameters)
    close(one, torch.autograd.grad(trace_of_hessian(u)(xs[0]).square(), parameters))


def test_functional_parameters() -> None:
    net, xs = model(3, 1), point(4, 3)
    parameters = dict(net.named_parameters())

    def loss(transform: Any) -> Any:
        def u(x: Tensor, p: dict[str, Tensor]) -> Tensor:
            return functional_call(net, p, (x,)).squeeze(-1)

        def of(p: dict[str, Tensor]) -> Tensor:
            return vmap(lambda x: transform(lambda y, p: u(y, p), x, p))(xs).square().mean()

        return of

    def ours(func: Any, x: Tensor, p: Any) -> Tensor:
        return torchjac.laplacian(func)(x, p)

    def dense(func: Any, x: Tensor, p: Any) -> Tensor:
        return trace_of_hessian(lambda x: func(x, p))(x)

    close(grad(loss(ours))(parameters), grad(loss(dense))(parameters))


def test_derivatives_of_contractions() -> None:
    net, x = model(), point(5)

    def f(x: Tensor) -> Tensor:
        return net(x).square().sum()

    dense = trace_of_hessian(f)
    close(grad(torchjac.laplacian(f))(x), grad(dense)(x))
    close(jvp(torchjac.laplacian(f), (x,), (x,)), jvp(dense, (x,), (x,)))
    close(
        torchjac.jac(torchjac.hessian_diag(f))(x).trace(),
        grad(dense)(x).sum() * 0
        + torch.func.jacrev(lambda x: torch.func.hessian(f)(x).diagonal())(x).trace(),
    )
    quartic = lambda x: (x**4).sum() * x[0]  # noqa: E731
    biharmonic = torchjac.laplacian(torchjac.laplacian(quartic))(x)
    torch.testing.assert_close(biharmonic, trace_of_hessian(trace_of_hessian(quartic))(x))


@pytest.mark.skipif(OLD_COMPILER, reason="the compiler of torch 2.4 fails on them")
@pytest.mark.parametrize("transform", [torchjac.laplacian, torchjac.hessian_diag])
def test_compiled_around_a_vmap(transform: Any) -> None:
    batched, xs = vmap(transform(lambda x: (x**3).sum())), point(4, 3)
    compiled = torch.compile(batched, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(xs), batched(xs))


@pytest.mark.skipif(OLD_COMPILER, reason="the compiler of torch 2.4 fails on them")
@pytest.mark.slow
def test_compiled() -> None:
    net, x = model(), point(5)
    for transform in (torchjac.laplacian, torchjac.divergence, torchjac.jac_diag):
        compiled = torch.compile(transform(net), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), transform(net)(x))
