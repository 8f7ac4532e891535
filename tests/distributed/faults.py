"""What goes wrong on one rank, all ranks hear of, and nobody waits for ever."""

import datetime
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

import torchjac
from tests.distributed.scenarios import X, assert_same, func
from torchjac.errors import BatchCouplingError, RankError, UnsupportedError


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


class Mute(Exception):  # noqa: N818
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError


def exceptions(mesh: DeviceMesh) -> None:
    """Whatever is raised is told, in a message that can be sent, and an interrupt stays one."""
    rank, culprit = mesh.get_local_rank(), 1
    unpicklable = KeyError(lambda: None)
    raised: list[tuple[BaseException, str]] = [
        (Mute(), "rank 1 raised Mute: (without a message)"),
        (ValueError("a" * 10**6), "rank 1 raised ValueError: aaa"),
        (unpicklable, "rank 1 raised KeyError: <function"),
        (MemoryError("no room"), "rank 1 raised MemoryError: no room"),
        (KeyboardInterrupt(), "rank 1 raised KeyboardInterrupt"),
        (SystemExit(3), "rank 1 raised SystemExit: 3"),
    ]
    for error, told in raised:

        def bad(x: Tensor, error: BaseException = error) -> Tensor:
            if rank == culprit:
                raise error
            return func(x)

        expected = RankError if rank != culprit or isinstance(error, Exception) else type(error)
        with pytest.raises(expected) as caught:
            torchjac.jac(bad, device_mesh=mesh)(X)
        if expected is RankError:
            assert told in str(caught.value)
            assert len(str(caught.value)) < 3000
        torch.distributed.barrier()


def _refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(torchjac.errors.ArgumentError) as caught:
        call()
    message = str(caught.value)
    assert f"the ranks disagree on {told}" in message, message
    torch.distributed.barrier()  # all of them are still in step


def mismatched(mesh: DeviceMesh) -> None:
    """Ranks that call with different things are told which."""
    rank = mesh.get_local_rank()
    sparse = {"sparsity": "detect"}
    mine = {"mode": "reverse" if rank else "forward"}
    narrow = X.to(torch.float32 if rank else torch.float64)
    layout = torch.sparse_csr if rank else torch.strided
    flipped = torch.eye(5).bool().flip(0) if rank else torch.eye(5).bool()
    larger = torch.eye(5).bool() | (rank == 0)
    swapped = torch.eye(5).bool()
    swapped[rank] = swapped[:, rank] = (
        True  # an arrow, which has its head elsewhere on the other rank
    )
    # What is called, with which options, on what, and what the ranks are told.
    calls: list[tuple[Any, dict[str, Any], tuple[Any, ...], str]] = [
        (func, {}, (X + rank,), "argument 0: rank 0 has numbers that sum to"),
        (torch.sin, {}, (X[rank:],), "the shape of argument 0: rank 0 has (5,), rank 1 has (4,)"),
        (torch.diff, sparse, (X[rank:],), "the shape of argument 0: rank 0 has (5,)"),
        (torch.sin, {}, (narrow,), "the dtype of argument 0: rank 0 has torch.float64"),
        (func, mine, (X,), "the option mode: rank 0 has 'forward', rank 1 has 'reverse'"),
        (torch.mul, {}, (X, X * rank), "argument 1:"),
        (lambda p: p[0] * p[1], {}, ([X, X * rank],), "argument 0, leaf 1:"),
        (lambda x, k: x * k, {}, (X, rank), "argument 1: rank 0 has 0, rank 1 has 1"),
        (lambda x: x * (rank + 1), {}, (X,), "the value of output 0:"),
        (lambda x: x.to(narrow), {}, (X,), "the dtype of output 0: rank 0 has torch.float64"),
        (
            torch.sin,
            {},
            (X.index_fill(0, torch.tensor(0), torch.nan if rank else 0.0),),
            "argument 0",
        ),
        (
            torch.square,
            {"sparsity": larger},
            (X,),
            "the option sparsity: rank 0 has a",
        ),
        (
            torch.square,
            {"sparsity": flipped, "check": "never"},
            (X,),
            "the columns of the pattern's",
        ),
        (torch.square, {"sparsity": swapped, "check": "never"}, (X,), "the colours of the"),
        (
            torch.diff,
            {"layout": layout, **sparse},
            (X,),
            "the option layout: rank 0 has torch.strided",
        ),
    ]
    for function, options, args, told in calls:
        _refused(lambda: torchjac.jac(function, device_mesh=mesh, **options)(*args), told)  # noqa: B023
    batch = X.expand(4, 5) + rank
    _refused(lambda: torchjac.batched_jac(torch.sin, device_mesh=mesh)(batch), "argument 0:")
    # The values of samples say nothing where every rank has others; so all look at the first.
    torch.manual_seed(rank)
    net, batch = nn.Linear(5, 3).double(), X.expand(4, 5)
    told = "the value of output 0 for the first sample"
    for per_sample in (True, False):
        transform = torchjac.batched_jac(net, per_sample=per_sample, device_mesh=mesh)
        _refused(lambda: transform(batch), told)  # noqa: B023
    draws = torchjac.batched_jac(
        lambda x: torch.dropout(x, 0.5, True), randomness="same", device_mesh=mesh
    )
    _refused(lambda: draws(batch), told)
    _refused(lambda: torchjac.jac_blocks(func, device_mesh=mesh)(X + rank), "argument 0:")
    by = "columns" if rank else "rows"
    _refused(
        lambda: torchjac.jac_blocks(func, by=by, device_mesh=mesh)(X),
        "the option by: rank 0 has 'rows', rank 1 has 'columns'",
    )
    # One rank takes part in another kind of call: they meet at different stages.
    options = sparse if rank else {}
    _refused(
        lambda: torchjac.jac(torch.diff, device_mesh=mesh, **options)(X),
        "how far the call has come",
    )
    # What raises alike everywhere is raised as it is.
    for wrong in (X.int(), "no tensor"):
        with pytest.raises(torchjac.errors.ArgumentTypeError):
            torchjac.jac(func, device_mesh=mesh)(wrong)


def alike(mesh: DeviceMesh) -> None:
    """What differs by rounding alone, or is no number, or too large for sums, is the same."""
    rank = mesh.get_local_rank()
    noise = torch.randn(50, generator=torch.Generator().manual_seed(rank))
    for x in (
        torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0]),
        torch.full((5,), 1.7e308, dtype=torch.float64),
        X * (1 + rank * 1e-14),
    ):
        torchjac.jac(torch.sin, device_mesh=mesh)(x)
    # Residuals at a solution: nothing but rounding is left of terms of size one.
    torchjac.jac(lambda x: x - x.detach() + 3e-8 * noise, device_mesh=mesh)(torch.ones(50))


def held_back(mesh: DeviceMesh) -> None:
    """Results carry no graph, so arguments that somebody differentiates are refused."""
    x = X.clone().requires_grad_()
    assert not torchjac.jac(func, device_mesh=mesh)(x).requires_grad
    for call in (torchjac.jac, torchjac.jac_blocks):
        with pytest.raises(UnsupportedError, match="derivatives would end here"):
            call(func, device_mesh=mesh)(x * 1)
    draws = torchjac.batched_jac(
        lambda x: torch.dropout(x, 0.5, True), per_sample=False, device_mesh=mesh
    )
    with pytest.raises(UnsupportedError, match="draws random numbers for the whole batch"):
        draws(X.expand(4, 5))
    # One sample for each rank: that they influence each other takes two to be seen.
    coupled = torchjac.batched_jac(lambda x: x - x.mean(0), per_sample=False, device_mesh=mesh)
    with pytest.raises(BatchCouplingError):
        coupled(torch.rand(mesh.size(), 5))


def silent(mesh: DeviceMesh) -> None:
    """A rank never comes: the others end with an error when the time of the group is over."""
    group = torch.distributed.new_group(timeout=datetime.timedelta(seconds=2))
    impatient = DeviceMesh.from_group(group, "cpu")
    began = time.monotonic()
    if mesh.get_local_rank() != mesh.size() - 1:
        message = _raises(lambda: torchjac.jac(func, device_mesh=impatient)(X))
        assert "rank 0 has lost contact with the others" in message
        assert 1 < time.monotonic() - began < 20
    torch.distributed.barrier()


def killed(mesh: DeviceMesh) -> None:
    """A rank ends in the middle of a call: the others end with an error and do not hang."""
    rank, last = mesh.get_local_rank(), mesh.size() - 1

    def ends(x: Tensor) -> Tensor:
        if rank == last:
            os._exit(9)
        return func(x)

    began = time.monotonic()
    message = _raises(lambda: torchjac.jac(ends, device_mesh=mesh)(X))
    assert "has lost contact with the others" in message
    assert time.monotonic() - began < 20
