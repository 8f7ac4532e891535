"""Every engine where the tensors are: the same numbers on a GPU, on the GPU, without waiting for it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import torchjac
from tests.cases import CASES, Case
from tests.sparse import DETECTS
from tests.trees import pairs
from torchjac.errors import PlanMismatchError
from torchjac.foundations.pytree import flatten, map_tree
from torchjac.planning import chunks

HAS_CUDA = torch.cuda.is_available()
needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
every_device = pytest.mark.parametrize("device", DEVICES)

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def put(tree: Any, device: str) -> Any:
    return map_tree(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)


def assert_there(got: Any, device: str) -> None:
    for leaf in flatten(got)[0]:
        assert leaf is None or leaf.device.type == device


@contextlib.contextmanager
def without_waiting(device: str) -> Iterator[None]:
    """Whatever makes the processor wait for the GPU raises within the block."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Those that capture no tensor: that one would be on the CPU.
NAMES = {
    "elementwise square",
    "transpose",
    "matrix inverse",
    "softmax",
    "empty input",
    "Rosenbrock",
}
PORTABLE = [case for case in CASES if case.name in NAMES]


@every_device
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("chunk_size", ["auto", None, 1, 2])
@pytest.mark.parametrize("case", PORTABLE, ids=str)
def test_closed_forms(device: str, mode: str, chunk_size: Any, case: Case) -> None:
    transform = torchjac.jac(case.func, case.argnums, mode=mode, chunk_size=chunk_size)
    got = transform(*put(case.args, device))
    assert_there(got, device)
    for one, other in pairs(put(got, "cpu"), case.jacobian):
        torch.testing.assert_close(one, other)


def function(x: Tensor) -> Tensor:
    return torch.diff(x).sin() * x[1:] + x.square().mean()


def scalar(x: Tensor) -> Tensor:
    return function(x).square().sum()


def banded(x: Tensor) -> Tensor:
    return torch.diff(x) ** 2 * x[1:]


IN_CHUNKS: dict[str, Any] = {
    "reverse": torchjac.jac(function, mode="reverse", chunk_size=3),
    "forward": torchjac.jac(function, mode="forward", chunk_size=3),
    "one by one": torchjac.jac(function, mode="reverse", chunk_size=1),
    "one by one, forward": torchjac.jac(function, mode="forward", chunk_size=1),
    "hessian": torchjac.hessian(scalar, chunk_size=3),
    "hessian, forward": torchjac.hessian(scalar, mode="forward-over-reverse", chunk_size=3),
    "jac_diag": torchjac.jac_diag(torch.sin, chunk_size=3),
}

SPARSE = {"sparse jac", "sparse hessian", "csr"}
CALLS: dict[str, Any] = {
    "jac, reverse": lambda x: torchjac.jac(function, mode="reverse", chunk_size=3)(x),
    "jac, forward": lambda x: torchjac.jac(function, mode="forward", chunk_size=3)(x),
    "hessian": lambda x: torchjac.hessian(scalar, chunk_size=3)(x),
    "hessian, forward": lambda x: torchjac.hessian(scalar, mode="forward-over-reverse")(x),
    "batched_jac": lambda x: torchjac.batched_jac(function, chunk_size=3)(x.expand(5, -1).clone()),
    "sparse jac": lambda x: torchjac.jac(banded, sparsity="detect")(x),
    "sparse hessian": lambda x: torchjac.hessian(lambda x: banded(x).sum(), sparsity="detect")(x),
    "csr": lambda x: torchjac.jac(banded, sparsity="detect", layout=torch.sparse_csr)(x).values(),
    "products": lambda x: torchjac.jac_operator(function)(x).gram("inputs"),
    "hessian_operator": lambda x: torchjac.hessian_operator(scalar)(x) @ x,
    "jac_blocks": lambda x: torch.cat([b for _, b in torchjac.jac_blocks(function, by="rows")(x)]),
    "jac_diag": lambda x: torchjac.jac_diag(torch.sin)(x),
    "divergence": lambda x: torchjac.divergence(torch.sin)(x),
    "laplacian": lambda x: torchjac.laplacian(scalar)(x),
    "out": lambda x: torchjac.jac(function, out=x.new_empty(7, 8), chunk_size=3)(x),
}


@every_device
@pytest.mark.parametrize("name", CALLS)
def test_a_call_stays_where_its_arguments_are(device: str, name: str) -> None:
    if name in SPARSE and not DETECTS:
        pytest.skip("detection needs torch 2.1")
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)
    expected = CALLS[name](x)
    got = CALLS[name](x.to(device))
    assert_there(got, device)
    torch.testing.assert_close(got.cpu(), expected)


@every_device
@pytest.mark.parametrize("chunk_size", [8, None])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_no_pass_waits_for_the_device(device: str, mode: str, chunk_size: Any) -> None:
    """What a first call finds out may wait; then chunk after chunk is handed over."""
    if mode == "forward" and chunk_size:
        pytest.skip("what is evaluated in every chunk is compared, once for all chunks")
    x = torch.linspace(-1, 1, 64, device=device)
    transform = torchjac.jac(function, mode=mode, chunk_size=chunk_size)
    with torch.no_grad():
        transform(x)
        with without_waiting(device):
            got = transform(x)
    torch.testing.assert_close(got, torch.func.jacrev(function)(x))


class Reads(TorchFunctionMode):
    """Counts what brings a number to the host, where a GPU would be waited for."""

    OF_VALUES = frozenset(
        {
            *(torch.allclose, torch.equal, torch.nonzero, torch.masked_select, torch.unique),
            *(getattr(Tensor, name) for name in ("__bool__", "__int__", "__float__", "__index__")),
            *(
                getattr(Tensor, name)
                for name in ("item", "tolist", "numpy", "cpu", "allclose", "equal")
            ),
            *(getattr(Tensor, name) for name in ("nonzero", "masked_select", "unique")),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.OF_VALUES
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", IN_CHUNKS)
def test_no_chunk_reads_a_number(name: str) -> None:
    """However many chunks there are, a later call reads as often; and where one can be, never."""
    counts = []
    for size in (8, 32):
        x = torch.linspace(-1, 1, size, dtype=torch.float64)
        call = IN_CHUNKS[name]
        for _ in range(3):
            call(x)
        with torch.no_grad(), Reads() as reads:
            call(x)
        counts.append(reads.count)
    most = 1 if "forward" in name or name == "jac_diag" else 0
    assert counts[0] == counts[1] <= most


@pytest.mark.skipif(not DETECTS, reason="detection needs torch 2.1")
@every_device
def test_no_sparse_pass_waits_for_the_device(device: str) -> None:
    x = torch.linspace(-1, 1, 64, device=device)
    transform = torchjac.jac(banded, sparsity="detect", layout=torch.sparse_csr)
    with torch.no_grad():
        transform(x)
        with without_waiting(device):
            got = transform(x).values()
    assert_there(got, device)


@pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1")
@every_device
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_plans(device: str, compiled: bool) -> None:
    x = torch.linspace(-1, 1, 8, dtype=torch.float64, device=device)
    plan = torchjac.jac(function).plan(x)
    plan = plan.compile() if compiled else plan
    got = plan(x)
    assert_there(got, device)
    torch.testing.assert_close(got, torch.func.jacrev(function)(x))
    with pytest.raises(PlanMismatchError, match="device"):
        plan(x.to("meta"))


@every_device
def test_chunks_go_by_the_memory_of_the_device(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(chunks, "_ALWAYS_FITS", 0)
    monkeypatch.setattr(
        chunks, "available_memory", lambda device: asked.append(device.type) or 2**14
    )
    x = torch.linspace(-1, 1, 64, device=device)
    with torch.no_grad():
        got = torchjac.jac(function)(x)
    assert set(asked) == {device}
    torch.testing.assert_close(got, torch.func.jacrev(function)(x))
