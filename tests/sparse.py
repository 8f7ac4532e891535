"""Sparse functions that several tests share."""

import torch
from torch import Tensor

DETECTS = hasattr(torch, "compiler")
"""Whether this PyTorch, 2.1 or later, has what detection needs."""


def tridiagonal(x: Tensor) -> Tensor:
    """Row i depends on x[i - 1], x[i] and x[i + 1]."""
    padded = torch.nn.functional.pad(x, (1, 1))
    return padded[:-2] * x + x.sin() + padded[2:] ** 2


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def arrow(x: Tensor) -> Tensor:
    """A dense first row, a dense first column, and a diagonal."""
    return torch.cat([x.square().sum()[None], x[1:].sin() * x[0]])


def point(n: int) -> Tensor:
    return torch.linspace(-1, 1.5, n, dtype=torch.float64)


def band(n: int, width: int = 1) -> Tensor:
    at = torch.arange(n)
    return (at[:, None] - at).abs() <= width
