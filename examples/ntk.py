"""The empirical neural tangent kernel: a wide network is a kernel machine.

    python examples/ntk.py [WIDTH]

The kernel of two inputs is the product of the network's Jacobians by its parameters, K(x, y) = J(x) J(y)ᵀ
(Jacot et al., *Neural tangent kernel*, 2018). `batched_jac(network, argnums="params")` gives the Jacobians of
all inputs at once; the kernel alone, without them, is a `gram` of `jac_operator`. Three things are shown:
the kernel is symmetric and positive definite; to fit the network's linearisation by its parameters is to
regress with the kernel; and the wider the network, the closer it comes, trained in earnest, to that
regression (Lee et al., *Wide neural networks of any depth evolve as linear models under gradient descent*,
2019).
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor
from torch.nn.functional import normalize

import torchjac

SAMPLES, TESTS, DIMENSIONS = 32, 200, 10


class Network(torch.nn.Module):
    """Two layers; the weights are of order one and scaled where they are used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = torch.nn.Parameter(torch.randn(width, DIMENSIONS).double())
        self.outer = torch.nn.Parameter(torch.randn(width).double())

    def forward(self, x: Tensor) -> Tensor:
        """A number for one input ``(D,)``, or for each of many ``(B, D)``."""
        return (x @ self.inner.T).tanh() @ self.outer / math.sqrt(len(self.outer))


def jacobians(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """The values (B,) at inputs (B, D), and their Jacobians (B, P) by all parameters in a row."""
    values, trees = torchjac.batched_jac(network, argnums="params", return_value=True)(x)
    return values, torch.cat([leaf.flatten(1) for leaf in trees.values()], dim=1)


def check_kernel(network: Network, x: Tensor, kernel: Tensor) -> Tensor:
    """The eigenvalues of the kernel, which have to be positive."""
    operator = torchjac.jac_operator(network, argnums="params")(x)
    torch.testing.assert_close(operator.gram("outputs"), kernel)
    torch.testing.assert_close(kernel, kernel.T)
    eigenvalues = torch.linalg.eigvalsh(kernel)
    assert eigenvalues[0] > 0, eigenvalues
    return eigenvalues


def train(network: Network, x: Tensor, y: Tensor, rate: float, steps: int = 1000) -> None:
    """Plain gradient descent on half of the sum of squares."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (network(x) - y).square().sum()).backward()
        optimizer.step()


def main(width: int = 4096) -> None:
    """Compare kernel, linearisation and network for four widths up to ``width``."""
    torch.manual_seed(0)
    inputs = normalize(torch.randn(SAMPLES + TESTS, DIMENSIONS).double(), dim=-1)
    x, new = inputs[:SAMPLES], inputs[SAMPLES:]
    y = 2 * x[:, 0] * x[:, 1] + x[:, 2]

    print(
        f"{SAMPLES} samples, {TESTS} new points; differences from the kernel's predictions there (rms)\n"
    )
    print(
        f"{'width':>6}{'parameters':>12}{'eigenvalues of K':>20}{'linearisation':>15}{'network':>10}"
    )
    distances = []
    for size in (width // 64, width // 16, width // 4, width):
        network = Network(size)
        with torch.no_grad():
            f, J = jacobians(network, x)
            f_new, J_new = jacobians(network, new)
            kernel = J @ J.T
            smallest, largest = check_kernel(network, x, kernel)[[0, -1]].tolist()

            by_kernel = f_new + J_new @ J.T @ torch.linalg.solve(kernel, y - f)
            change = torch.linalg.lstsq(J, y - f, driver="gelsd").solution
            by_linearisation = f_new + J_new @ change
        train(network, x, y, rate=1 / largest)
        by_network = network(new).detach()

        off = [
            float((by - by_kernel).square().mean().sqrt()) for by in (by_linearisation, by_network)
        ]
        print(
            f"{size:6}{J.shape[1]:12}{f'{smallest:.3f} to {largest:.3f}':>20}{off[0]:15.0e}{off[1]:10.4f}"
        )
        assert off[0] < 1e-10, off
        distances.append(off[1])
    assert distances[-1] < distances[0] / 4, distances


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
