"""Make a classifier know what it does not know: the Laplace approximation of its last layer.

    python examples/last_layer_laplace.py [STEPS]

A trained classifier is as sure far from its data as close to them. Around the trained parameters the
posterior is nearly a Gaussian whose precision is the generalised Gauss-Newton matrix (GGN) plus that of the
prior,

    P = Σ Jᵀ Λ J + δ,    J = ∂logits/∂parameters,    Λ = diag(p) - p pᵀ

over the samples, and the logits at a new point have the covariance J P⁻¹ Jᵀ (Daxberger et al., *Laplace
redux*, 2021). For the last layer alone that is enough to lower the confidence far away (Kristiadi et al.,
*Being Bayesian, even just a bit, fixes overconfidence in ReLU networks*, 2020). `batched_jac(network,
argnums="params")` gives J for every sample by the parameters that require grad; the GGN is checked against
the `hessian` of the loss, which it equals where the logits are linear in the parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.nn.utils import parameters_to_vector

import torchjac

CLASSES, PER_CLASS, WIDTH, PRIOR = 3, 60, 32, 0.3


def blobs() -> tuple[Tensor, Tensor]:
    """Points of three classes in the plane, about three centres on a circle of radius 2."""
    labels = torch.arange(CLASSES).repeat(PER_CLASS)
    angle = 2 * torch.pi * labels / CLASSES
    centres = 2 * torch.stack([angle.cos(), angle.sin()], dim=-1).double()
    return centres + 0.5 * torch.randn(len(labels), 2, dtype=torch.float64), labels


def train(points: Tensor, labels: Tensor, steps: int) -> torch.nn.Sequential:
    """A classifier, fit by maximum a posteriori; only its last layer requires grad afterwards."""
    network = torch.nn.Sequential(
        torch.nn.Linear(2, WIDTH),
        torch.nn.ReLU(),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.ReLU(),
        torch.nn.Linear(WIDTH, CLASSES),
    ).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        prior = sum(parameter.square().sum() for parameter in network.parameters())
        loss = cross_entropy(network(points), labels, reduction="sum") + 0.5 * PRIOR * prior
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network[:-1].requires_grad_(False)
    return network


def parameter_jacobian(network: torch.nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Points (B, 2) to logits (B, C) and their Jacobians (B, C, P) by all parameters in a row."""
    both = torchjac.batched_jac(network, argnums="params", return_value=True)

    def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits, jacobians = both(points)
        # {name: (B, C, *parameter)} -> (B, C, P)
        return logits, torch.cat([leaf.flatten(2) for leaf in jacobians.values()], dim=-1)

    return evaluate


def softmax_curvature(logits: Tensor) -> Tensor:
    """The Hessian of the cross entropy by the logits, (B, C) to (B, C, C)."""
    p = logits.softmax(-1)
    return p.diag_embed() - p[:, :, None] * p[:, None, :]


def gauss_newton(logits: Tensor, J: Tensor) -> Tensor:
    """The GGN (P, P): the sum of Jᵀ Λ J over the samples."""
    return torch.einsum("bcp,bcd,bdq->pq", J, softmax_curvature(logits), J)


def loss_hessian(network: torch.nn.Sequential, points: Tensor, labels: Tensor) -> Tensor:
    """The Hessian (P, P) of the loss by the last layer's parameters, from the loss itself."""
    features, last = network[:-1](points), network[-1]

    def loss(flat: Tensor) -> Tensor:
        weight, bias = flat[:-CLASSES].view(CLASSES, -1), flat[-CLASSES:]
        return cross_entropy(linear(features, weight, bias), labels, reduction="sum")

    return torchjac.hessian(loss)(parameters_to_vector(last.parameters()).detach())


def ring(radius: float, count: int = 60) -> Tensor:
    """Points (count, 2) at one distance from the origin."""
    angle = 2 * torch.pi * torch.arange(count, dtype=torch.float64) / count
    return radius * torch.stack([angle.cos(), angle.sin()], dim=-1)


def confidence(logits: Tensor) -> float:
    """The mean over points of the largest probability; logits (..., B, C), averaged over samples."""
    return float(logits.softmax(-1).flatten(0, -3).mean(0).max(-1).values.mean())


def main(steps: int = 500) -> None:
    """Train, approximate, and walk away from the data."""
    torch.manual_seed(0)
    points, labels = blobs()
    network = train(points, labels, steps)
    evaluate = parameter_jacobian(network)
    logits, J = evaluate(points)
    ggn = gauss_newton(logits, J)
    difference = float((ggn - loss_hessian(network, points, labels)).abs().max())
    right = float((logits.argmax(-1) == labels).double().mean())
    print(f"{right:.0%} of {len(points)} points classified rightly")
    print(f"GGN {tuple(ggn.shape)}, off by {difference:.0e} from the Hessian of the loss\n")
    assert right > 0.95, right
    assert difference < 1e-10, difference

    covariance = torch.linalg.inv(ggn + PRIOR * torch.eye(len(ggn), dtype=ggn.dtype))
    noise = torch.randn(1000, 1, 1, CLASSES, dtype=torch.float64)
    print(f"{'':<16}{'logits':>10}{'confidence of':>16}{'':>14}")
    print(f"{'where':<16}{'± std':>10}{'the classifier':>16}{'with Laplace':>14}")
    spreads, plain, aware = [], [], []
    places = {"at the data": points} | {f"at radius {r}": ring(r) for r in (4, 8, 16, 32, 64)}
    for where, at in places.items():
        logits, J = evaluate(at)
        spread = J @ covariance @ J.mT  # (B, C, P) (P, P) (B, P, C) -> (B, C, C)
        # (S, 1, 1, C) (B, C, C) -> (S, B, 1, C) -> (S, B, C)
        samples = logits + (noise @ torch.linalg.cholesky(spread).mT).squeeze(-2)
        spreads.append(float(spread.diagonal(dim1=1, dim2=2).mean().sqrt()))
        plain.append(confidence(logits[None]))
        aware.append(confidence(samples))
        print(f"{where:<16}{spreads[-1]:10.1f}{plain[-1]:16.4f}{aware[-1]:14.4f}")
    assert spreads == sorted(spreads), "the variance grows away from the data"
    assert plain[-1] > 0.95 > 0.9 > aware[-1], (plain, aware)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
