"""Derivatives of functions that are compiled already: right, and the functions stay compiled."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from tests.sparse import tridiagonal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(getattr(torch, "compiler", None), "set_stance"),
        reason="older, PyTorch gives up what it meets below a dispatch mode",
    ),
    # The compiler's own, about itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

X = torch.linspace(-1, 1, 5, dtype=torch.float64)


def scalar(x: Tensor) -> Tensor:
    return (tridiagonal(x) ** 2).sum()


def wide(x: Tensor) -> Tensor:
    return torch.cat([x.sin(), x * x.sum(), x.exp()])


DERIVATIVES: dict[str, tuple[Callable[..., Any], Callable[[Tensor], Tensor]]] = {
    "jac, reverse": (lambda f: torchjac.jac(f)(X), tridiagonal),
    "jac, forward": (lambda f: torchjac.jac(f)(X), wide),
    "hessian": (lambda f: torchjac.hessian(f)(X), scalar),
    "sparse jac": (lambda f: torchjac.jac(f, sparsity="detect")(X), tridiagonal),
    "sparse hessian": (lambda f: torchjac.hessian(f, sparsity="detect")(X), scalar),
    "pattern": (lambda f: torchjac.jac_sparsity(f)(X).to_dense(), tridiagonal),
    "samples": (lambda f: torchjac.batched_jac(f)(X[None]), tridiagonal),
    "a batch": (lambda f: torchjac.batched_jac(f, per_sample=False)(X[None]), torch.exp),
    "vmap": (lambda f: torch.func.vmap(torchjac.jac(f))(X[None]), tridiagonal),
    "jac of jac": (lambda f: torchjac.jac(torchjac.jac(f))(X), scalar),
    "diagonal of a Hessian": (lambda f: torchjac.hessian_diag(f)(X), scalar),
    "divergence": (lambda f: torchjac.divergence(f)(X), tridiagonal),
    "plan": (lambda f: torchjac.jac(f).plan(X)(X), tridiagonal),
    "operator": (lambda f: torchjac.jac_operator(f)(X) @ X, tridiagonal),
    "diagonal": (lambda f: torchjac.jac_diag(f)(X), tridiagonal),
    "laplacian": (lambda f: torchjac.laplacian(f)(X), scalar),
}


def counted(func: Callable[[Tensor], Tensor], fullgraph: bool) -> tuple[Any, list[Any]]:
    """The function compiled, with a backward pass as Inductor's, and the graphs that were made of it."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(func, fullgraph=fullgraph, backend=backend), graphs


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_it_is_right_and_the_function_stays_compiled(name: str, fullgraph: bool) -> None:
    derivative, func = DERIVATIVES[name]
    compiled, graphs = counted(func, fullgraph)
    torch.testing.assert_close(derivative(compiled), derivative(func))
    graphs.clear()
    torch.testing.assert_close(compiled(X), func(X))
    torch.testing.assert_close(compiled(X[:3]), func(X[:3]))
    assert graphs


@pytest.mark.parametrize("chunk_size", ["auto", 1])
def test_plain_backward_passes_are_those_of_the_compiled_function(chunk_size: Any) -> None:
    func = scalar if chunk_size == "auto" else tridiagonal
    compiled, graphs = counted(func, fullgraph=True)
    derivative = torchjac.jac(compiled, mode="reverse", chunk_size=chunk_size)
    for _ in range(2):
        torch.testing.assert_close(derivative(X), torchjac.jac(func)(X))
    assert len(graphs) == 1


@pytest.mark.parametrize("func", [tridiagonal, wide])
def test_where_a_compiled_function_hands_over_to_python(func: Callable[[Tensor], Tensor]) -> None:
    inner, _ = counted(func, fullgraph=True)

    def step(x: Tensor) -> Tensor:
        y = x * 2
        torch._dynamo.graph_break()
        return torchjac.jac(inner)(y) * x.sum()

    compiled = torch.compile(step, backend="eager")
    torch.testing.assert_close(compiled(X), torchjac.jac(func)(2 * X) * X.sum())


def test_threads_leave_the_compiler_as_they_found_it() -> None:
    compiled, graphs = counted(wide, fullgraph=True)
    derivative, expected = torchjac.jac(compiled), torchjac.jac(wide)(X)
    derivative(X)  # while one thread compiles, PyTorch tells every thread that it does
    before = len(graphs)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(derivative, [X] * 64):
            torch.testing.assert_close(found, expected)
    assert len(graphs) == before
    compiled(X[:3])
    assert len(graphs) > before
