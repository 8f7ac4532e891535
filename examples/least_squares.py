"""Fit by SciPy's least squares with a dense Jacobian, a sparse one, and one that is never held.

    python examples/least_squares.py [n]

The residuals are those of the chained Rosenbrock function: 10 (x[i+1] - x[i]²) and 1 - x[i], 2(n - 1) of them
in n unknowns. All three Jacobians are exact and lead to the same solution, the last two by the same steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.optimize import least_squares
from torch import Tensor

import torchjac


def residuals(x: Tensor) -> Tensor:
    """The residuals (2(n - 1),) of ``x`` (n,); zero where all of it is one."""
    return torch.cat([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])


def dense(x: np.ndarray) -> np.ndarray:
    """The Jacobian as an array."""
    return torchjac.jac(residuals)(torch.from_numpy(x)).numpy()


sparse_jac = torchjac.jac(residuals, sparsity="detect", layout=torch.sparse_csr)


def sparse(x: np.ndarray) -> scipy.sparse.csr_matrix:
    """The Jacobian as a sparse matrix, from three passes whatever its size."""
    J = sparse_jac(torch.from_numpy(x))
    parts = (J.values().numpy(), J.col_indices().numpy(), J.crow_indices().numpy())
    return scipy.sparse.csr_matrix(parts, shape=J.shape)


def operator(x: np.ndarray) -> Any:
    """The Jacobian as products with it."""
    return torchjac.jac_operator(residuals)(torch.from_numpy(x)).to_scipy()


def main(size: int = 100) -> None:
    """Fit in each way, and compare."""
    start = np.linspace(0.5, 1.5, size)
    ways: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
        "dense": (dense, "exact"),
        "sparse": (sparse, "lsmr"),
        "operator": (operator, "lsmr"),
    }
    print(f"{'Jacobian':<10}{'Jacobians':>11}{'|residuals|':>13}{'|x - 1|':>10}{'seconds':>9}")
    for name, (jacobian, solver) in ways.items():
        began = time.perf_counter()
        found = least_squares(
            lambda x: residuals(torch.from_numpy(x)).numpy(),
            start,
            jac=jacobian,
            tr_solver=solver,
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
        )
        seconds = time.perf_counter() - began
        error = float(np.abs(found.x - 1).max())
        norm = float(np.linalg.norm(found.fun))
        print(f"{name:<10}{found.njev:11}{norm:13.1e}{error:10.1e}{seconds:9.2f}")
        assert error < 1e-6, name


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
