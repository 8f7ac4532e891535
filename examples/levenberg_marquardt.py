"""Fit a network by Levenberg-Marquardt, and compare with Adam.

    python examples/levenberg_marquardt.py [STEPS]

For a few hundred parameters and a loss of squares, the method of Levenberg and Marquardt (Hagan & Menhaj,
*Training feedforward networks with the Marquardt algorithm*, 1994) solves

    (JᵀJ + λ) s = -Jᵀr

for a step s, J being the Jacobian of the residuals r by all parameters; λ falls after a step that lowers the
loss and rises after one that does not. `jac_operator(model, argnums="params")` evaluates the network once and
gives JᵀJ by `gram`, block by block, and Jᵀr by one backward pass.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import torchjac

SAMPLES, WIDTH = 256, 16


class Residuals(torch.nn.Module):
    """What a network lacks at the samples; a module, so that its parameters have names."""

    def __init__(self, network: torch.nn.Module, targets: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("targets", targets)

    def forward(self, inputs: Tensor) -> Tensor:
        """The residuals (B,) of inputs (B, 2)."""
        return self.network(inputs).squeeze(-1) - self.targets


def problem() -> tuple[Residuals, Tensor]:
    """A small network and samples of a smooth function of two variables."""
    torch.manual_seed(0)
    inputs = 2 * torch.rand(SAMPLES, 2, dtype=torch.float64) - 1
    x, y = inputs.unbind(-1)
    targets = torch.sin(3 * x) * torch.cos(2 * y) + 0.5 * x * y
    network = torch.nn.Sequential(
        torch.nn.Linear(2, WIDTH),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTH, 1),
    )
    return Residuals(network.double(), targets), inputs


def mean_square(residuals: Residuals, inputs: Tensor) -> float:
    """The loss."""
    with torch.no_grad():
        return float(residuals(inputs).square().mean())


def levenberg_marquardt(residuals: Residuals, inputs: Tensor) -> Iterator[float]:
    """The loss after one step, after two, and so on."""
    parameters = list(residuals.parameters())
    loss, damping = mean_square(residuals, inputs), 1.0
    while True:
        with torch.no_grad():  # nobody differentiates the step
            J = torchjac.jac_operator(residuals, argnums="params")(inputs)
            gram, gradient = J.gram("inputs"), J.T @ J.value
            here = parameters_to_vector(parameters)
        for _ in range(10):
            damped = gram + damping * torch.eye(len(gram), dtype=gram.dtype)
            step = torch.linalg.solve(damped, -gradient)
            vector_to_parameters(here + step, parameters)
            lower = mean_square(residuals, inputs)
            if lower < loss:
                loss, damping = lower, damping / 3
                break
            vector_to_parameters(here, parameters)
            damping = 4 * damping
        yield loss


def adam(residuals: Residuals, inputs: Tensor) -> Iterator[float]:
    """The same with Adam on all samples at once."""
    optimizer = torch.optim.Adam(residuals.parameters(), lr=1e-2)
    while True:
        optimizer.zero_grad()
        residuals(inputs).square().mean().backward()
        optimizer.step()
        yield mean_square(residuals, inputs)


def main(steps: int = 100) -> None:
    """Fit with both from the same start, and give Adam fifty times the steps."""
    losses: dict[str, float] = {}
    count = sum(parameter.numel() for parameter in problem()[0].parameters())
    print(f"{count} parameters, {SAMPLES} residuals\n")
    print(f"{'method':<21}{'steps':>6}{'mean square':>13}{'seconds':>9}")
    for name, method, most in (
        ("Levenberg-Marquardt", levenberg_marquardt, steps),
        ("Adam", adam, 50 * steps),
    ):
        residuals, inputs = problem()
        began = time.perf_counter()
        for step, loss in enumerate(islice(method(residuals, inputs), most), 1):
            if step in (most // 10, 3 * most // 10, most):
                print(f"{name:<21}{step:6}{loss:13.1e}{time.perf_counter() - began:9.2f}")
            losses[name] = loss
    assert losses["Levenberg-Marquardt"] < losses["Adam"] / 10, losses


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
