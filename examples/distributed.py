"""Divide a Jacobian over processes, and fit a network by Gauss-Newton steps without gathering it.

    torchrun --nproc-per-node 2 examples/distributed.py

Every process makes the same calls. It has its share of the rows of the Jacobian of the residuals, and of JᵀJ
and Jᵀr its part of the sum; two small all-reduces put these together, and all take the same step.
Started without torchrun it runs in one process.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import torchjac


def start() -> DeviceMesh:
    """One mesh of all processes."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 29531}.items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_ADDR", "localhost")
    dist.init_process_group("gloo")
    return init_device_mesh("cpu", (dist.get_world_size(),))


def say(*words: object) -> None:
    """Print in one process only."""
    if dist.get_rank() == 0:
        print(*words)


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def fit(mesh: DeviceMesh, points: int = 400, steps: int = 12) -> None:
    """Fit, and compare with one process."""
    torch.manual_seed(0)  # the same data and the same network everywhere
    inputs = torch.rand(points, 2, dtype=torch.float64) * 2 - 1
    targets = (3 * inputs[:, 0]).sin() * inputs[:, 1]
    shapes = [(16, 2), (16,), (1, 16)]
    weights = torch.cat([torch.randn(s, dtype=torch.float64).reshape(-1) for s in shapes])

    def residuals(flat: Tensor) -> Tensor:
        a, b, c = (w.reshape(s) for w, s in zip(flat.split([32, 16, 16]), shapes, strict=True))
        return (c @ (a @ inputs.T + b[:, None]).tanh()).squeeze(0) - targets

    jacobian = torchjac.jac(residuals, mode="reverse", return_value=True, device_mesh=mesh)
    damping = 1.0
    loss = residuals(weights).square().mean()
    say(f"{mesh.size()} processes; {points} residuals, {len(weights)} weights")
    say("step    loss      damping")
    for step in range(steps):
        value, J = jacobian(weights)
        mine = J.to_local()  # the rows that are this process's share
        first = mesh.get_local_rank() * -(-points // mesh.size())
        mine_value = value[first : first + len(mine)]
        gram, slope = summed(mine.T @ mine), summed(mine.T @ mine_value)
        eye = torch.eye(len(weights), dtype=torch.float64)
        moved = weights - torch.linalg.solve(gram + damping * eye, slope)
        found = residuals(moved).square().mean()
        if found < loss:
            weights, loss, damping = moved, found, damping / 4
        else:
            damping *= 8
        say(f"{step:4}  {loss:.2e}  {damping:.1e}")

    _, J = jacobian(weights)
    say(f"{J.shape[0]}×{J.shape[1]}, {J.placements}, here {tuple(J.to_local().shape)}")
    whole, alone = J.full_tensor(), torchjac.jac(residuals)(weights)
    say(f"largest difference from one process: {(whole - alone).abs().max():.0e}")
    assert torch.allclose(whole, alone, rtol=1e-10, atol=1e-12)
    assert loss < 1e-2


if __name__ == "__main__":
    fit(start(), *(int(word) for word in sys.argv[1:3]))
    dist.destroy_process_group()
