"""Inverse kinematics of a UR5 arm by damped least squares, for many targets at once.

    python examples/inverse_kinematics.py [TARGETS]

Which joint angles bring the tool to a given place and direction? The error e(q) has three components in
metres and three of rotation: twice the vector part of the quaternion, for small angles axis times angle. Each
step solves (JᵀJ + λ) s = -Jᵀe with a damping λ that is large far from the target, which keeps steps short
where the arm is nearly singular, and vanishes with the error, so that the last steps converge quadratically
(Sugihara, *Solvability-unconcerned inverse kinematics by the Levenberg-Marquardt method*, IEEE Transactions
on Robotics 27, 2011). Some starts lead to a local minimum, so every target is tried from several;
`batched_jac` gives the Jacobians of all tries in six passes.
"""

from __future__ import annotations

import math
import sys
import time
from functools import reduce

import torch
from torch import Tensor
from torch.func import vmap

import torchjac

# The UR5's Denavit-Hartenberg parameters in metres and radians, as published by Universal Robots:
# "DH Parameters for calculations of kinematics and dynamics".
A = torch.tensor([0.0, -0.425, -0.39225, 0.0, 0.0, 0.0]).double()
D = torch.tensor([0.089159, 0.0, 0.0, 0.10915, 0.09465, 0.0823]).double()
ALPHA = torch.tensor([0.5, 0.0, 0.0, 0.5, -0.5, 0.0]).double() * math.pi

STARTS, STEPS = 16, 50


def pose(q: Tensor) -> Tensor:
    """Forward kinematics: joint angles (6,) to the tool's frame (4, 4)."""
    cq, sq, ca, sa = q.cos(), q.sin(), ALPHA.cos(), ALPHA.sin()
    zero, one = torch.zeros_like(q), torch.ones_like(q)
    rows = [
        torch.stack([cq, -sq * ca, sq * sa, A * cq], dim=-1),
        torch.stack([sq, cq * ca, -cq * sa, A * sq], dim=-1),
        torch.stack([zero, sa, ca, D], dim=-1),
        torch.stack([zero, zero, zero, one], dim=-1),
    ]
    return reduce(torch.matmul, torch.stack(rows, dim=-2).unbind())


def error(q: Tensor, target: Tensor) -> Tensor:
    """What separates the tool from the target (4, 4): three of place, three of direction."""
    reached = pose(q)
    R = reached[:3, :3] @ target[:3, :3].T
    axis = torch.stack([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    # Its length is 2 sin(angle), and 1 + trace is 4 cos²(angle/2), so this is 2 sin(angle/2).
    turn = axis / (1 + R.trace()).clamp(min=1e-6).sqrt()
    return torch.cat([reached[:3, 3] - target[:3, 3], turn])


def bent_arms(count: int) -> Tensor:
    """Joint angles (count, 6); elbow and wrist bent by 30 to 150 degrees, away from singular poses."""
    q = math.pi * (2 * torch.rand(count, 6).double() - 1)
    bent = q[:, [2, 4]]
    q[:, [2, 4]] = bent.sign() * (math.pi + 4 * bent.abs()) / 6
    return q


def step(q: Tensor, e: Tensor, J: Tensor) -> Tensor:
    """The joint angles after a damped step, from errors (B, 6) and Jacobians (B, 6, 6)."""
    damping = 0.5 * e.square().sum(1) + 1e-12
    damped = J.mT @ J + damping[:, None, None] * torch.eye(6).double()
    # Jᵀe: (B, 6, 6) (B, 6, 1) -> (B, 6)
    return q - torch.linalg.solve(damped, (J.mT @ e[:, :, None])[:, :, 0])


def main(count: int = 100) -> None:
    """Reach for random targets, all of which can be reached."""
    torch.manual_seed(0)
    targets = vmap(pose)(bent_arms(count)).repeat_interleave(STARTS, dim=0)
    q = bent_arms(count * STARTS)
    error_and_jacobian = torchjac.batched_jac(error, return_value=True)
    print(f"{count} targets, {STARTS} starts for each\n")
    print(f"{'step':>5}{'median error':>14}{'arrived':>9}{'targets reached':>17}{'seconds':>9}")
    began = time.perf_counter()
    for number in range(STEPS + 1):
        e, J = error_and_jacobian(q, targets)
        if number % 10 == 0:
            norms = e.norm(dim=1)
            arrived = norms < 1e-9
            reached = arrived.view(count, STARTS).any(1)
            seconds = time.perf_counter() - began
            print(
                f"{number:5}{norms.median():14.0e}{int(arrived.sum()):9}{int(reached.sum()):17}{seconds:9.2f}"
            )
        q = step(q, e, J)
    off = float((vmap(pose)(q) - targets)[arrived].abs().max())
    print(f"\nlargest difference between the frames of those that have arrived: {off:.0e}")
    assert reached.all(), "every target has joint angles"
    assert off < 1e-9, off


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
