"""Find the points on a sphere that repel each other least, with constraints and without.

    python examples/trust_constr.py [POINTS]

Thomson's problem: charges on the unit sphere minimise the sum of 1/distance over all pairs. *trust-constr*
takes the sphere as constraints |p|² = 1, with their sparse Jacobian and the Hessian of v·c(x), and the
Hessian of the energy as an operator; *Newton-CG* has no constraints and is given the energy of the
points divided by their lengths, with products of its Hessian. Both have to reach the known minimum, and are
compared with what SciPy does where it is given gradients alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.optimize import NonlinearConstraint, OptimizeResult, minimize
from torch import Tensor

import torchjac

# D. J. Wales and S. Ulker, "Structure and dynamics of spherical crystals characterized for the Thomson
# problem", Physical Review B 74, 2006; https://www-wales.ch.cam.ac.uk/~wales/CCD/Thomson/table.html
KNOWN = {4: 3.674234614, 6: 9.985281374, 12: 49.165253058, 24: 223.347074052, 32: 412.261274651}


def energy(x: Tensor) -> Tensor:
    """The energy of the points ``x`` (3N,)."""
    points = x.view(-1, 3)
    first, second = torch.triu_indices(len(points), len(points), 1)
    return (1 / (points[first] - points[second]).norm(dim=1)).sum()


def on_sphere(x: Tensor) -> Tensor:
    """The points divided by their lengths."""
    return torch.nn.functional.normalize(x.view(-1, 3), dim=1).reshape(-1)


def energy_on_sphere(x: Tensor) -> Tensor:
    """The energy of the points ``x`` wherever they are on their rays."""
    return energy(on_sphere(x))


def squared_lengths(x: Tensor) -> Tensor:
    """The constraints (N,), which have to be one."""
    return x.view(-1, 3).square().sum(1)


class Gradients:
    """What ``jac=True`` asks for: value and gradient from one evaluation; and how often it was asked."""

    def __init__(self, func: Callable[[Tensor], Tensor]) -> None:
        self.both, self.calls = torchjac.jac(func, return_value=True), 0

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.calls += 1
        value, gradient = self.both(torch.from_numpy(x))
        return float(value), gradient.numpy()


constraint_jac = torchjac.jac(squared_lengths, sparsity="detect", layout=torch.sparse_csr)


def constraint_jacobian(x: np.ndarray) -> scipy.sparse.csr_matrix:
    """The Jacobian of the constraints, three entries in a row."""
    J = constraint_jac(torch.from_numpy(x))
    parts = (J.values().numpy(), J.col_indices().numpy(), J.crow_indices().numpy())
    return scipy.sparse.csr_matrix(parts, shape=J.shape)


def energy_hessian(x: np.ndarray) -> Any:
    """The Hessian of the energy, as products."""
    return torchjac.hessian_operator(energy)(torch.from_numpy(x)).to_scipy()


def constraint_hessian(x: np.ndarray, v: np.ndarray) -> Any:
    """The Hessian of v·c(x), as products."""
    multipliers = torch.from_numpy(v)
    weighted = torchjac.hessian_operator(lambda x, v: v @ squared_lengths(x))
    return weighted(torch.from_numpy(x), multipliers).to_scipy()


def trust_constr(start: np.ndarray, exact: bool) -> tuple[OptimizeResult, Gradients]:
    """With constraints; Hessians exactly, or by SciPy from differences of gradients and Jacobians."""
    gradients = Gradients(energy)
    sphere = NonlinearConstraint(
        lambda x: squared_lengths(torch.from_numpy(x)).numpy(),
        1.0,
        1.0,
        jac=constraint_jacobian,
        hess=constraint_hessian if exact else "2-point",
    )
    found = minimize(
        gradients,
        start,
        method="trust-constr",
        jac=True,
        hess=energy_hessian if exact else "2-point",
        constraints=sphere,
        options={"gtol": 1e-7, "xtol": 1e-12, "maxiter": 500},
    )
    return found, gradients


def newton_cg(start: np.ndarray, exact: bool) -> tuple[OptimizeResult, Gradients]:
    """Without constraints; products exactly, or by SciPy from differences of gradients."""
    gradients = Gradients(energy_on_sphere)

    def product(x: np.ndarray, p: np.ndarray) -> np.ndarray:
        hessian = torchjac.hessian_operator(energy_on_sphere)(torch.from_numpy(x))
        return (hessian @ torch.from_numpy(p)).numpy()

    found = minimize(
        gradients,
        start,
        method="Newton-CG",
        jac=True,
        hessp=product if exact else None,
        options={"xtol": 1e-8, "maxiter": 500},
    )
    return found, gradients


def main(size: int = 32) -> None:
    """Minimise by both methods, with exact second derivatives and without."""
    torch.manual_seed(0)
    start = on_sphere(torch.randn(3 * size, dtype=torch.float64))
    known = KNOWN[size]
    constraint_jacobian(start.numpy())  # finds the pattern, once
    print(f"{size} points; energy at the start {energy(start):.4f}, known minimum {known:.6f}\n")
    print(
        f"{'method':<14}{'Hessian':<13}{'steps':>6}{'gradients':>11}{'above the minimum':>19}"
        f"{'off the sphere':>16}{'seconds':>9}"
    )
    for name, method in {"trust-constr": trust_constr, "Newton-CG": newton_cg}.items():
        for exact in (True, False):
            began = time.perf_counter()
            found, gradients = method(start.numpy(), exact)
            seconds = time.perf_counter() - began
            x = torch.from_numpy(found.x)
            x = x if name == "trust-constr" else on_sphere(x)
            above = float(energy(x)) - known
            off = float((squared_lengths(x) - 1).abs().max())
            print(
                f"{name:<14}{'exact' if exact else 'differences':<13}{found.nit:6}{gradients.calls:11}"
                f"{above:19.1e}{off:16.1e}{seconds:9.2f}"
            )
            assert abs(above) < (1e-8 if exact else 1e-5), (name, exact)
            assert off < 1e-8, (name, exact)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
