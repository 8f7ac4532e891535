"""torch.compile takes each transform whole: one graph, the same numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac

pytestmark = [
    # The compiler's own, about itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _compiler_that_knows_torch_func() -> None:
    """Skip where this PyTorch (2.4 and before) cannot compile its own jacrev and jacfwd whole."""
    for peer in (torch.func.jacrev, torch.func.jacfwd):
        try:
            torch.compile(peer(curve), fullgraph=True, backend="aot_eager")(POINT)
        except Exception as error:  # noqa: BLE001 - whatever it says, it refuses
            pytest.skip(f"torch.compile refuses torch.func itself: {type(error).__name__}")


def curve(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1], x.sin().sum(), x[1].tanh()])


def scalar(x: Tensor) -> Tensor:
    return curve(x).square().sum()


MODEL = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
POINT = torch.tensor([0.3, -0.8], dtype=torch.float64)
BATCH = torch.randn(4, 2, dtype=torch.float64)

COMPILED: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "jac": (torchjac.jac(curve), POINT),
    "jac forward": (torchjac.jac(curve, mode="forward"), POINT),
    "jac one at a time": (torchjac.jac(curve, chunk_size=1), POINT),
    "jac in chunks, forward": (torchjac.jac(curve, mode="forward", chunk_size=1), POINT),
    "jac in chunks": (torchjac.jac(curve, chunk_size=2), POINT),
    "jac, auto forward": (torchjac.jac(lambda x: x[0] * torch.arange(6.0) + x[1]), POINT),
    "jac with value": (torchjac.jac(curve, return_value=True), POINT),
    "jac with aux": (torchjac.jac(lambda x: (curve(x), x * 2), has_aux=True), POINT),
    "jac of parameters": (torchjac.jac(MODEL, "params"), POINT),
    "hessian": (torchjac.hessian(scalar), POINT),
    "hessian forward-over-reverse": (torchjac.hessian(scalar, mode="forward-over-reverse"), POINT),
    "batched_jac": (torchjac.batched_jac(curve), BATCH),
    "batched_jac of a module": (torchjac.batched_jac(MODEL, per_sample=False), BATCH),
    "vmap of jac": (torch.func.vmap(torchjac.jac(curve)), BATCH),
    "grad of jac": (torch.func.grad(lambda x: torchjac.jac(curve)(x).square().sum()), POINT),
    "jac of jac": (torchjac.jac(torchjac.jac(curve)), POINT),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_whole(name: str) -> None:
    transformed, x = COMPILED[name]
    expected = transformed(x)
    torch._dynamo.reset()
    # "aot_eager" traces and partitions as Inductor does, and leaves out the C++ compiler.
    got = torch.compile(transformed, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("error:Dynamo detected a call to a:UserWarning")
@pytest.mark.parametrize("transform", [torchjac.jac, torchjac.hessian, torchjac.laplacian])
def test_transforms_made_within(transform: Any) -> None:
    """Nothing in them remembers anything there, of which the compiler would warn."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: transform(scalar)(x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(POINT), transform(scalar)(POINT))


def test_compiled_by_inductor() -> None:
    torch._dynamo.reset()
    got = torch.compile(torchjac.jac(curve), fullgraph=True)(POINT)
    torch.testing.assert_close(got, torchjac.jac(curve)(POINT))


def test_jac_of_a_compiled_function() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(curve, backend="eager")
    torch.testing.assert_close(torchjac.jac(compiled)(POINT), torchjac.jac(curve)(POINT))
