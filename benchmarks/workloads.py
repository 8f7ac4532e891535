"""What is raced: every workload, declared once.

A workload is a function that builds ``(func, args)``, under the decorator `workload`. The Jacobian
(or Hessian) by the first argument is what is timed. Sizes are read off by running it, so nothing
else has to be written down. Modules keep parameters that require grad, as people have them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Func = Callable[..., Tensor]
Problem = tuple[Func, tuple[Any, ...]]
Kind = Literal["jac", "hessian", "batched"]


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Args:
        name: What it is called in the table and by ``--only``.
        build: Makes the function and its arguments; called once, right before the race.
        kind: ``"batched"`` functions take one sample as well as a whole batch of them.
        per_sample: Which form of `torchjac.batched_jac` is raced; only for ``"batched"``.
        grad_mode: False races everybody under `torch.no_grad`.
    """

    name: str
    build: Callable[[], Problem]
    kind: Kind = "jac"
    per_sample: bool = True
    grad_mode: bool = True


WORKLOADS: list[Workload] = []


def workload(
    name: str, kind: Kind = "jac", *, per_sample: bool = True, grad_mode: bool = True
) -> Callable[[Callable[[], Problem]], Callable[[], Problem]]:
    """Register the decorated function as the problem called ``name``; may be stacked."""

    def register(build: Callable[[], Problem]) -> Callable[[], Problem]:
        WORKLOADS.append(Workload(name, build, kind, per_sample, grad_mode))
        return build

    return register


# --- small functions, called thousands of times a second -----------------------------------------


def serial_arm(a: Sequence[float], d: Sequence[float], alpha: Sequence[float]) -> Func:
    """Return joint angles -> tool position, of the arm with these Denavit-Hartenberg parameters.

    A joint's transform is Rz(q) @ link with a constant link, and Rz(q) = cos q C + sin q S + K. So
    all transforms come from two elementwise products; only the chain itself is sequential.
    """

    def matrix(*rows: Sequence[float]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    def link(a: float, d: float, alpha: float) -> Tensor:
        c, s = math.cos(alpha), math.sin(alpha)
        return matrix([1, 0, 0, a], [0, c, -s, 0], [0, s, c, d], [0, 0, 0, 1])

    links = torch.stack([link(*parameters) for parameters in zip(a, d, alpha, strict=True)])
    cos_part = matrix([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]) @ links
    sin_part = matrix([0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]) @ links
    rest = matrix([0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]) @ links

    def tool_position(q: Tensor) -> Tensor:
        angles = q[:, None, None]
        transforms = angles.cos() * cos_part + angles.sin() * sin_part + rest
        return functools.reduce(torch.matmul, transforms.unbind())[:3, 3]

    return tool_position


@workload("UR5 arm, no_grad", grad_mode=False)
@workload("UR5 arm")
def ur5_arm() -> Problem:
    quarter = math.pi / 2
    arm = serial_arm(
        a=[0, -0.425, -0.39225, 0, 0, 0],
        d=[0.089159, 0, 0, 0.10915, 0.09465, 0.0823],
        alpha=[quarter, 0, 0, quarter, -quarter, 0],
    )
    return arm, (torch.randn(6, dtype=torch.float64),)


@workload("7-joint arm, no_grad", grad_mode=False)
@workload("7-joint arm")
def seven_joint_arm() -> Problem:
    """The anthropomorphic seven-joint layout: spherical shoulder, elbow, spherical wrist."""
    quarter = math.pi / 2
    arm = serial_arm(
        a=[0] * 7,
        d=[0.36, 0, 0.42, 0, 0.4, 0, 0.126],
        alpha=[-quarter, quarter, quarter, -quarter, -quarter, quarter, 0],
    )
    return arm, (torch.randn(7, dtype=torch.float64),)


@workload("tiny")
def tiny() -> Problem:
    def func(x: Tensor) -> Tensor:
        squares = x.square()
        return torch.cat([squares, 4 * squares])

    return func, (torch.tensor([1.0, 2.0]),)


# --- networks ------------------------------------------------------------------------------------


def tanh_mlp(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths with a tanh between each two."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@workload("MLP square")
def mlp_square() -> Problem:
    return tanh_mlp(256, 256, 256), (torch.randn(256),)


@workload("MLP wide in")
def mlp_wide_in() -> Problem:
    return tanh_mlp(1024, 256, 256, 10), (torch.randn(1024),)


@workload("MLP wide out")
def mlp_wide_out() -> Problem:
    return tanh_mlp(10, 256, 256, 1024), (torch.randn(10),)


@workload("waist autoencoder")
def waist_autoencoder() -> Problem:
    return tanh_mlp(1024, 512, 16, 512, 1024), (torch.randn(1024),)


@workload("conv classifier")
def conv_classifier() -> Problem:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(0),
        nn.Linear(32 * 8 * 8, 10),
    )
    return model, (torch.randn(3, 32, 32),)


def conv_same_size(channels: int, side: int) -> Problem:
    """Return an image -> image network and one image; also what the memory measurement uses."""
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.Tanh(), nn.Conv2d(channels, 1, 3, padding=1)
    )
    return model, (torch.randn(1, side, side),)


@workload("conv same size")
def conv_image_to_image() -> Problem:
    return conv_same_size(channels=8, side=24)


@workload("transformer layer")
def transformer_layer() -> Problem:
    layer = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, batch_first=True)
    return layer.eval(), (torch.randn(8, 32),)


@workload("LSTM")
def lstm() -> Problem:
    model = nn.LSTM(16, 32)

    def last_hidden_state(sequence: Tensor) -> Tensor:
        hidden, _ = model(sequence)
        return hidden[-1]

    return last_hidden_state, (torch.randn(10, 16),)


# --- numerics ------------------------------------------------------------------------------------


@workload("elementwise")
def elementwise() -> Problem:
    def func(x: Tensor) -> Tensor:
        return x.sin() * torch.exp(-x.square())

    return func, (torch.randn(1024),)


@workload("linear solve")
def linear_solve() -> Problem:
    n = 64
    matrix = torch.randn(n, n, dtype=torch.float64) + n * torch.eye(n, dtype=torch.float64)
    right_hand_side = torch.randn(n, dtype=torch.float64)

    def func(diagonal: Tensor) -> Tensor:
        return torch.linalg.solve(matrix + diagonal.diag(), right_hand_side)

    return func, (torch.randn(n, dtype=torch.float64),)


def rbf_residuals(num_outputs: int, num_inputs: int) -> Problem:
    """Return the residuals of a least-squares fit by Gaussian bumps, as a function of the fit.

    Each bump has a weight, a 2-D centre and a width; what is left of the parameters is the offset.
    """
    bumps = num_inputs // 4
    points, values = torch.rand(num_outputs, 2), torch.rand(num_outputs)

    def residuals(parameters: Tensor) -> Tensor:
        weight, x, y, log_width = parameters[: 4 * bumps].view(4, bumps)
        squared_distance = (points[:, :1] - x).square() + (points[:, 1:] - y).square()
        basis = torch.exp(-squared_distance * torch.exp(-2 * log_width))
        return basis @ weight + parameters[4 * bumps :].sum() - values

    return residuals, (torch.rand(num_inputs),)


@workload("RBF residuals")
def rbf_fit() -> Problem:
    return rbf_residuals(num_outputs=2000, num_inputs=400)


@workload("very tall")
def very_tall() -> Problem:
    weight = torch.randn(20480, 20)

    def func(x: Tensor) -> Tensor:
        return torch.tanh(weight @ x)

    return func, (torch.randn(20),)


@workload("dot product")
def dot_product() -> Problem:
    def func(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum()

    return func, (torch.randn(8192), torch.randn(8192))


# --- Hessians ------------------------------------------------------------------------------------


@workload("MLP Hessian", "hessian")
def mlp_hessian() -> Problem:
    model = tanh_mlp(256, 256, 256, 1)

    def energy(x: Tensor) -> Tensor:
        return model(x).sum()

    return energy, (torch.randn(256),)


# --- batches of small Jacobians ------------------------------------------------------------------


@workload("batch of 128, per_sample=True", "batched")
@workload("batch of 128, per_sample=False", "batched", per_sample=False)
def small_batch() -> Problem:
    return tanh_mlp(3, 64, 5), (torch.randn(128, 3),)


@workload("batch of 512, per_sample=True", "batched")
@workload("batch of 512, per_sample=False", "batched", per_sample=False)
def large_batch() -> Problem:
    return tanh_mlp(32, 256, 256, 32), (torch.randn(512, 32),)
