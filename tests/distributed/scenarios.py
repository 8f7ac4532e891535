"""What the processes of a group do. Every rank runs the same lines; `Group` says which one it is."""

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import torchjac
from tests.trees import pairs
from torchjac.errors import RankError
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

    @settings(in_step, max_examples=40)
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

    @settings(in_step, max_examples=15)
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

    x, y = torch.randn(3, 5).double(), torch.randn(2).double()
    transform = torchjac.batched_jac(two, (0, 1), in_dims=(1, None, None), device_mesh=mesh)
    expected = torchjac.batched_jac(two, (0, 1), in_dims=(1, None, None))(x, y, 2.0)
    assert_same(transform(x, y, 2.0), expected)


def placements(mesh: DeviceMesh) -> None:
    """Where the pieces lie, and how many passes each rank makes."""
    size, rank = mesh.size(), mesh.get_local_rank()
    passes = 0

    def counted(x: Tensor) -> Tensor:
        y = func(x)

        def hook(_: Tensor) -> None:
            nonlocal passes
            passes += 1

        if y.requires_grad:
            y.register_hook(hook)
        return y

    reverse = torchjac.jac(counted, mode="reverse", chunk_size=1, check="never", device_mesh=mesh)(
        X
    )
    each = -(-7 // size)
    own = range(min(rank * each, 7), min((rank + 1) * each, 7))
    assert passes == len(own)
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


def _raises(call: Callable[[], object]) -> str:
    """The message of the error that a call must raise on every rank."""
    with pytest.raises(RankError) as caught:
        call()
    return str(caught.value)


def raising(mesh: DeviceMesh) -> None:
    """One rank raises, at every place where it can: all ranks do, and can be used again."""
    rank, culprit = mesh.get_local_rank(), 1

    def bad(x: Tensor) -> Tensor:
        if rank == culprit:
            raise KeyError("lost file")
        return torch.diff(x)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            if rank == culprit:
                raise KeyError("lost file")
            return cotangent

    def late(x: Tensor) -> Tensor:
        return torch.diff(Backward.apply(x))

    batch = X.expand(4, 5).contiguous()
    calls: dict[str, Callable[[], object]] = {
        "jac": lambda: torchjac.jac(bad, device_mesh=mesh)(X),
        "jac, forward": lambda: torchjac.jac(bad, mode="forward", device_mesh=mesh)(X),
        "jac, late": lambda: torchjac.jac(late, mode="reverse", device_mesh=mesh)(X),
        "jac, colours": lambda: torchjac.jac(bad, sparsity="detect", device_mesh=mesh)(X),
        "hessian": lambda: torchjac.hessian(lambda x: bad(x).sum(), device_mesh=mesh)(X),
        "batched_jac": lambda: torchjac.batched_jac(bad, device_mesh=mesh)(batch),
        "jac_blocks": lambda: torchjac.jac_blocks(bad, device_mesh=mesh)(X),
        "jac_blocks, late": lambda: list(torchjac.jac_blocks(late, by="rows", device_mesh=mesh)(X)),
    }
    for name, call in calls.items():
        message = _raises(call)
        assert message.startswith(name.partition(",")[0] + "(device_mesh=...)"), message
        assert f"rank {culprit} raised KeyError: 'lost file'" in message, message
        assert_same(torchjac.jac(func, device_mesh=mesh)(X), torchjac.jac(func)(X))


def _refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(torchjac.errors.ArgumentError) as caught:
        call()
    assert f"the ranks disagree on {told}" in str(caught.value)
    torch.distributed.barrier()  # all of them are still in step


def mismatched(mesh: DeviceMesh) -> None:
    """Ranks that call with different things are told which."""
    rank = mesh.get_local_rank()
    sparse = {"sparsity": "detect"}
    mine = {"mode": "reverse" if rank else "forward"}
    narrow = X.to(torch.float32 if rank else torch.float64)
    # What is called, with which options, on what, and what the ranks are told.
    calls: list[tuple[Any, dict[str, Any], tuple[Any, ...], str]] = [
        (func, {}, (X + rank,), "argument 0: rank 0 has numbers that sum to"),
        (torch.sin, {}, (X[rank:],), "the shape of argument 0: rank 0 has (5,), rank 1 has (4,)"),
        (torch.diff, sparse, (X[rank:],), "the shape of argument 0: rank 0 has (5,)"),
        (torch.sin, {}, (narrow,), "the dtype of argument 0: rank 0 has torch.float64"),
        (func, mine, (X,), "the mode: rank 0 has forward, rank 1 has reverse"),
        (torch.mul, {}, (X, X * rank), "argument 1:"),
        (lambda p: p[0] * p[1], {}, ([X, X * rank],), "argument 0, leaf 1:"),
        (lambda x, k: x * k, {}, (X, rank), "argument 1: rank 0 has 0, rank 1 has 1"),
        (lambda x: x * (rank + 1), {}, (X,), "the value of output 0:"),
    ]
    for function, options, args, told in calls:
        _refused(lambda: torchjac.jac(function, device_mesh=mesh, **options)(*args), told)  # noqa: B023
    batch = X.expand(4, 5) + rank
    _refused(lambda: torchjac.batched_jac(torch.sin, device_mesh=mesh)(batch), "argument 0:")
    _refused(lambda: torchjac.jac_blocks(func, device_mesh=mesh)(X + rank), "argument 0:")
    # What raises alike everywhere is raised as it is.
    for wrong in (X.int(), "no tensor"):
        with pytest.raises(torchjac.errors.ArgumentTypeError):
            torchjac.jac(func, device_mesh=mesh)(wrong)


def different_calls(mesh: DeviceMesh) -> None:
    """One rank takes part in another kind of call: they meet at different stages, and say so."""
    rank = mesh.get_local_rank()
    try:
        if rank:
            torchjac.jac(torch.diff, sparsity="detect", device_mesh=mesh)(X)
        else:
            torchjac.jac(torch.diff, device_mesh=mesh)(X)
    except torchjac.errors.TorchjacError as error:
        print(error, flush=True)
        time.sleep(2)  # for the other to hear of it too
        os._exit(0)  # they are not in step any more


def killed(mesh: DeviceMesh) -> None:
    """A rank ends in the middle of a call: the others end with an error and do not hang."""
    rank, last = mesh.get_local_rank(), mesh.size() - 1

    def ends(x: Tensor) -> Tensor:
        if rank == last:
            os._exit(9)
        return func(x)

    began = time.monotonic()
    message = _raises(lambda: torchjac.jac(ends, device_mesh=mesh)(X))
    print(f"{time.monotonic() - began:.1f} {message}")
    os._exit(0)  # a group that has lost a member cannot be left in good order


def silent(mesh: DeviceMesh) -> None:
    """A rank never comes: the others end with an error when the time of the group is over."""
    if mesh.get_local_rank() == mesh.size() - 1:
        time.sleep(8)
        os._exit(0)
    message = _raises(lambda: torchjac.jac(func, device_mesh=mesh)(X))
    print(message)
    os._exit(0)
