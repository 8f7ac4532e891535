"""What the checks are tried on: a point, smooth functions, and derivatives by torch.func."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import reject

DOUBLE = torch.float64
X = torch.tensor([0.3, -0.7, 1.1], dtype=DOUBLE)
MATRIX = torch.tensor([[1.0, 2.0, 0.5], [-1.0, 0.3, 0.0], [0.2, 0.9, -0.4]], dtype=DOUBLE)


def mix(x: Any) -> Any:
    return torch.sin(MATRIX @ x)


def energy(x: Any) -> Any:
    return (torch.sin(MATRIX @ x) ** 2).sum() * x[0]


def every_argument(program: Any) -> tuple[int, ...]:
    return tuple(range(len(program.specs)))


def by_torch(transformed: Any, args: Any) -> Any:
    """What torch.func computes; where it fails on empty tensors there is nothing to test."""
    try:
        return transformed(*args)
    except IndexError:
        reject()
