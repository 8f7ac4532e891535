"""Functions whose derivatives are known in closed form. Add a case once; it is tested everywhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A function, a point, and its derivatives there, written down by hand."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    jacobian: Any
    hessian: Any = None
    argnums: int | tuple[int, ...] = 0

    def __str__(self) -> str:
        return self.name


def _values(*shape: int) -> Tensor:
    """Distinct, moderate numbers of both signs, no one of them zero."""
    count = torch.Size(shape).numel()
    return torch.linspace(-1.3, 1.7, max(count, 2), dtype=torch.float64)[:count].reshape(shape)


def _diagonal(vector: Tensor) -> Tensor:
    return torch.diag_embed(vector)


def _square() -> Case:
    x = torch.tensor([1.0, 4.0, 3.0, 2.0], dtype=torch.float64)
    third = torch.zeros(4, 4, 4, dtype=torch.float64)
    for i in range(4):
        third[i, i, i] = 2
    return Case("elementwise square", torch.square, (x,), _diagonal(2 * x), third)


def _linear() -> Case:
    matrix, x = _values(3, 4), _values(4)
    return Case(
        "matrix times vector", lambda x: matrix @ x, (x,), matrix, torch.zeros(3, 4, 4).double()
    )


def _quadratic() -> Case:
    matrix, x = _values(4, 4), _values(4)
    both = matrix + matrix.T
    return Case("quadratic form", lambda x: x @ matrix @ x, (x,), both @ x, both)


def _two_arguments() -> Case:
    x, y = _values(3), _values(3) + 2
    zero = torch.zeros(3, 3, dtype=torch.float64)
    blocks = ((zero, torch.eye(3).double()), (torch.eye(3).double(), zero))
    return Case("inner product", torch.dot, (x, y), (y, x), blocks, (0, 1))


def _tree() -> Case:
    args = ({"a": _values(2), "b": (_values(3),)},)

    def func(tree: Any) -> Any:
        return {"sum": tree["a"].sum(), "product": [tree["b"][0] * 3, None]}

    jacobian = {
        "sum": {"a": torch.ones(2).double(), "b": (torch.zeros(3).double(),)},
        "product": [
            {"a": torch.zeros(3, 2).double(), "b": (3 * torch.eye(3).double(),)},
            None,
        ],
    }
    return Case("trees in and out", func, args, jacobian)


def _scalar() -> Case:
    x = torch.tensor(0.7, dtype=torch.float64)
    return Case("scalar to scalar", torch.sin, (x,), x.cos(), -x.sin())


def _scalar_to_many() -> Case:
    x = torch.tensor(0.7, dtype=torch.float64)
    powers = torch.arange(5, dtype=torch.float64)
    first = powers * x ** (powers - 1).clamp(min=0)
    second = powers * (powers - 1) * x ** (powers - 2).clamp(min=0)
    return Case("scalar to many", lambda x: x**powers, (x,), first, second)


def _wide() -> Case:
    x = _values(6)
    return Case(
        "many to scalar", lambda x: x.square().sum(), (x,), 2 * x, 2 * torch.eye(6).double()
    )


def _tall() -> Case:
    x, matrix = _values(2), _values(9, 2)
    return Case(
        "few to many",
        lambda x: (matrix @ x).sin(),
        (x,),
        (matrix @ x).cos()[:, None] * matrix,
        -(matrix @ x).sin()[:, None, None] * matrix[:, :, None] * matrix[:, None, :],
    )


def _matrices() -> Case:
    x = _values(2, 3)
    eye2, eye3 = torch.eye(2).double(), torch.eye(3).double()
    return Case("transpose", lambda x: x.T, (x,), torch.einsum("jk,il->ijkl", eye2, eye3))


def _inverse() -> Case:
    x = _values(3, 3) + 3 * torch.eye(3, dtype=torch.float64)
    inverse = torch.linalg.inv(x)
    return Case(
        "matrix inverse", torch.linalg.inv, (x,), -torch.einsum("ik,lj->ijkl", inverse, inverse)
    )


def _softmax() -> Case:
    x = _values(4)
    p = x.softmax(0)
    return Case("softmax", lambda x: x.softmax(0), (x,), _diagonal(p) - torch.outer(p, p))


def _log_sum_exp() -> Case:
    x = _values(5)
    p = x.softmax(0)
    return Case("log-sum-exp", lambda x: x.logsumexp(0), (x,), p, _diagonal(p) - torch.outer(p, p))


def _empty_input() -> Case:
    x = torch.zeros(0, 2, dtype=torch.float64)
    return Case("empty input", lambda x: x.sum(0) + 1, (x,), torch.zeros(2, 0, 2).double())


def _empty_output() -> Case:
    x = _values(3)
    return Case("empty output", lambda x: x[:0], (x,), torch.zeros(0, 3).double())


def _independent() -> Case:
    x = _values(3)
    constant = torch.ones(2).double()
    return Case(
        "independent of its input",
        lambda x: (constant, x * 2),
        (x,),
        (torch.zeros(2, 3).double(), 2 * torch.eye(3).double()),
        (torch.zeros(2, 3, 3).double(), torch.zeros(3, 3, 3).double()),
    )


def _rosenbrock() -> Case:
    x = _values(4)

    def func(x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    gradient, hessian = torch.zeros(4).double(), torch.zeros(4, 4).double()
    for i in range(3):
        gradient[i] += -400 * x[i] * (x[i + 1] - x[i] ** 2) - 2 * (1 - x[i])
        gradient[i + 1] += 200 * (x[i + 1] - x[i] ** 2)
        hessian[i, i] += 1200 * x[i] ** 2 - 400 * x[i + 1] + 2
        hessian[i + 1, i + 1] += 200
        hessian[i, i + 1] += -400 * x[i]
        hessian[i + 1, i] += -400 * x[i]
    return Case("Rosenbrock", func, (x,), gradient, hessian)


CASES = [
    _square(),
    _linear(),
    _quadratic(),
    _two_arguments(),
    _tree(),
    _scalar(),
    _scalar_to_many(),
    _wide(),
    _tall(),
    _matrices(),
    _inverse(),
    _softmax(),
    _log_sum_exp(),
    _empty_input(),
    _empty_output(),
    _independent(),
    _rosenbrock(),
]


def written_into(x: Tensor) -> Tensor:
    """Its saved values are written over, so that only forward mode can differentiate it."""
    return x.exp_().mul_(2.0)
