"""Operators and autograd, torch.func, torch.compile, inference mode and SciPy."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import torchjac
from torchjac.errors import UnsupportedError
from torchjac.structure.scipy_operator import from_array, to_array


def curve(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1], x.sin().sum(), x[1].tanh()])


def scalar(x: Tensor) -> Tensor:
    return (x**3).sum() * x[0]


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


X = torch.tensor([0.3, -0.8], dtype=torch.float64)
J, H = torchjac.jac(curve)(X), torchjac.hessian(scalar)(X)


@pytest.fixture(params=["plain", "made from an input that requires grad", "capturing a parameter"])
def op(request: pytest.FixtureRequest) -> Any:
    if request.param == "plain":
        return torchjac.jac_operator(curve)(X)
    if request.param == "capturing a parameter":
        one = torch.ones((), dtype=torch.float64, requires_grad=True)
        return torchjac.jac_operator(lambda x: curve(x) * one)(X)
    return torchjac.jac_operator(curve)(X.clone().requires_grad_())


def same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected)


def test_products_are_differentiable_by_the_vector(op: Any) -> None:
    v, u = double(2).requires_grad_(), double(3).requires_grad_()
    V = double(2, 3).requires_grad_()
    for operator, matrix, vector in ((op, J, v), (op.T, J.T, u), (op, J, V)):
        (grad,) = torch.autograd.grad((operator @ vector).square().sum(), vector, create_graph=True)
        same(grad, (2 * matrix.T @ matrix @ vector).detach())
        (second,) = torch.autograd.grad(grad.sum(), vector)
        same(second, (2 * matrix.T @ matrix @ torch.ones_like(vector)).detach())


def test_products_pass_through_transforms_of_the_vector(op: Any) -> None:
    v, V, U = double(2), double(5, 2), double(3, 5)
    same(torch.func.vmap(lambda v: op @ v)(V), V @ J.T)
    same(torch.func.vmap(lambda u: op.T @ u, in_dims=1, out_dims=1)(U), J.T @ U)
    same(torch.func.vmap(op.matvec)(V), V @ J.T)
    same(torch.func.vmap(lambda V: op @ V)(V.reshape(5, 2, 1)), (V @ J.T)[..., None])
    same(torch.func.grad(lambda v: (op @ v).square().sum())(v), 2 * J.T @ (J @ v))
    same(torch.func.hessian(lambda v: (op @ v).square().sum())(v), 2 * J.T @ J)
    same(torch.func.jvp(lambda v: op @ v, (v,), (2 * v,))[1], 2 * J @ v)
    same(torchjac.jac(lambda v: op @ v)(v), J)
    with forward_ad.dual_level():
        same(forward_ad.unpack_dual(op @ forward_ad.make_dual(v, 2 * v)).tangent, 2 * J @ v)
    with torch.no_grad():
        assert not (op @ v).requires_grad
        same(torch.func.vmap(lambda v: op @ v)(V), V @ J.T)
        same(torch.func.jvp(lambda v: op @ v, (v,), (2 * v,))[1], 2 * J @ v)


@pytest.mark.parametrize("transform", [torchjac.jac_operator, torchjac.hessian_operator])
def test_products_are_differentiable_by_what_the_operator_was_made_from(transform: Any) -> None:
    func, dense = (
        (curve, torchjac.jac) if transform is torchjac.jac_operator else (scalar, torchjac.hessian)
    )
    x, v = X.clone().requires_grad_(), double(2)
    expected = torch.autograd.grad((dense(func)(x) @ v).square().sum(), x)[0]
    made = transform(func)(x)
    for product in (made @ v, (made @ torch.stack([v, v], 1))[:, 0], made.to_dense() @ v):
        same(torch.autograd.grad(product.square().sum(), x, retain_graph=True)[0], expected)
    assert made.value.requires_grad
    with torch.no_grad():
        assert not (made @ v).requires_grad
        assert not transform(func)(x).value.requires_grad


def test_training_through_a_product() -> None:
    module, x = torch.nn.Linear(2, 3).double(), double(2)
    weight = module.weight
    op = torchjac.jac_operator(lambda x: module(x).tanh())(x)
    (op.T @ double(3)).square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


INSIDE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "J·v": (
        lambda x: torchjac.jac_operator(curve)(x) @ x,
        lambda x: torchjac.jac(curve)(x) @ x,
    ),
    "J·V": (
        lambda x: torchjac.jac_operator(curve)(x) @ torch.outer(x, x),
        lambda x: torchjac.jac(curve)(x) @ torch.outer(x, x),
    ),
    "uᵀ·J": (
        lambda x: torchjac.jac_operator(curve)(x).T @ curve(x),
        lambda x: curve(x) @ torchjac.jac(curve)(x),
    ),
    "dense": (lambda x: torchjac.jac_operator(curve)(x).to_dense(), torchjac.jac(curve)),
    "gram": (
        lambda x: torchjac.jac_operator(curve)(x).gram("inputs"),
        lambda x: torchjac.jac(curve)(x).T @ torchjac.jac(curve)(x),
    ),
    "H·v": (
        lambda x: torchjac.hessian_operator(scalar)(x) @ x,
        lambda x: torchjac.hessian(scalar)(x) @ x,
    ),
    "diagonal": (
        lambda x: torchjac.hessian_operator(scalar)(x).diagonal(),
        lambda x: torchjac.hessian(scalar)(x).diagonal(),
    ),
}


@pytest.mark.parametrize("name", INSIDE)
def test_operators_are_made_inside_of_transforms(name: str) -> None:
    got, expected = INSIDE[name]
    batch = double(4, 2)
    same(torch.func.vmap(got)(batch), torch.stack([expected(x) for x in batch]))
    for of in (
        lambda f: torch.func.grad(lambda x: f(x).square().sum()),
        torch.func.jacfwd,
        torchjac.jac,
    ):
        same(of(got)(X), of(expected)(X))
    with torch.no_grad():
        same(torch.func.jvp(got, (X,), (X,))[1], torch.func.jvp(expected, (X,), (X,))[1])


def test_inference_mode() -> None:
    with torch.inference_mode():
        x = X.clone()
        op = torchjac.jac_operator(curve)(x)
        same(op @ x, J @ X)
        same(op.T @ torch.eye(3).double(), J.T)
        same(torchjac.hessian_operator(scalar)(x) @ x, H @ X)
        v = x + 0
    same(op @ v, J @ X)
    same(torchjac.jac_operator(curve)(x) @ X, J @ X)


def test_fake_tensors_and_traces() -> None:
    with FakeTensorMode():
        x = torch.randn(2, dtype=torch.float64)
        op = torchjac.jac_operator(curve)(x)
        assert (op @ x).shape == (3,)
        assert op.to_dense().shape == (3, 2)
        assert (torchjac.hessian_operator(scalar)(x) @ x).shape == (2,)
    traced = make_fx(lambda x: torchjac.jac_operator(curve)(x) @ x)(X)
    same(traced(2 * X), torchjac.jac(curve)(2 * X) @ (2 * X))


def test_a_captured_parameter_that_has_changed_is_noticed() -> None:
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    op = torchjac.jac_operator(lambda x: (x * weight).exp())(X)
    op @ X
    with torch.no_grad():
        weight.mul_(2)
    for operator in (op, op.T):
        message = r"modified by an inplace operation.*make the operator anew if a parameter"
        with pytest.raises(UnsupportedError, match=message):
            operator @ X


# Compiled.

COMPILED: dict[str, Callable[[Tensor], Any]] = {
    "J·v": lambda x: torchjac.jac_operator(curve)(x).matvec(x),
    "uᵀ·J": lambda x: torchjac.jac_operator(curve)(x).T.matvec(curve(x)),
    "dense": lambda x: torchjac.jac_operator(curve)(x).to_dense(),
    "gram": lambda x: torchjac.jac_operator(curve)(x).gram("outputs"),
    "H·v": lambda x: torchjac.hessian_operator(scalar)(x).matvec(x),
}


@pytest.fixture
def _compiler_that_knows_torch_func() -> None:
    try:
        torch.compile(torch.func.jacrev(curve), fullgraph=True, backend="aot_eager")(X)
    except Exception as error:  # noqa: BLE001 - whatever it says, it refuses
        pytest.skip(f"torch.compile refuses torch.func itself: {type(error).__name__}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.usefixtures("_compiler_that_knows_torch_func")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_whole(name: str) -> None:
    torch._dynamo.reset()
    got = torch.compile(COMPILED[name], fullgraph=True, backend="aot_eager")(X)
    torch.testing.assert_close(got, COMPILED[name](X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("_compiler_that_knows_torch_func")
def test_products_with_an_operator_from_outside_break_the_graph() -> None:
    op = torchjac.jac_operator(curve)(X)
    for func in (lambda v: (op @ v) * 2, lambda v: op.matvec(v) * 2):
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(func, backend="eager")(X), 2 * J @ X)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(func, backend="eager", fullgraph=True)(X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("_compiler_that_knows_torch_func")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_products_that_break_the_graph_right_after_the_operator_is_made(backend: str) -> None:
    """The compiler gives the function up, and goes on to those that it calls."""

    def pulled(x: Tensor) -> Tensor:
        return torchjac.jac_operator(curve)(x).T @ curve(x)

    def pushed(x: Tensor) -> Tensor:
        return torchjac.jac_operator(curve)(x) @ x

    def by_hessian(x: Tensor) -> Tensor:
        return torchjac.hessian_operator(scalar)(x) @ x

    for func in (pulled, pushed, by_hessian):
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(func, backend=backend)(X), func(X))


def test_products_with_an_operator_from_outside_are_refused_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchjac.planning.products import linearization

    op = torchjac.jac_operator(curve)(X)
    monkeypatch.setattr(linearization, "compiling", lambda: True)
    with pytest.raises(UnsupportedError, match=r"made outside of the function that torch\.compile"):
        op @ X


# SciPy.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scipy_multiplies_the_same(dtype: torch.dtype) -> None:
    made = torchjac.jac_operator(curve)(X.to(dtype)).to_scipy()
    dense = torchjac.jac(curve)(X.to(dtype)).double().numpy()
    assert made.shape == (3, 2)
    assert made.dtype == {torch.float64: np.float64}.get(dtype, np.float32)
    close = {"rtol": 1e-10 if dtype is torch.float64 else 2e-2, "atol": 1e-2}
    for kind in (np.float64, np.float32, np.complex128):
        v, V, U = (np.ones(shape, dtype=kind) for shape in (2, (2, 3), (3, 2)))
        np.testing.assert_allclose(made @ v, dense @ v, **close)
        np.testing.assert_allclose(made.matvec(V[:, :1]), dense @ V[:, :1], **close)
        np.testing.assert_allclose(made.matmat(1j * V), dense @ (1j * V), **close)
        np.testing.assert_allclose(made.rmatvec(U[:, 0]), dense.T @ U[:, 0], **close)
        np.testing.assert_allclose(made.H @ U, dense.T @ U, **close)
    reversed_and_read_only = np.ones(2)[::-1]
    reversed_and_read_only.flags.writeable = False
    np.testing.assert_allclose(made @ reversed_and_read_only, dense.sum(1), **close)


def test_arrays_and_tensors_share_memory() -> None:
    array = np.ones(3)
    tensor = from_array(array, torch.float64, torch.device("cpu"))
    array[0] = 5
    assert tensor[0] == 5
    assert np.shares_memory(to_array(tensor), array)
    assert not np.shares_memory(array, from_array(array, torch.float32, tensor.device).numpy())


def test_scipy_solves() -> None:
    matrix = double(6, 6) + 6 * torch.eye(6).double()
    x, b = double(6), double(6).numpy()

    def func(x: Tensor) -> Tensor:
        return matrix @ x + x**3

    op = torchjac.jac_operator(func)(x.requires_grad_())
    dense = torchjac.jac(func)(x).detach().numpy()
    made = scipy.sparse.linalg.aslinearoperator(op.to_scipy())
    expected = np.linalg.solve(dense, b)
    np.testing.assert_allclose(scipy.sparse.linalg.gmres(made, b, atol=1e-12)[0], expected, 1e-4)
    tight = {"atol": 1e-14, "btol": 1e-14}
    np.testing.assert_allclose(scipy.sparse.linalg.lsqr(made, b, **tight)[0], expected, 1e-8)
    np.testing.assert_allclose(scipy.sparse.linalg.lsmr(made, b, **tight)[0], expected, 1e-8)
    largest = scipy.sparse.linalg.svds(made, k=1, return_singular_vectors=False)
    np.testing.assert_allclose(largest, np.linalg.norm(dense, 2), 1e-8)


def test_scipy_is_loaded_by_to_scipy_alone() -> None:
    code = (
        "import sys, torch, torchjac\n"
        "op = torchjac.jac_operator(torch.sin)(torch.ones(2))\n"
        "op @ torch.ones(2), op.to_dense(), op.gram('inputs')\n"
        "print('scipy' in sys.modules)\n"
        "op.to_scipy()\n"
        "print('scipy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["False", "True"], done.stderr
