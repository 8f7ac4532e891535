"""Solve a nonlinear PDE by Newton's method, with GMRES on a Jacobian that is never held.

    python examples/newton_krylov.py [N]

The Bratu problem, Δu + λ exp(u) = 0 on the unit square with u = 0 on its border, in finite differences on
an N×N grid (Knoll & Keyes, *Jacobian-free Newton-Krylov methods*, 2004, is a survey of the method). Each step
evaluates the residual once; the products that GMRES asks for are exact and evaluate nothing, where the
usual differences of residuals take one evaluation for each, and half of the digits. So the convergence of
Newton's method stays quadratic down to rounding.
"""

from __future__ import annotations

import sys

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, gmres, splu
from torch import Tensor

import torchjac

LAMBDA = 6.0


class Bratu:
    """The residual on an N×N grid, counting its evaluations."""

    def __init__(self, size: int) -> None:
        self.size, self.evaluations = size, 0

    def __call__(self, u: Tensor) -> Tensor:
        self.evaluations += 1
        padded = torch.nn.functional.pad(u.view(self.size, self.size), (1, 1, 1, 1))
        neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        laplacian = (neighbours - 4 * padded[1:-1, 1:-1]) * (self.size + 1) ** 2
        return laplacian.reshape(-1) + LAMBDA * u.exp()


def laplacian_solver(size: int) -> LinearOperator:
    """The preconditioner: the linear part of the problem, factored once."""
    line = scipy.sparse.diags([1.0, -2.0, 1.0], [-1, 0, 1], shape=(size, size))
    solve = splu((scipy.sparse.kronsum(line, line) * (size + 1) ** 2).tocsc()).solve
    return LinearOperator((size**2, size**2), matvec=solve, dtype=np.float64)


def newton(residual: Bratu, u: Tensor, steps: int = 10) -> tuple[Tensor, list[float]]:
    """Newton's method from ``u``; also the norms of the residual on the way."""
    norms: list[float] = []
    preconditioner = laplacian_solver(residual.size)
    print(f"{'step':>4}{'|residual|':>14}{'products':>10}{'evaluations':>13}")
    for step in range(steps):
        jacobian = torchjac.jac_operator(residual)(u)
        norms.append(float(jacobian.value.norm()))
        products = 0

        def count(_: float) -> None:
            nonlocal products
            products += 1

        if norms[-1] < 1e-10 * norms[0]:
            print(f"{step:4}{norms[-1]:14.2e}")
            break
        change, _ = gmres(
            jacobian.to_scipy(),
            -jacobian.value.numpy(),
            M=preconditioner,
            rtol=1e-10,
            callback=count,
            callback_type="pr_norm",
        )
        print(f"{step:4}{norms[-1]:14.2e}{products:10}{residual.evaluations:13}")
        u = u + torch.from_numpy(change)
    return u, norms


def main(size: int = 48) -> None:
    """Solve, and show how fast it converges."""
    residual = Bratu(size)
    u, norms = newton(residual, torch.zeros(size**2, dtype=torch.float64))
    print(f"\n{size**2} unknowns, largest value {float(u.max()):.6f}")
    # |r[k+1]| ≈ C·|r[k]|², until rounding takes over.
    clear = [norm for norm in norms if norm > 1e-10 * norms[0]]
    orders = [
        np.log(clear[k + 1] / clear[k]) / np.log(clear[k] / clear[k - 1])
        for k in range(1, len(clear) - 1)
    ]
    print("observed order of convergence:", ", ".join(f"{order:.2f}" for order in orders))
    assert norms[-1] < 1e-10 * norms[0], norms
    assert abs(orders[-1] - 2) < 0.2, orders


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
