"""`jac` stands in for jacrev and jacfwd: the same trees, and it composes as they do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from torchjac.foundations.pytree import flatten

MODES = ["auto", "forward", "reverse"]


def curve(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1], x.sin().sum(), (x[1] / (2 + x[0] ** 2)).tanh()])


def tree(x: dict[str, Tensor], y: tuple[Tensor, Tensor]) -> Any:
    return {"p": x["a"] * y[0].sum(), "q": [x["b"].exp() @ y[1], y[0].prod()]}


TREE_ARGS = (
    {"a": torch.rand(2, 2).double(), "b": torch.rand(3).double()},
    (torch.rand(2).double(), torch.rand(3, 4).double()),
)
POINT = torch.tensor([0.3, -0.8], dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("argnums", [0, 1, -1, (0,), (1, 0), (0, 1)])
def test_same_tree_shapes_dtypes(argnums: Any, mode: str) -> None:
    got = torchjac.jac(tree, argnums, mode=mode)(*TREE_ARGS)
    positive = 1 if argnums == -1 else argnums
    expected = torch.func.jacrev(tree, positive)(*TREE_ARGS)
    assert flatten(got)[1] == flatten(expected)[1]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("argnums", [0, (0, 1)])
def test_same_hessian_tree(argnums: Any) -> None:
    def scalar(x: dict[str, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
        out = tree(x, y)
        return (out["p"].sum() * out["q"][0].sum()).sin() + out["q"][1]

    got = torchjac.hessian(scalar, argnums)(*TREE_ARGS)
    expected = torch.func.hessian(scalar, argnums)(*TREE_ARGS)
    assert flatten(got)[1] == flatten(expected)[1]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mode", MODES)
def test_keyword_arguments_pass_through(mode: str) -> None:
    got = torchjac.jac(lambda x, *, power: x**power, mode=mode)(POINT, power=3)
    torch.testing.assert_close(got, torch.diag(3 * POINT**2))


def test_wrapper_looks_like_func() -> None:
    wrapped = torchjac.jac(curve)
    assert wrapped.__name__ == "curve"
    assert wrapped.__wrapped__ is curve


ROUND_JAC: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "vmap": lambda f: torch.func.vmap(f),
    "grad": lambda f: torch.func.grad(lambda x: f(x).square().sum()),
    "jacrev": lambda f: torch.func.jacrev(f),
    "jacfwd": lambda f: torch.func.jacfwd(f),
    "jac": lambda f: torchjac.jac(f),
    "vmap of vmap": lambda f: torch.func.vmap(torch.func.vmap(f)),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).square().sum())),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("around", ROUND_JAC)
def test_transforms_around_jac(around: str, mode: str) -> None:
    shape = {"vmap of vmap": (2, 3, 2), "vmap": (3, 2), "vmap of grad": (3, 2)}.get(around, (2,))
    x = torch.randn(shape, dtype=torch.float64)
    got = ROUND_JAC[around](torchjac.jac(curve, mode=mode))(x)
    torch.testing.assert_close(got, ROUND_JAC[around](torch.func.jacrev(curve))(x))


@pytest.mark.parametrize("mode", ["auto", "forward-over-reverse", "reverse-over-reverse"])
@pytest.mark.parametrize("around", ["vmap", "grad", "jacrev"])
def test_transforms_around_hessian(around: str, mode: str) -> None:
    def scalar(x: Tensor) -> Tensor:
        return curve(x).square().sum()

    x = torch.randn((3, 2) if around == "vmap" else (2,), dtype=torch.float64)
    got = ROUND_JAC[around](torchjac.hessian(scalar, mode=mode))(x)
    torch.testing.assert_close(got, ROUND_JAC[around](torch.func.hessian(scalar))(x))


@pytest.mark.parametrize("around", ["vmap", "grad"])
@pytest.mark.parametrize("per_sample", [True, False])
def test_transforms_around_batched_jac(around: str, per_sample: bool) -> None:
    func = curve if per_sample else torch.func.vmap(curve)
    batched = torchjac.batched_jac(func, per_sample=per_sample)
    x = torch.randn((4, 3, 2) if around == "vmap" else (3, 2), dtype=torch.float64)
    expected = ROUND_JAC[around](torch.func.vmap(torch.func.jacrev(curve)))(x)
    torch.testing.assert_close(ROUND_JAC[around](batched)(x), expected)


@pytest.mark.parametrize("mode", MODES)
def test_jac_of_vmap_grad_and_functional_call(mode: str) -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    got = torchjac.jac(torch.func.vmap(curve), mode=mode)(x)
    torch.testing.assert_close(got, torch.func.jacrev(torch.func.vmap(curve))(x))

    def scalar(x: Tensor) -> Tensor:
        return curve(x).square().sum()

    got = torchjac.jac(torch.func.grad(scalar), mode=mode)(POINT)
    torch.testing.assert_close(got, torch.func.hessian(scalar)(POINT))

    module = torch.nn.Linear(2, 3).double()
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def called(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, parameters, (POINT,)).tanh()

    got = torchjac.jac(called, mode=mode)(parameters)
    torch.testing.assert_close(got, torch.func.jacrev(called)(parameters))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk_size", ["auto", 1, 2])
def test_result_is_differentiable_by_input_and_captured(mode: str, chunk_size: Any) -> None:
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    x = POINT.clone().requires_grad_()

    def func(x: Tensor) -> Tensor:
        return (weight @ x).sin()

    got = torch.autograd.grad(
        torchjac.jac(func, mode=mode, chunk_size=chunk_size)(x).square().sum(), (x, weight)
    )
    expected = torch.autograd.grad(torch.func.jacrev(func)(x).square().sum(), (x, weight))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mode", MODES)
def test_differentiable_by_a_captured_parameter_alone(mode: str) -> None:
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    jacobian = torchjac.jac(lambda x: (weight @ x).sin(), mode=mode)(POINT)
    (got,) = torch.autograd.grad(jacobian.sum(), weight)
    assert got.abs().sum() > 0


def test_a_function_that_takes_a_derivative_by_plain_autograd() -> None:
    def slope(x: Tensor) -> Tensor:
        return torch.autograd.grad((x**3).sum(), x, create_graph=True)[0]

    torch.testing.assert_close(torchjac.jac(slope)(POINT), torch.diag(6 * POINT))
    hessian = torchjac.hessian(lambda x: slope(x).sum())(POINT)
    torch.testing.assert_close(hessian, torch.diag(torch.full((2,), 6.0).double()))


def test_under_forward_mode_of_the_callers_own() -> None:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(POINT, torch.ones_like(POINT))
        for transform in (torchjac.jac, lambda f: torchjac.batched_jac(f, per_sample=False)):
            jacobian = transform(torch.sin)(dual)
            tangent = torch.autograd.forward_ad.unpack_dual(jacobian).tangent
            torch.testing.assert_close(
                tangent.sum(-1) if tangent.dim() > 1 else tangent, -POINT.sin()
            )
