"""Integrate the 2-D Brusselator with SciPy's BDF method and a sparse Jacobian.

    python examples/brusselator.py [N] [picture.png]

Two chemicals react and diffuse on a periodic N×N grid (Hairer & Wanner, *Solving Ordinary Differential
Equations II*, section IV.10). An implicit method needs the Jacobian of 2N² equations by 2N² unknowns,
with 6 nonzeros in a row. SciPy has it three ways: by dense finite differences, by finite differences
grouped with a pattern, and exactly from torchjac, which finds the pattern by itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import torchjac

ALPHA, A, B = 0.1, 3.4, 1.0
END = 1.0


def brusselator(size: int) -> Callable[[Tensor], Tensor]:
    """The right-hand side on a ``size``×``size`` grid, of both fields in one vector."""
    diffusion = ALPHA * size**2

    def laplacian(field: Tensor) -> Tensor:
        neighbours = field.roll(1, 0) + field.roll(-1, 0) + field.roll(1, 1) + field.roll(-1, 1)
        return diffusion * (neighbours - 4 * field)

    def rate(state: Tensor) -> Tensor:
        u, v = state.view(2, size, size)
        reaction = u * u * v
        du = B + reaction - (A + 1) * u + laplacian(u)
        dv = A * u - reaction + laplacian(v)
        return torch.stack([du, dv]).reshape(-1)

    return rate


def start(size: int) -> Tensor:
    """Smooth initial fields."""
    at = torch.arange(size, dtype=torch.float64) / size
    y, x = torch.meshgrid(at, at, indexing="ij")
    u, v = 22 * y * (1 - y) ** 1.5, 27 * x * (1 - x) ** 1.5
    return torch.stack([u, v]).reshape(-1)


def integrate(
    rate: Callable[[Tensor], Tensor], state: Tensor, **how: Any
) -> tuple[Any, int, float]:
    """The solution, how often SciPy evaluated the rate (its own count omits differences), and the time."""
    evaluations = 0

    def right_hand_side(_: float, y: np.ndarray) -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        return rate(torch.from_numpy(y)).numpy()

    began = time.perf_counter()
    solution = solve_ivp(
        right_hand_side, (0.0, END), state.numpy(), method="BDF", rtol=1e-5, atol=1e-7, **how
    )
    return solution, evaluations, time.perf_counter() - began


def main(size: int = 32, picture: str | None = None) -> None:
    """Compare the three ways, and draw the pattern in the colours of its columns."""
    rate, state = brusselator(size), start(size)
    pattern = torchjac.jac_sparsity(rate)(state)
    coloring = torchjac.color(pattern, by="columns")
    print(pattern)
    print(
        f"{coloring.num_colors} colours, so {coloring.num_colors} passes instead of {len(state)}\n"
    )

    jacobian = torchjac.jac(rate, sparsity="detect", layout=torch.sparse_csr)

    def exact(_: float, y: np.ndarray) -> scipy.sparse.csc_matrix:
        J = jacobian(torch.from_numpy(y))
        parts = (J.values().numpy(), J.col_indices().numpy(), J.crow_indices().numpy())
        return scipy.sparse.csr_matrix(parts, shape=J.shape).tocsc()

    ways: dict[str, dict[str, Any]] = {
        "torchjac, sparse": {"jac": exact},
        "SciPy's differences, with the pattern": {"jac_sparsity": pattern.to_scipy()},
    }
    if size <= 32:  # beyond, the dense Jacobian alone takes minutes
        ways["SciPy's differences, dense"] = {}
    final = None
    print(f"{'Jacobian from':<40}{'steps':>6}{'Jacobians':>11}{'evaluations':>13}{'seconds':>9}")
    for name, how in ways.items():
        solution, evaluations, seconds = integrate(rate, state, **how)
        steps = len(solution.t) - 1
        print(f"{name:<40}{steps:6}{solution.njev:11}{evaluations:13}{seconds:9.2f}")
        final = solution.y[:, -1] if final is None else final
        assert np.allclose(solution.y[:, -1], final, rtol=1e-2, atol=1e-3), name

    if picture is not None:
        draw(size, picture)


def draw(size: int, picture: str) -> None:
    """Save a picture of the pattern of a small grid, each entry in the colour of its column."""
    import matplotlib.pyplot as plt

    size = min(size, 6)
    pattern = torchjac.jac_sparsity(brusselator(size))(start(size))
    coloring = torchjac.color(pattern, by="columns")
    # No background and grey letters, for light pages and for dark ones.
    grey = dict.fromkeys(["text.color", "axes.edgecolor", "xtick.color", "ytick.color"], "0.5")
    with plt.rc_context(grey):
        axes = pattern.spy(colors=coloring)
        axes.collections[0].set(cmap="tab10", clim=(-0.5, 9.5))
        axes.set_title(f"Brusselator, {size}×{size} grid: {coloring.num_colors} colours")
        plt.savefig(picture, dpi=120, bbox_inches="tight", transparent=True)
        plt.close()


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]), *sys.argv[2:3])
