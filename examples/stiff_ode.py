"""Integrate stiff equations with SciPy's BDF and Radau methods and exact Jacobians.

    python examples/stiff_ode.py [CELLS]

Both methods are implicit: every step solves a nonlinear system by Newton's method with a Jacobian, which
SciPy takes from differences unless it is given. Two problems of Hairer & Wanner, *Solving Ordinary
Differential Equations II*, sections IV.1 and IV.10: Robertson's reaction of three substances, whose rates
differ by nine orders of magnitude, and CUSP, a reaction that diffuses round a ring of cells, whose Jacobian
is sparse. The error is that at the end, against a run with a far smaller tolerance.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import torchjac

RTOL = 1e-6


class Problem(NamedTuple):
    """An initial value problem; ``scale`` is the size of each unknown, for tolerances and errors."""

    name: str
    rate: Callable[[Tensor], Tensor]
    start: Tensor
    end: float
    scale: Tensor


def robertson(c: Tensor) -> Tensor:
    """A turns into B slowly, two B into B and C at once, and B and C into A and C."""
    slow, fast, back = 0.04 * c[0], 3e7 * c[1] ** 2, 1e4 * c[1] * c[2]
    return torch.stack([back - slow, slow - fast - back, fast])


def cusp(state: Tensor) -> Tensor:
    """Nerve impulses on a ring: a cusp catastrophe over a van der Pol oscillator, diffusing."""
    y, a, b = state.view(3, -1)
    diffusion = y.numel() ** 2 / 144
    u = (y - 0.7) * (y - 1.3)
    v = u / (u + 0.1)

    def diffuse(field: Tensor) -> Tensor:
        return diffusion * (field.roll(1) - 2 * field + field.roll(-1))

    dy = -1e4 * (y**3 + a * y + b) + diffuse(y)
    da = b + 0.07 * v + diffuse(a)
    db = (1 - a**2) * b - a - 0.4 * y + 0.035 * v + diffuse(b)
    return torch.cat([dy, da, db])


def problems(cells: int) -> list[Problem]:
    """Both, the second with ``cells`` cells, from where it is on the edge of the catastrophe."""
    substances = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    sizes = torch.tensor([1.0, 1e-5, 1.0], dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(1, cells + 1, dtype=torch.float64) / cells
    ring = torch.cat([0 * angle, -2 * angle.cos(), 2 * angle.sin()])
    return [
        Problem("Robertson's reaction", robertson, substances, 1e5, sizes),
        Problem(f"CUSP on {cells} cells", cusp, ring, 1.1, torch.ones_like(ring)),
    ]


def ways(problem: Problem) -> dict[str, dict[str, Any]]:
    """What to tell SciPy about the Jacobian."""
    dense = torchjac.jac(problem.rate)
    sparse = torchjac.jac(problem.rate, sparsity="detect", layout=torch.sparse_csr)

    def as_array(_: float, y: np.ndarray) -> np.ndarray:
        return dense(torch.from_numpy(y)).numpy()

    def as_csc(_: float, y: np.ndarray) -> scipy.sparse.csc_matrix:
        J = sparse(torch.from_numpy(y))
        parts = (J.values().numpy(), J.col_indices().numpy(), J.crow_indices().numpy())
        return scipy.sparse.csr_matrix(parts, shape=J.shape).tocsc()

    found: dict[str, dict[str, Any]] = {"differences": {}, "torchjac": {"jac": as_array}}
    if len(problem.start) > 3:
        pattern = torchjac.jac_sparsity(problem.rate)(problem.start)
        found["differences, pattern"] = {"jac_sparsity": pattern.to_scipy()}
        found["torchjac, sparse"] = {"jac": as_csc}
    return found


def integrate(problem: Problem, method: str, tolerance: float, **how: Any) -> tuple[Any, int]:
    """The solution, and how often the rate was evaluated; SciPy's count omits its differences."""
    evaluations = 0

    def right_hand_side(_: float, y: np.ndarray) -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        return problem.rate(torch.from_numpy(y)).numpy()

    solution = solve_ivp(
        right_hand_side,
        (0.0, problem.end),
        problem.start.numpy(),
        method=method,
        rtol=tolerance,
        atol=tolerance * problem.scale.numpy(),
        **how,
    )
    assert solution.success, solution.message
    return solution, evaluations


def main(cells: int = 64) -> None:
    """Integrate both problems by both methods with every Jacobian."""
    with torch.no_grad():
        for problem in problems(cells):
            compare(problem)


def compare(problem: Problem) -> None:
    """Print a table of one problem."""
    how = ways(problem)
    exact, _ = integrate(problem, "Radau", 1e-3 * RTOL, **how[list(how)[-1]])
    print(f"{problem.name}, {len(problem.start)} equations, to t = {problem.end:g}")
    print(
        f"{'method':<8}{'Jacobian':<22}{'steps':>6}{'Jacobians':>11}{'evaluations':>13}"
        f"{'error':>10}{'seconds':>9}"
    )
    for method in ("BDF", "Radau"):
        counts: dict[str, int] = {}
        for name, options in how.items():
            began = time.perf_counter()
            solution, counts[name] = integrate(problem, method, RTOL, **options)
            seconds = time.perf_counter() - began
            error = np.abs((solution.y - exact.y[:, -1:])[:, -1] / problem.scale.numpy()).max()
            print(
                f"{method:<8}{name:<22}{len(solution.t) - 1:6}{solution.njev:11}{counts[name]:13}"
                f"{error:10.1e}{seconds:9.2f}"
            )
            assert error < 1e3 * RTOL, (problem.name, method, name)
        assert counts["torchjac"] < counts["differences"], problem.name
    print()


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
