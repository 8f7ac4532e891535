"""What the tests of safe plans share: points, what a plan says of itself, and what it has to equal."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.sparse import DETECTS

MARKS = [
    pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    # Of PyTorch 2.4 and 2.14 about their own parts: checkpoints, and the compiler.
    pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]

X = torch.tensor([0.3, -0.8, 1.2, 0.5], dtype=torch.float64)
Y = torch.tensor([-0.4, 0.9, 0.2, -1.5], dtype=torch.float64)
MATRIX = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
BY_SIZES = "by sizes alone: "


def reason(plan: Any) -> str:
    """The chosen way and why, as it is printed."""
    return str(plan).split("chosen\n  ")[1].splitlines()[0]


def single_passes(func: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The Jacobian by plain autograd, which shares no code with a plan."""
    x = x.clone().requires_grad_()
    y = func(x * 1)
    rows = [
        torch.autograd.grad(entry, x, retain_graph=True, materialize_grads=True)[0]
        for entry in y.reshape(-1)
    ]
    return torch.stack(rows).reshape(*y.shape, *x.shape)


class ThroughNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx, g):
        return g * torch.from_numpy(np.cos(ctx.saved_tensors[0].detach().numpy()))


def rows(x: Tensor) -> Tensor:
    return torch.stack([x, 2 * x, x**2])
