"""The Jacobian of a UR5 arm's tool position, checked against geometry and timed against PyTorch.

Run it with ``python -m nox -s quickstart``.
"""

import statistics
import time
from collections.abc import Callable
from functools import reduce
from itertools import accumulate
from math import pi

import torch

import torchjac
from torchjac.planning.modes import choose_mode

torch.set_default_dtype(torch.float64)
torch.set_printoptions(precision=4, sci_mode=False)

# The UR5's Denavit-Hartenberg parameters in metres and radians, as published by Universal Robots:
# "DH Parameters for calculations of kinematics and dynamics".
A = torch.tensor([0.0, -0.425, -0.39225, 0.0, 0.0, 0.0])
D = torch.tensor([0.089159, 0.0, 0.0, 0.10915, 0.09465, 0.0823])
ALPHA = torch.tensor([pi / 2, 0.0, 0.0, pi / 2, -pi / 2, 0.0])


def links(q: torch.Tensor) -> torch.Tensor:
    """Joint angles (6,) to the transform of each link, (6, 4, 4): Rz(q) Tz(d) Tx(a) Rx(alpha)."""
    cq, sq, ca, sa = q.cos(), q.sin(), ALPHA.cos(), ALPHA.sin()
    zero, one = torch.zeros_like(q), torch.ones_like(q)
    # fmt: off
    rows = [
        cq,   -sq * ca,  sq * sa,  A * cq,
        sq,    cq * ca, -cq * sa,  A * sq,
        zero,  sa,       ca,       D,
        zero,  zero,     zero,     one,
    ]
    # fmt: on
    return torch.stack(rows, dim=-1).reshape(6, 4, 4)


def tool_position(q: torch.Tensor) -> torch.Tensor:
    """Forward kinematics: joint angles (6,) to the tool's position in the base frame, (3,)."""
    return reduce(torch.matmul, links(q).unbind())[:3, 3]


def geometric_jacobian(q: torch.Tensor) -> torch.Tensor:
    """The textbook answer: joint i turns about z_i through p_i, so column i is z_i × (p - p_i)."""
    base = torch.eye(4)
    frames = torch.stack(list(accumulate(links(q).unbind(), torch.matmul, initial=base)))
    z, p = frames[:, :3, 2], frames[:, :3, 3]
    return torch.linalg.cross(z[:-1], p[-1] - p[:-1]).T


def medians(*calls: Callable[[], object], rounds: int = 500) -> list[float]:
    """Median microseconds of each call; the calls take turns, so that noise falls on all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, samples in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            samples.append(1e6 * (time.perf_counter() - start))
    return [statistics.median(samples) for samples in times]


def main() -> None:
    """Compute, check, time."""
    q = torch.deg2rad(torch.tensor([-30.0, -100.0, 110.0, -100.0, -90.0, 15.0]))
    position, jacobian = torchjac.jac(tool_position, return_value=True)(q)
    mode = choose_mode(num_inputs=q.numel(), num_outputs=position.numel())
    print(f"tool position (m):\n{position}\n")
    print(f"its Jacobian (m/rad), {tuple(jacobian.shape)}, by {mode} mode:\n{jacobian}\n")

    expected = geometric_jacobian(q)
    torch.testing.assert_close(jacobian, expected)
    print(f"largest difference from z_i × (p - p_i): {(jacobian - expected).abs().max():.1e}")

    ours, peer = medians(
        lambda: torchjac.jac(tool_position)(q),
        lambda: torch.func.jacrev(tool_position)(q),
    )
    print(f"torchjac.jac {ours:.0f} µs, torch.func.jacrev {peer:.0f} µs: ratio {ours / peer:.2f}")


if __name__ == "__main__":
    main()
