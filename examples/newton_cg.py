"""Minimise the Rosenbrock function by Newton's method with products of its Hessian.

    python examples/newton_cg.py [n]

Both methods of SciPy solve for each step by conjugate gradients and so need products H·p alone. The operator
evaluates the function once at a point, whatever number of products are asked for there: *Newton-CG* asks for
them one by one, with the point, and *trust-constr* takes the operator itself.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

import torchjac


class Rosenbrock:
    """The function, its gradient and its Hessian, as SciPy wants them, counting what is asked for."""

    def __init__(self) -> None:
        self.points = self.products = 0
        self._at: np.ndarray | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """What ``jac=True`` asks for, from one evaluation."""
        value, gradient = torchjac.jac(self, return_value=True)(torch.from_numpy(x))
        return float(value), gradient.numpy()

    def hessian(self, x: np.ndarray) -> torchjac.LinearOperator:
        """The operator at ``x``, made where the point is a new one."""
        if self._at is None or not np.array_equal(x, self._at):
            self._at, self.points = x.copy(), self.points + 1
            self._operator = torchjac.hessian_operator(self)(torch.from_numpy(self._at))
        return self._operator

    def product(self, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        """What ``hessp`` asks for."""
        self.products += 1
        return (self.hessian(x) @ torch.from_numpy(p)).numpy()


def newton_cg(start: np.ndarray) -> tuple[OptimizeResult, Rosenbrock]:
    """Newton-CG, which takes products one at a time."""
    func = Rosenbrock()
    options = {"xtol": 1e-10, "maxiter": 1000}
    found = minimize(
        func.value_and_gradient,
        start,
        method="Newton-CG",
        jac=True,
        hessp=func.product,
        options=options,
    )
    return found, func


def trust_constr(start: np.ndarray) -> tuple[OptimizeResult, Rosenbrock]:
    """trust-constr, which takes a LinearOperator for a Hessian."""
    func = Rosenbrock()
    options = {"gtol": 1e-8, "maxiter": 2000}
    found = minimize(
        func.value_and_gradient,
        start,
        method="trust-constr",
        jac=True,
        hess=lambda x: func.hessian(x).to_scipy(),
        options=options,
    )
    return found, func


def main(size: int = 100) -> None:
    """Minimise with both."""
    start = np.linspace(0.5, 1.5, size)
    print(f"{'method':<14}{'steps':>6}{'Hessians':>10}{'|gradient|':>12}{'|x - 1|':>10}")
    for name, method in {"Newton-CG": newton_cg, "trust-constr": trust_constr}.items():
        found, func = method(start)
        error = float(np.abs(found.x - 1).max())
        norm = float(np.linalg.norm(func.value_and_gradient(found.x)[1]))
        print(f"{name:<14}{found.nit:6}{func.points:10}{norm:12.1e}{error:10.1e}")
        if func.products:
            print(
                f"{'':<14}{func.products} products, at {func.points} points: {func.points} evaluations"
            )
        assert error < 1e-5, name


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
