"""What is no mesh for a call is refused when the transform is built, and one process is a mesh."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import torchjac
from torchjac.errors import ArgumentError, OptionError, OptionTypeError, PlanError

X = torch.linspace(-1, 1, 5, dtype=torch.float64)
try:
    from torch.distributed.tensor import DTensor  # noqa: F401
except ImportError:
    HAS_DTENSOR = False
else:
    HAS_DTENSOR = True
new = pytest.mark.skipif(not HAS_DTENSOR, reason="DTensors need torch 2.5")
CALLS = [torchjac.jac, torchjac.hessian, torchjac.batched_jac, torchjac.jac_blocks]


@pytest.fixture
def world() -> Iterator[Any]:
    """A process group of this process alone."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.device_mesh
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(HAS_DTENSOR, reason="there are DTensors")
@pytest.mark.parametrize("call", CALLS)
def test_before_there_were_dtensors(call: Any) -> None:
    with pytest.raises(OptionError, match=r"device_mesh=...\): results are DTensors.* torch 2.5"):
        call(torch.sin, device_mesh="mesh")


@new
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_mesh(call: Any) -> None:
    with pytest.raises(OptionTypeError, match=r"expected a .*DeviceMesh, got a str"):
        call(torch.sin, device_mesh="mesh")


@new
def test_what_does_not_go_with_a_mesh(world: Any) -> None:
    mesh = world.init_device_mesh("cpu", (1,))
    square = world.init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    with pytest.raises(OptionError, match=r"of one dimension, got 2. Name one: mesh\['dp'\]"):
        torchjac.jac(torch.sin, device_mesh=square)
    with pytest.raises(OptionError, match=r"jac\(out=..., device_mesh=...\)"):
        torchjac.jac(torch.sin, out=X, device_mesh=mesh)
    with pytest.raises(OptionError, match="randomness='different'"):
        torchjac.batched_jac(torch.sin, randomness="different", device_mesh=mesh)
    with pytest.raises(PlanError, match="device_mesh"):
        torchjac.jac(torch.sin, device_mesh=mesh).plan(X)
    with pytest.raises(
        ArgumentError, match="the mesh is of cpu devices and an argument is on meta"
    ):
        torchjac.jac(torch.sin, device_mesh=mesh)(X.to("meta"))


@new
def test_one_process_is_a_mesh(world: Any) -> None:
    from tests.distributed import scenarios

    mesh = world.init_device_mesh("cpu", (1,))
    for scenario in (scenarios.placements, scenarios.batches, scenarios.colors, scenarios.blocks):
        scenario(mesh)
