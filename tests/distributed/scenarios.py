"""The same numbers from a group as from one process. Every rank runs the same lines."""

import contextlib
import io
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import torchjac
from examples import distributed
from tests.counted import Counted
from tests.testing.planted import WrongJvp
from tests.trees import pairs
from torchjac.errors import OptionError
from torchjac.foundations.pytree import flatten
from torchjac.testing import strategies

# Every process draws the same examples; to shrink one they would have to fail together.
in_step = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MATRIX = torch.linspace(-1, 2, 35, dtype=torch.float64).reshape(7, 5)
X = torch.linspace(-1, 1, 5, dtype=torch.float64)


def func(x: Tensor) -> Tensor:
    return (MATRIX @ x).tanh()


def assert_same(got: Any, expected: Any) -> None:
    for one, other in pairs(got, expected):
        assert isinstance(one, DTensor)
        assert not one.requires_grad
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(
            one.full_tensor(), other.detach(), rtol=1e-8, atol=1e-9, equal_nan=True
        )


def programs(mesh: DeviceMesh) -> None:
    """Jacobians and Hessians of random programs, in every mode, whatever the sizes."""
    warnings.simplefilter("ignore")
    # All ranks work for one example, on as few cores.
    examples = 80 // mesh.size()

    @settings(in_step, max_examples=examples)
    @given(
        strategies.programs_with_arguments(other_outputs=True),
        st.sampled_from(["auto", "forward", "reverse"]),
        st.sampled_from(["auto", None, 1, 2]),
    )
    def jacobians(case: Any, mode: str, chunk_size: Any) -> None:
        program, args = case
        outputs, _ = flatten(program(*args))
        assume(any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in outputs))
        options: dict[str, Any] = {"mode": mode, "chunk_size": chunk_size}
        numbers = tuple(range(len(args)))
        got = torchjac.jac(program, numbers, device_mesh=mesh, **options)(*args)
        assert_same(got, torchjac.jac(program, numbers, **options)(*args))

    @settings(in_step, max_examples=examples // 3)
    @given(
        strategies.programs_with_arguments(smooth=True),
        st.sampled_from(["auto", "forward-over-reverse", "reverse-over-reverse"]),
    )
    def hessians(case: Any, mode: str) -> None:
        program, args = case
        numbers = tuple(range(len(args)))
        got = torchjac.hessian(program, numbers, device_mesh=mesh, mode=mode)(*args)
        assert_same(got, torchjac.hessian(program, numbers, mode=mode)(*args))

    jacobians()
    hessians()


def batches(mesh: DeviceMesh) -> None:
    """Per-sample Jacobians, with more and with fewer samples than ranks."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    parallel = nn.parallel.DistributedDataParallel(net)
    for samples in (1, 2, 3, 7):
        batch = torch.linspace(-1, 1, 3 * samples, dtype=torch.float64).reshape(samples, 3)
        for module in (net, parallel):
            for per_sample in (True, False):
                transform = torchjac.batched_jac(
                    module, per_sample=per_sample, return_value=True, device_mesh=mesh
                )
                value, got = transform(batch)
                assert got.placements == value.placements == (Shard(0),)
                assert_same(got, torchjac.batched_jac(net)(batch))
                assert_same(value, net(batch))
            got = torchjac.batched_jac(module, "params", device_mesh=mesh)(batch)
            assert_same(got, torchjac.batched_jac(net, "params")(batch))

    def two(x: Tensor, y: Tensor, factor: float) -> Tensor:
        return x * y.sum() * factor

    def with_more(x: Tensor) -> Any:
        return (x.sin(), x.argmax(), None), {"sum": x.sum(), "name": "aux"}

    batch = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    options = {"return_value": True, "has_aux": True}
    got = torchjac.batched_jac(with_more, device_mesh=mesh, **options)(batch)
    expected = torchjac.batched_jac(with_more, **options)(batch)
    assert got[2].pop("name") == expected[2].pop("name")
    assert_same(got, expected)
    empty = torchjac.batched_jac(torch.sin, per_sample=False, device_mesh=mesh)(batch[:0])
    assert empty.shape == (0, 3, 3)

    x, y = torch.randn(3, 5).double(), torch.randn(2).double()
    transform = torchjac.batched_jac(two, (0, 1), in_dims=(1, None, None), device_mesh=mesh)
    expected = torchjac.batched_jac(two, (0, 1), in_dims=(1, None, None))(x, y, 2.0)
    assert_same(transform(x, y, 2.0), expected)


def placements(mesh: DeviceMesh) -> None:
    """Where the pieces lie, and how many passes each rank makes."""
    size, rank = mesh.size(), mesh.get_local_rank()
    counted = Counted(func)
    reverse = torchjac.jac(counted, mode="reverse", chunk_size=1, check="never", device_mesh=mesh)(
        X
    )
    each = -(-7 // size)
    own = range(min(rank * each, 7), min((rank + 1) * each, 7))
    assert counted.passes == max(len(own), 1)  # lest a rank without a share miss a refusal
    assert reverse.placements == (Shard(0),)
    torch.testing.assert_close(reverse.to_local(), torchjac.jac(func)(X)[own.start : own.stop])
    forward = torchjac.jac(func, mode="forward", device_mesh=mesh)(X)
    assert forward.placements == (Shard(1),)
    assert forward.to_local().shape == (7, len(range(5)[rank * -(-5 // size) :][: -(-5 // size)]))
    image = torchjac.jac(lambda x: x.expand(1, 4, 5) ** 2, mode="reverse", device_mesh=mesh)(X)
    assert image.placements == ((Shard(1) if 1 < size <= 4 else image.placements[0]),)
    scalar = torchjac.jac(torch.prod, device_mesh=mesh)(X)
    assert scalar.placements == (Replicate(),)
    assert_same(scalar, torchjac.jac(torch.prod)(X))
    hessian = torchjac.hessian(torch.prod, mode="forward-over-reverse", device_mesh=mesh)(X)
    assert hessian.placements == (Shard(1),)
    value, jacobian, aux = torchjac.jac(
        lambda x: (func(x), "aux"), return_value=True, has_aux=True, device_mesh=mesh
    )(X)
    assert aux == "aux"
    torch.testing.assert_close(value, func(X))
    assert_same(jacobian, torchjac.jac(func)(X))


def colors(mesh: DeviceMesh) -> None:
    """The colours of a pattern are divided, and every rank has the entries."""

    def banded(x: Tensor) -> Tensor:
        return torch.diff(x) ** 2 * x[1:]

    def chain(x: Tensor) -> Tensor:
        return ((x[1:] - x[:-1] ** 2) ** 2).sum() + (x**4).sum()

    x = torch.linspace(-1, 2, 9, dtype=torch.float64)
    for name, function in (("jac", banded), ("hessian", chain)):
        transform = getattr(torchjac, name)
        expected = transform(function)(x)
        for mode in ("auto", *(("forward", "reverse") if name == "jac" else ())):
            options = {"sparsity": "detect", "mode": mode, "device_mesh": mesh}
            assert_same(transform(function, **options)(x), expected)
            for layout in (torch.sparse_coo, torch.sparse_csr):
                whole = transform(function, layout=layout, **options)(x)
                assert whole.layout is layout
                torch.testing.assert_close(whole.to_dense(), expected)
    nothing = torchjac.jac(lambda x: x.detach().round() * 0, sparsity="detect", device_mesh=mesh)
    assert_same(nothing(x), torch.zeros(9, 9, dtype=torch.float64))


def blocks(mesh: DeviceMesh) -> None:
    """Every rank gets the blocks of its rows or columns."""
    expected = torchjac.jac(func)(X)
    for by in ("rows", "columns"):
        dim = int(by == "columns")
        for chunk_size in ("auto", 1, 2):
            whole = torch.zeros(7, 5, dtype=torch.float64)
            transform = torchjac.jac_blocks(func, by=by, chunk_size=chunk_size, device_mesh=mesh)
            for at, block in transform(X):
                whole.narrow(dim, at.start, at.stop - at.start).copy_(block)
            torch.distributed.all_reduce(whole)
            torch.testing.assert_close(whole, expected)
    net = nn.parallel.DistributedDataParallel(nn.Linear(5, 3).double())
    shapes = [
        block.shape[1] for _, block in torchjac.jac_blocks(net, "params", device_mesh=mesh)(X)
    ]
    assert set(shapes) <= {18}


class NoForward(torch.autograd.Function):
    """What PyTorch differentiates in reverse mode only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent * 2


class NoBackward(torch.autograd.Function):
    """In forward mode only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * 2


def refusals(mesh: DeviceMesh) -> None:
    """What PyTorch refuses makes all ranks take the other mode, those without a share too."""
    warnings.simplefilter("ignore")
    many = torch.linspace(0, 1, 50, dtype=torch.float64)

    def wide(x: Tensor) -> Tensor:  # two columns, fifty rows
        return NoForward.apply(x).prod() * many

    def tall(x: Tensor) -> Tensor:  # two rows, fifty columns
        return NoBackward.apply(x)[:2].sin()

    for function, x in ((wide, X[:2]), (tall, many)):
        got = torchjac.jac(function, check="never", device_mesh=mesh)(x)
        assert_same(got, torchjac.jac(function, check="never")(x))


def alone(mesh: DeviceMesh) -> None:
    """What one rank has found out in a call of its own does not part it from the others."""
    warnings.simplefilter("ignore")

    def function(x: Tensor) -> Tensor:
        return WrongJvp.apply(x).sum() * torch.linspace(0, 1, 50, dtype=torch.float64)

    expected = torchjac.jac(function, mode="reverse")(X)
    if mesh.get_local_rank() == 0:
        torch.testing.assert_close(torchjac.jac(function)(X), expected)
    assert_same(torchjac.jac(function, device_mesh=mesh)(X), expected)


def parts_of_a_world(mesh: DeviceMesh) -> None:
    """A dimension of a larger mesh, and a mesh that has not all ranks."""
    rank = mesh.get_local_rank()
    grid = torch.distributed.device_mesh.init_device_mesh(
        "cpu", (2, mesh.size() // 2), mesh_dim_names=("dp", "tp")
    )
    # Each of the groups along "dp" has a point of its own.
    x = X + grid["tp"].get_local_rank()
    assert_same(torchjac.jac(func, device_mesh=grid["dp"])(x), torchjac.jac(func)(x))
    every_other = DeviceMesh("cpu", list(range(0, mesh.size(), 2)))
    if rank % 2:
        with pytest.raises(OptionError, match="this process is not one of the mesh's"):
            torchjac.jac(func, device_mesh=every_other)
    else:
        assert_same(torchjac.jac(func, device_mesh=every_other)(X), torchjac.jac(func)(X))


def half_precision(mesh: DeviceMesh) -> None:
    """Products that are gathered have the dtype that they were made in."""
    for dtype in (torch.float16, torch.bfloat16):
        transform = torchjac.jac(torch.diff, sparsity="detect", device_mesh=mesh)
        assert_same(transform(X.to(dtype)), torchjac.jac(torch.diff)(X.to(dtype)))


def inference(mesh: DeviceMesh) -> None:
    """Within inference mode nothing is different."""
    with torch.inference_mode():
        x = X.clone()
        calls = [
            torchjac.jac(func, device_mesh=mesh)(x).full_tensor(),
            torchjac.batched_jac(func, device_mesh=mesh)(x[None]).full_tensor()[0],
        ]
    for got in calls:
        torch.testing.assert_close(got.clone(), torchjac.jac(func)(X))


def example(mesh: DeviceMesh) -> None:
    """The program in ``examples/``, which checks itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        distributed.fit(mesh, points=40, steps=8)
