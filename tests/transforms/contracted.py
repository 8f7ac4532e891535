"""What is contracted in the tests of diagonals and traces, and the dense results that they have to equal."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sparse import DETECTS
from torchjac.foundations.pytree import flatten

CLOSE = {"rtol": 1e-7, "atol": 1e-8, "equal_nan": True}
NEW = pytest.mark.skipif(not DETECTS, reason="needs torch 2.1")


def close(got: Any, expected: Any) -> None:
    for one, other in zip(flatten(got)[0], flatten(expected)[0], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def model(inputs: int = 5, outputs: int = 5) -> torch.nn.Module:
    layers = [torch.nn.Linear(inputs, 8), torch.nn.Tanh(), torch.nn.Linear(8, outputs)]
    return torch.nn.Sequential(*layers).double()


def point(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def trace_of_hessian(func: Any) -> Any:
    """The dense formula, by plain double backward, differentiable."""

    def trace(x: Tensor) -> Tensor:
        hessian = torch.func.jacrev(torch.func.jacrev(func))(x)
        shape = func(x).shape
        return hessian.reshape(*shape, x.numel(), x.numel()).diagonal(dim1=-2, dim2=-1).sum(-1)

    return trace
