"""return_value and has_aux: what comes out, in which order, and from the same evaluation."""

from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac

X = torch.tensor([1.0, 2.0, 3.0])
MODES = ["auto", "forward", "reverse"]


def func(x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return x**2, {"name": "square", "tensor": x + 1, "count": x.argmax(), "number": 3}


@pytest.mark.parametrize("chunk_size", ["auto", 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_jac(mode: str, chunk_size: Any) -> None:
    options: dict[str, Any] = {"mode": mode, "chunk_size": chunk_size}
    expected = torch.diag(2 * X)
    value, jacobian = torchjac.jac(torch.square, return_value=True, **options)(X)
    torch.testing.assert_close((value, jacobian), (X**2, expected))
    jacobian, aux = torchjac.jac(func, has_aux=True, **options)(X)
    torch.testing.assert_close(jacobian, expected)
    assert aux["name"] == "square"
    assert aux["number"] == 3
    assert aux["count"].item() == 2
    torch.testing.assert_close(aux["tensor"], X + 1)
    value, jacobian, aux = torchjac.jac(func, has_aux=True, return_value=True, **options)(X)
    torch.testing.assert_close((value, jacobian, aux["tensor"]), (X**2, expected, X + 1))


def test_hessian() -> None:
    def scalar(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.square().sum(), x + 1

    value, hessian, aux = torchjac.hessian(scalar, has_aux=True, return_value=True)(X)
    torch.testing.assert_close((value, hessian, aux), (X.square().sum(), 2 * torch.eye(3), X + 1))


@pytest.mark.parametrize("per_sample", [True, False])
def test_batched_jac(per_sample: bool) -> None:
    x = torch.randn(4, 3)
    options: dict[str, Any] = {"has_aux": True, "return_value": True, "per_sample": per_sample}
    value, jacobian, aux = torchjac.batched_jac(lambda x: (x**2, x + 1), **options)(x)
    torch.testing.assert_close((value, jacobian, aux), (x**2, torch.diag_embed(2 * x), x + 1))


@pytest.mark.parametrize("mode", MODES)
def test_none_and_integer_outputs_have_no_jacobian_but_a_value(mode: str) -> None:
    def mixed(x: Tensor) -> dict[str, Any]:
        return {"index": x.argmax(), "none": None, "square": x**2, "mask": x > 1}

    value, jacobian = torchjac.jac(mixed, mode=mode, return_value=True)(X)
    assert jacobian["index"] is None
    assert jacobian["none"] is None
    assert jacobian["mask"] is None
    torch.testing.assert_close(jacobian["square"], torch.diag(2 * X))
    assert value["index"].item() == 2
    assert value["none"] is None
    assert value["mask"].tolist() == [False, True, True]


@pytest.mark.parametrize("mode", MODES)
def test_value_keeps_no_graph_unless_the_input_has_one(mode: str) -> None:
    value, jacobian = torchjac.jac(torch.square, mode=mode, return_value=True)(X)
    assert not value.requires_grad
    assert not jacobian.requires_grad
    x = X.clone().requires_grad_()
    value, jacobian = torchjac.jac(torch.square, mode=mode, return_value=True)(x)
    (value.sum() + jacobian.sum()).backward()
    torch.testing.assert_close(x.grad, 2 * X + 2)


def test_aux_is_of_the_point_and_not_of_a_check_beside_it() -> None:
    def scalar(x: Tensor) -> tuple[Tensor, float]:
        value = (x**3).sum()
        return value, float(value.detach())

    x = X.double()
    for _ in range(2):
        assert torchjac.hessian(scalar, has_aux=True)(x)[1] == 36
