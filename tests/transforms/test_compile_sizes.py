"""Compiled transforms of inputs whose sizes vary: the sizes stay open, so that few graphs do for all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

import torchjac
from tests.sparse import DETECTS

NEW = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DETECTS and NEW), reason="needs the compiler of torch 2.13"),
    # The compiler's own, about itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

NET = nn.Linear(3, 2)


def curve(x: Tensor) -> Tensor:
    return x.sin() * x.sum()


def scalar(x: Tensor) -> Tensor:
    return curve(x).sum()


class Counting:
    """A backend that counts the graphs it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


def graphs_for(transform: Callable[..., Any], *inputs: Tensor, dynamic: bool | None) -> int:
    """How many graphs are made for these inputs, one after another; the numbers are compared."""
    torch._dynamo.reset()
    backend = Counting()
    compiled = torch.compile(transform, fullgraph=True, dynamic=dynamic, backend=backend)
    for x in inputs:
        torch.testing.assert_close(compiled(x), transform(x))
    return backend.graphs


OPEN: dict[str, Callable[..., Any]] = {
    "jac": torchjac.jac(curve),
    "jac, forward": torchjac.jac(curve, mode="forward"),
    "hessian": torchjac.hessian(scalar),
    "hessian, reverse-over-forward": torchjac.hessian(scalar, mode="reverse-over-forward"),
}


@pytest.mark.parametrize("name", OPEN)
def test_inputs_of_all_sizes_share_a_graph(name: str) -> None:
    inputs = [torch.linspace(0, 1, n) for n in (4, 6)]
    assert graphs_for(OPEN[name], *inputs, dynamic=True) == 1


@pytest.mark.parametrize(
    "transform",
    [torchjac.batched_jac(curve), vmap(torchjac.jac(curve)), vmap(torchjac.hessian(scalar))],
)
def test_open_sizes_of_samples(transform: Callable[..., Any]) -> None:
    graphs_for(transform, torch.linspace(0, 1, 20).reshape(5, 4), dynamic=True)


BATCHES: dict[str, Callable[..., Any]] = {
    "of the batch": torchjac.batched_jac(NET, per_sample=False),
    "of a sample": torchjac.batched_jac(NET),
    "of parameters": torchjac.batched_jac(NET, "params"),
    "of a sum": torchjac.batched_jac(lambda x: x.sin().sum()),
    "vmap": vmap(torchjac.jac(NET)),
}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_all_sizes_share_a_graph(name: str, dynamic: bool | None) -> None:
    batches = [torch.randn(n, 3) for n in range(4, 17)]
    # The same two that torch.func takes: one for the first size, one for all others.
    assert graphs_for(BATCHES[name], *batches, dynamic=dynamic) <= 2
    assert graphs_for(vmap(jacrev(NET)), *batches, dynamic=dynamic) <= 2


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_is_marked_dynamic(name: str) -> None:
    batches = [torch.randn(n, 3) for n in (5, 7, 8)]
    for batch in batches:
        torch._dynamo.mark_dynamic(batch, 0)
    assert graphs_for(BATCHES[name], *batches, dynamic=None) == 1


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("dynamic", [True, None])
def test_forward_mode_of_batches_of_several_sizes(per_sample: bool, dynamic: Any) -> None:
    """PyTorch fixes the size within its own ops: a graph for each, as `vmap(jacfwd)` takes."""
    transform = torchjac.batched_jac(nn.Linear(2, 9), per_sample=per_sample, mode="forward")
    inputs = [torch.linspace(0, 1, 2 * n).reshape(n, 2) for n in (4, 5, 6)]
    assert graphs_for(transform, *inputs, dynamic=dynamic) <= len(inputs)
