"""Arguments other than those that were planned for are refused, and what differs is named."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import torchjac
from tests.transforms.planned import MARKS, X, Y
from torchjac.errors import PlanMismatchError

pytestmark = MARKS


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


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("at", [0, 1])
def test_a_nested_tensor_is_refused(at: int) -> None:
    """Those of the first kind call themselves strided, and have neither strides nor a shape."""
    args = [X, X]
    plan = torchjac.jac(lambda x, y: x.sin() * y).plan(*args)
    args[at] = torch.nested.nested_tensor([X, X[:2]])
    with pytest.raises(PlanMismatchError) as caught:
        plan(*args)
    assert f"argument {at}: shape (4,) was planned, got None" in str(caught.value)
    assert f"argument {at}: layout torch.strided was planned, got 'nested" in str(caught.value)


def times(x: Tensor, matrix: Tensor) -> Tensor:
    return (matrix @ x[:, None])[:, 0]


SPARSE = {
    "COO": lambda: torch.diag(X).to_sparse_coo(),
    "CSR": lambda: torch.diag(X).to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:.*PyTorch refused the faster way")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", SPARSE)
def test_sparse_matrices_are_arguments_that_are_planned_by_sizes(layout: str) -> None:
    sparse = SPARSE[layout]()
    plan = torchjac.jac(times).plan(X, sparse)
    torch.testing.assert_close(plan(X, sparse), torch.diag(X))
    torch.testing.assert_close(plan(Y, sparse * 2), 2 * torch.diag(X))
    with pytest.raises(
        PlanMismatchError, match=r"layout torch\.sparse_\w+ was planned, got .*strided"
    ):
        plan(X, torch.diag(X))
    dense = torchjac.jac(times).plan(X, torch.diag(X))
    with pytest.raises(PlanMismatchError, match=r"layout torch\.strided was planned, got .*sparse"):
        dense(X, sparse)


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
