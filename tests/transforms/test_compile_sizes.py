"""Compiled transforms of inputs whose sizes vary."""

from typing import Any

import pytest
import torch
from torch import nn

import torchjac
from tests.sparse import DETECTS

NEW = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DETECTS and NEW), reason="needs the compiler of torch 2.13"),
]


@pytest.mark.parametrize("transform", [torchjac.jac, torchjac.hessian])
def test_open_sizes(transform: Any) -> None:
    def func(x: torch.Tensor) -> torch.Tensor:
        return x.sin() * x.sum()

    compiled = torch.compile(transform(func), fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.linspace(0, 1, 4)
    torch.testing.assert_close(compiled(x), transform(func)(x))


def test_batches_with_open_sizes() -> None:
    net = nn.Linear(3, 2)
    transform = torchjac.batched_jac(net, per_sample=False)
    compiled = torch.compile(transform, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.ones(5, 3)
    torch.testing.assert_close(compiled(x), transform(x))
