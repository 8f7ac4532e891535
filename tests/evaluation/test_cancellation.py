"""What a product may be off by where its terms cancel, taken from a backward pass."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import torchjac
from torchjac.evaluation.cancellation import rounding_of_terms
from torchjac.evaluation.engines import Graph

CANCELLING: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(0).sum(),
    "log_softmax": lambda x: x.log_softmax(0).exp().sum(),
    "layer_norm": lambda x: F.layer_norm(x, x.shape).sum(),
    "mean": lambda x: (x - x.mean()).sum(),
    "std": lambda x: ((x - x.mean()) / x.std()).std(),
    "norm": lambda x: (x / x.norm()).norm(),
    "Pythagoras": lambda x: (x.sin() ** 2 + x.cos() ** 2).sum(),
}


def recorded(func: Callable[[Tensor], Tensor], x: Tensor) -> Graph:
    x = x.detach().requires_grad_()
    return Graph([func(x)], [x], retain_graph=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e-2, 1e-6])
@pytest.mark.parametrize("size", [2, 5, 64])
@pytest.mark.parametrize("name", CANCELLING)
def test_a_derivative_that_is_zero_is_no_larger(
    name: str, size: int, scale: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = (scale * torch.randn(size)).to(dtype)
    graph = recorded(CANCELLING[name], x)
    most = rounding_of_terms(graph)
    (pulled,) = graph.multiply({0: torch.ones((), dtype=dtype)}, last=False)
    pushed = torch.func.jvp(CANCELLING[name], (x,), (torch.linspace(-1, 1, size).to(dtype),))[1]
    assert pulled is None or float(pulled.abs().max()) <= most
    assert float(pushed.abs()) <= most


def test_it_is_the_rounding_of_the_largest_coefficient_or_cotangent() -> None:
    eps = torch.finfo(torch.float64).eps
    x = torch.ones(4, dtype=torch.float64)
    # u·1000 is the cotangent of x, and |u| is between 1/2 and 1.
    got = rounding_of_terms(recorded(lambda x: (1000 * x).sum(), x))
    assert 16 * eps * math.sqrt(5) * 500 <= got <= 16 * eps * math.sqrt(5) * 1000


def test_what_a_coefficient_is_made_of_does_not_count() -> None:
    def masked(x: Tensor) -> Tensor:
        return torch.stack([x[0], x[1] - 1e9]).logsumexp(0)

    got = rounding_of_terms(recorded(masked, torch.ones(2, dtype=torch.float64)))
    assert 1e-17 < got < 1e-13


def test_what_is_not_proportional_to_the_seeds_does_not_count() -> None:
    """The backward pass of logcumsumexp fills up logarithms of cotangents with the least number."""
    x = torch.ones(3, dtype=torch.float64)
    got = rounding_of_terms(recorded(lambda x: x.logcumsumexp(0)[1], x))
    assert 1e-17 < got < 1e-13


@pytest.mark.parametrize("name", CANCELLING)
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torchjac.jac(f, mode="forward"),
        torchjac.hessian,
        lambda f: torchjac.hessian(f, mode="forward-over-reverse"),
    ],
    ids=["jac", "hessian", "forward-over-reverse"],
)
@pytest.mark.parametrize("scale", [1.0, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_is_said_where_all_cancels(
    dtype: torch.dtype, scale: float, transform: Callable[..., Callable[..., Tensor]], name: str
) -> None:
    torch.manual_seed(0)
    for size in (5, 64):
        x = (scale * torch.randn(size)).to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error", torchjac.errors.DerivativeMismatchWarning)
            transform(CANCELLING[name])(x)
