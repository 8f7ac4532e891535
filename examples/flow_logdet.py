"""Normalising flows: the log-determinant of any invertible network, checked and trained with.

    python examples/flow_logdet.py [STEPS]

A flow z = f(x) gives points the density p(x) = N(f(x)) |det J(x)| (Rezende & Mohamed, *Variational inference
with normalizing flows*, 2015). Coupling layers are built so that J is triangular and its determinant a
product (Dinh et al., *Density estimation using Real NVP*, 2017). Residual layers x + g(x), with g a
contraction, are invertible too (Behrmann et al., *Invertible residual networks*, 2019), but their
determinant has no closed form. `batched_jac` and `slogdet` know it for both: exactly, differentiably, and in
two passes for two dimensions, whatever the batch. For the coupling flow it is compared with the product; the
residual flow is trained by maximum likelihood on two moons; and both densities are summed over the plane,
which has to give one.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import torchjac

BATCH, WIDTH, LIPSCHITZ = 256, 64, 0.97


class Coupling(torch.nn.Module):
    """Layers that scale and shift one coordinate by functions of the other, in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(1, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 2)
            )
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Points (B, 2) to points (B, 2)."""
        return self.with_logdet(x)[0]

    def with_logdet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Also the logarithm of the determinant, the sum of those of the scales."""
        kept, changed = x.unbind(-1)
        logdet = torch.zeros_like(kept)
        for net in self.nets:
            log_scale, shift = net(kept[:, None]).unbind(-1)
            kept, changed = changed * log_scale.exp() + shift, kept
            logdet = logdet + log_scale
        # After an even number of layers the coordinates are back in their places.
        return torch.stack([kept, changed], dim=-1), logdet


class Contraction(torch.nn.Module):
    """A small network that shrinks distances, whatever its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(2, WIDTH), torch.nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Points (B, 2) to displacements (B, 2)."""
        # The slope of tanh is at most one, and that of a matrix its largest singular value.
        slopes = [torch.linalg.matrix_norm(layer.weight, 2) for layer in (self.inner, self.outer)]
        bound = slopes[0] * slopes[1]
        return self.outer(self.inner(x).tanh()) * (LIPSCHITZ / bound.clamp(min=LIPSCHITZ))


class Residual(torch.nn.Module):
    """Layers x + g(x), each of them invertible because g is a contraction."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Contraction() for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        """Points (B, 2) to points (B, 2)."""
        for block in self.blocks:
            x = x + block(x)
        return x


def log_density(flow: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The logarithm of the density that a flow gives points (B, 2), of shape (B,)."""
    both = torchjac.batched_jac(flow, per_sample=False, return_value=True)

    def evaluate(x: Tensor) -> Tensor:
        z, jacobian = both(x)  # (B, 2) and (B, 2, 2)
        normal = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        return normal + torch.linalg.slogdet(jacobian).logabsdet

    return evaluate


def two_moons(count: int) -> Tensor:
    """Points (count, 2) of two half circles that reach into each other, with noise."""
    angle = math.pi * torch.rand(count, dtype=torch.float64)
    side = torch.where(torch.rand(count) < 0.5, 1.0, -1.0).double()
    x, y = side * (angle.cos() - 0.5), side * (angle.sin() - 0.25)
    return torch.stack([x, y], dim=-1) + 0.1 * torch.randn(count, 2, dtype=torch.float64)


def total_mass(density: Callable[[Tensor], Tensor], reach: float = 8.0, cells: int = 160) -> float:
    """The integral of the density over a square, by the midpoint rule."""
    side = reach * (2 * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells - 1)
    points = torch.cartesian_prod(side, side)
    with torch.no_grad():
        masses = [float(density(part).exp().sum()) for part in points.split(10 * cells)]
    return sum(masses) * (2 * reach / cells) ** 2


def check_coupling() -> None:
    """Compare the determinants of a coupling flow with the products that they are."""
    flow = Coupling().double()
    x = torch.randn(BATCH, 2, dtype=torch.float64)
    with torch.no_grad():
        jacobians = torchjac.batched_jac(flow, per_sample=False)(x)
        ours, closed = torch.linalg.slogdet(jacobians).logabsdet, flow.with_logdet(x)[1]
    print(
        f"coupling flow: log-determinants from {float(closed.min()):.2f} to {float(closed.max()):.2f}, "
        f"off by {float((ours - closed).abs().max()):.0e} from the closed form"
    )
    torch.testing.assert_close(ours, closed)
    mass = total_mass(log_density(flow))
    print(f"its density sums to {mass:.6f} over the plane\n")
    assert abs(mass - 1) < 1e-3, mass


def main(steps: int = 600) -> None:
    """Check a coupling flow, and train a residual one."""
    torch.manual_seed(0)
    check_coupling()
    flow, test = Residual().double(), two_moons(2000)
    density = log_density(flow)
    gaussian = torch.distributions.MultivariateNormal(test.mean(0), test.T.cov())
    best = -float(gaussian.log_prob(test).mean())
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.perf_counter()
    print(f"{'step':>6}{'-log p(test)':>14}{'seconds':>9}")
    for step in range(steps + 1):
        if step % max(steps // 6, 1) == 0:
            with torch.no_grad():
                loss = -float(density(test).mean())
            print(f"{step:6}{loss:14.3f}{time.perf_counter() - began:9.1f}")
        optimizer.zero_grad()
        (-density(two_moons(BATCH)).mean()).backward()
        optimizer.step()
        schedule.step()
    mass = total_mass(density)
    print(f"\nthe best Gaussian: {best:.3f}; the density sums to {mass:.6f}")
    assert loss < best - 0.1, (loss, best)
    assert abs(mass - 1) < 1e-3, mass


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
