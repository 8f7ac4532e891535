"""Undo a blur and a saturating sensor by Gauss-Newton, with LSQR or LSMR on a Jacobian that is never held.

    python examples/gauss_newton.py [N]

A sensor sees tanh(blur(image)) on an N×N grid, with noise. The image is found by regularised least squares:
the residuals are what the sensor would see less what it saw, and a little of the image's slopes. Each step
of Gauss-Newton solves min |J·s + r| by an iterative method of SciPy, which needs products with J and Jᵀ. The
Jacobian of some 3N² residuals by N² unknowns has up to 81 entries in a row; the operator evaluates the
residuals once a step and multiplies by way of the convolution itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import lsmr, lsqr
from torch import Tensor
from torch.nn.functional import conv2d

import torchjac

BLUR, NOISE, SMOOTHNESS = 1.5, 1e-3, 1e-2


def scene(size: int) -> Tensor:
    """A bright disc and a dim bar."""
    at = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(at, at, indexing="ij")
    disc = ((x + 0.3) ** 2 + (y + 0.2) ** 2 < 0.15).double()
    bar = ((x - 0.5).abs() < 0.15).double() * (y.abs() < 0.7).double()
    return 1.5 * disc + 0.6 * bar


def sensor(image: Tensor) -> Tensor:
    """What is seen of an image (N, N)."""
    reach = int(3 * BLUR)
    profile = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=image.dtype) / BLUR) ** 2)
    kernel = torch.outer(profile, profile) / profile.sum() ** 2
    return torch.tanh(conv2d(image[None, None], kernel[None, None], padding="same")[0, 0])


class Residuals:
    """The residuals (3N² - 2N,) of an image (N²,), counting their evaluations."""

    def __init__(self, seen: Tensor) -> None:
        self.seen, self.evaluations = seen, 0

    def __call__(self, flat: Tensor) -> Tensor:
        self.evaluations += 1
        image = flat.view(self.seen.shape)
        slopes = [SMOOTHNESS * image.diff(dim=dim).reshape(-1) for dim in (0, 1)]
        return torch.cat([(sensor(image) - self.seen).reshape(-1), *slopes])


Solver = Callable[[Any, np.ndarray], tuple[np.ndarray, int]]


def by_lsqr(J: Any, b: np.ndarray) -> tuple[np.ndarray, int]:
    """The least-squares solution, and the number of iterations."""
    x, _, iterations, *_ = lsqr(J, b, atol=1e-10, btol=1e-10)
    return x, iterations


def by_lsmr(J: Any, b: np.ndarray) -> tuple[np.ndarray, int]:
    """Likewise; LSMR makes the norm of Jᵀ·residual fall, which is what tells when to stop."""
    x, _, iterations, *_ = lsmr(J, b, atol=1e-10, btol=1e-10)
    return x, iterations


def gauss_newton(residuals: Residuals, x: Tensor, solve: Solver) -> tuple[Tensor, list[float], int]:
    """The solution from ``x`` on, the norms of the gradient on the way, and iterations of the solver."""
    gradients: list[float] = []
    iterations = 0
    for _ in range(20):
        jacobian = torchjac.jac_operator(residuals)(x)
        gradients.append(float((jacobian.T @ jacobian.value).norm()))
        if gradients[-1] < 1e-8 * gradients[0]:
            break
        change, count = solve(jacobian.to_scipy(), -jacobian.value.numpy())
        iterations += count
        x = x + torch.from_numpy(change)
    return x, gradients, iterations


def main(size: int = 48) -> None:
    """Solve with both, and compare."""
    torch.manual_seed(0)
    image = scene(size)
    seen = sensor(image)
    seen = seen + NOISE * torch.randn_like(seen)

    def error(found: Tensor) -> float:
        return float((found.view_as(image) - image).norm() / image.norm())

    print(f"{size}×{size} pixels; what is seen is off by {error(seen):.3f} of the image\n")
    print(
        f"{'solver':<8}{'steps':>6}{'iterations':>12}{'evaluations':>13}{'|gradient| fell to':>20}"
        f"{'off by':>8}{'seconds':>9}"
    )
    for name, solve in {"LSQR": by_lsqr, "LSMR": by_lsmr}.items():
        residuals, began = Residuals(seen), time.perf_counter()
        x, gradients, iterations = gauss_newton(residuals, seen.new_zeros(size**2), solve)
        seconds = time.perf_counter() - began
        print(
            f"{name:<8}{len(gradients) - 1:6}{iterations:12}{residuals.evaluations:13}"
            f"{gradients[-1] / gradients[0]:20.1e}{error(x):8.3f}{seconds:9.2f}"
        )
        assert gradients[-1] < 1e-8 * gradients[0], name
        assert error(x) < 0.6 * error(seen), name
        assert residuals.evaluations == len(gradients), "products evaluate nothing"


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
