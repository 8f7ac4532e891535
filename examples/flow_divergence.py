"""A step of a continuous normalising flow: the divergence exactly, and from random probes.

    python examples/flow_divergence.py [DIMENSIONS]

A flow dx/dt = f(x) carries a density along; its logarithm falls by the divergence of f (Chen et al., *Neural
Ordinary Differential Equations*, 2018). Exactly that takes a product with J for every dimension.
Hutchinson's estimator takes a few whatever the dimension (Grathwohl et al., *FFJORD*, 2019), at the price of
noise, which ``return_error=True`` measures; Hutch++ spends a third of them on finding where J is large.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

import torchjac

BATCH, STEP = 64, 0.1


def field(dimensions: int) -> Callable[[Tensor], Tensor]:
    """A small network with a residual connection, from points to velocities."""
    network = torch.nn.Sequential(
        torch.nn.Linear(dimensions, 128), torch.nn.Tanh(), torch.nn.Linear(128, dimensions)
    ).double()
    network.requires_grad_(False)

    def velocity(x: Tensor) -> Tensor:
        return network(x) - 0.5 * x.tanh()

    return velocity


def step(velocity: Callable[[Tensor], Tensor], x: Tensor, **how: Any) -> tuple[Tensor, ...]:
    """One step of Euler's method for points and log-densities; the latter with a standard error."""
    options = {"return_error": True, **how}
    divergence = torchjac.divergence(velocity, **options)
    # With "different", every point has probes of its own.
    change, error = vmap(divergence, randomness="different")(x)
    return x + STEP * velocity(x), -STEP * change, STEP * error


def main(dimensions: int = 64) -> None:
    """Compare the three ways."""
    torch.manual_seed(0)
    velocity, x = field(dimensions), torch.randn(BATCH, dimensions).double()
    _, exact, _ = step(velocity, x)
    print(
        f"{dimensions} dimensions, {BATCH} points: log-density of the first changes by {exact[0]:.4f}\n"
    )
    print(f"{'method':<12}{'products':>9}{'estimate':>11}{'± error':>9}{'rms of all':>12}{'ms':>7}")
    ways: list[dict[str, Any]] = [{"method": "exact"}]
    ways += [
        {"method": method, "num_samples": samples}
        for samples in (6, 24, 96)
        for method in ("hutchinson", "hutch++")
    ]
    for how in ways:
        step(velocity, x, **how)  # what a first call does
        began = time.perf_counter()
        _, change, error = step(velocity, x, **how)
        milliseconds = 1e3 * (time.perf_counter() - began)
        off = float((change - exact).square().mean().sqrt())
        products = how.get("num_samples", dimensions)
        print(
            f"{how['method']:<12}{products:9}{change[0]:11.4f}{error[0]:9.4f}{off:12.4f}{milliseconds:7.1f}"
        )
        inside = ((change - exact).abs() <= 3 * error + 1e-9).double().mean()
        assert how.get("num_samples", 96) < 24 or inside > 0.9, how


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
