"""Solve Poisson's equation on the unit square with a physics-informed network.

    python examples/pinn_poisson.py [STEPS]

    Δu = -2π² sin(πx) sin(πy) inside,   u = 0 on the boundary;   exactly u = sin(πx) sin(πy)

The network is multiplied with x(1-x)y(1-y), so that it is zero on the boundary whatever its parameters, and
trained on the square of what the equation lacks at random points. `torchjac.laplacian` gives the Laplacian
at every point by one forward push, and can be differentiated by the parameters like any other loss.
"""

from __future__ import annotations

import math
import sys
import time

import torch
from torch import Tensor
from torch.func import vmap

import torchjac

POINTS = 256


def exact(points: Tensor) -> Tensor:
    """The solution."""
    return torch.sin(math.pi * points).prod(-1)


class Solution(torch.nn.Module):
    """A small network that is zero on the boundary of the square."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.network = torch.nn.Sequential(
            torch.nn.Linear(2, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, 1),
        )

    def forward(self, point: Tensor) -> Tensor:
        """The value at one point ``(2,)``, or at many ``(..., 2)``."""
        sides = point * (1 - point)
        boundary = sides[..., 0] * sides[..., 1]
        return 16 * boundary * self.network(point).squeeze(-1)


def error(solution: Solution, cells: int = 50) -> float:
    """The root mean square of the error on a grid, relative to the solution's own."""
    side = torch.linspace(0, 1, cells)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        wrong = solution(grid) - exact(grid)
    return float(wrong.norm() / exact(grid).norm())


def main(steps: int = 200) -> None:
    """Train, and print how the error falls."""
    torch.manual_seed(0)
    solution = Solution()
    laplacian = vmap(torchjac.laplacian(solution))
    optimizer = torch.optim.Adam(solution.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.perf_counter()
    print(f"{'step':>6}{'loss':>12}{'relative error':>16}")
    for step in range(steps + 1):
        points = torch.rand(POINTS, 2)
        source = -2 * math.pi**2 * exact(points)
        loss = (laplacian(points) - source).square().mean()
        if step % max(steps // 5, 1) == 0:
            print(f"{step:6}{loss.item():12.5f}{error(solution):16.5f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    final = error(solution)
    print(f"\nfinal error {final:.2e}, {time.perf_counter() - began:.0f} seconds")
    assert final < 0.2, final


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
