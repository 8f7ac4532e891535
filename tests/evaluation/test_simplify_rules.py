"""Each rule by which graphs are simplified, by itself: fewer operations, equal results."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.evaluation.graphs import TRACES, X, assert_same, ops, results, simplified, traced

aten = torch.ops.aten

pytestmark = [
    pytest.mark.skipif(not TRACES, reason="needs torch 2.4"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(6).view(3, 2).view(2, 3).sin(),
        lambda x: x.T.T.sin(),
        lambda x: x.unsqueeze(0).squeeze(0).sin(),
        lambda x: x.detach().clone().contiguous().sin(),
        lambda x: (-(-(x * 1 + 0) / 1)).sin().pow(1),
        lambda x: x.expand(2, 3)[:, :].sin(),
        lambda x: x.unsqueeze(1).sum(1).sin(),
        lambda x: (x + torch.zeros(3, dtype=torch.float64)).sin(),
        lambda x: (torch.zeros(3) + x).sin() * torch.ones(2, 1),
        lambda x: x.pow(0) * x.sin() + torch.zeros_like(x) * x.exp(),
        lambda x: x.sin() + x @ torch.zeros(3, 3, dtype=torch.float64),
        lambda x: torch.addmm(x.sin(), torch.zeros(2, 4).double(), torch.ones(4, 3).double()),
        lambda x: x.sin() + aten.tanh_backward(torch.zeros_like(x), x.cos()),
        lambda x: x.sin() + torch.where(x > 2, torch.zeros_like(x), 0.0),
        lambda x: torch.eye(2, dtype=torch.float64) @ x.sin(),
    ],
)
def test_nothing_is_done_for_nothing(function: Any) -> None:
    smaller = assert_same(lambda x: [function(x)], X)
    assert ops(smaller) in (["sin"], ["view", "sin", "view"])


def test_zeros_keep_shapes_and_dtypes() -> None:
    half, zero = torch.randn(3).half(), torch.zeros(2, 1, dtype=torch.float64)

    def function(x: Tensor) -> list[Tensor]:
        return [x + zero.new_zeros(2, 1), x * zero.new_zeros(2, 1), zero.new_zeros(2, 3) - x]

    for got, expected in zip(
        results(assert_same(function, half), half), function(half), strict=True
    ):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)


def test_a_zero_of_the_structure_is_exact() -> None:
    smaller = simplified(traced(lambda x: [x * torch.zeros_like(x)], X))
    assert results(smaller, X / 0)[0].eq(0).all()


Y = torch.randn(2, 3, dtype=torch.float64)
W = torch.randn(6, 4, dtype=torch.float64)


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: eye(6) @ W,
        lambda y: (eye(6) * y.view(6)) @ W,
        lambda y: W.T @ (eye(6) * y.view(6)),
        lambda y: aten.tanh_backward(eye(6).view(6, 2, 3), y).view(6, 6) @ W,
        lambda y: (eye(6).view(6, 1, 6) * y.view(1, 6)).view(6, 6) @ W,
        # Samples on the left of the core.
        lambda y: eye(3).view(3, 1, 3).expand(3, 2, 3).reshape(6, 3) @ W[:3],
        lambda y: (eye(3).view(3, 1, 3).expand(3, 2, 3) * y).reshape(6, 3) @ W[:3],
        # What is summed over is on the right of it.
        lambda y: ((eye(2)[:, :, None] * y).reshape(4, 3) @ W[:3]).view(2, 2, 4).sum(1),
        lambda y: (eye(2)[:, :, None] * y).sum((1, 2)),
        lambda y: (eye(2)[:, :, None] * y).sum(2).sum(1),
        lambda y: (eye(6).view(6, 2, 3) * y).permute(0, 1, 2).sum((1, 2)),
        lambda y: torch.bmm(eye(3).view(3, 1, 3).expand(3, 2, 3) * y, W[:3].expand(3, 3, 4)),
        lambda y: (eye(6) * y.view(6)).mv(W[:, 0]),
        lambda y: (eye(6) + eye(6) * y.view(6)).mT @ W,
        lambda y: torch.where(y.view(6) > 0, eye(6), 0.0) @ W,
        # Parts of the seeds.
        lambda y: eye(6)[:, 2:5] @ W[:3],
        lambda y: (eye(6).view(6, 2, 3)[:, 1] * y[0]) @ W[:3],
        lambda y: (eye(6).view(6, 2, 3).unbind(2)[0] * y[:, 0]).sum(1),
        lambda y: eye(6)[:, 3, None] * y[0],
        lambda y: (eye(6)[:, :3] * y[0] + eye(6)[:, 3:] * y[1]) @ W[:3],
        lambda y: (eye(6)[:, :3] - eye(6)[:, 3:] * y[1]) @ W[:3],
        lambda y: ((eye(6) * y.view(6))[1:4] + 1)[0],
        lambda y: (eye(6)[:4] * y.view(6)) @ W,
        lambda y: torch.slice_scatter(torch.zeros(8, 6).double(), eye(6) * y.view(6), 0, 1, 7) @ W,
        # In groups.
        lambda y: torch.slice_scatter(torch.zeros(5, 3).double(), y, 0, 1, 3).T.sum(0),
        lambda y: (
            (W[:3].T @ torch.slice_scatter(torch.zeros(5, 3).double(), y, 0, 1, 3).T).T * W[0]
        ),
        lambda y: torch.slice_scatter(torch.zeros(5, 3).double(), y, 0, 1, 3)[2:, 1:] * W[:3, :2],
        lambda y: torch.slice_scatter(torch.zeros(5, 3).double(), y, 0, 3, 5)[:2] + y,
        lambda y: torch.slice_scatter(torch.zeros(2, 3).double(), y[:, :1], 1, 1, 2) * y,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 1, 3).view(2, 6) @ W,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 2, 4).view(2, 6) @ W,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 2, 4).split(2, 1)[1] * 2,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 1, 3).sum(0) - y,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 1, 3).exp(),
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 0, 2).mT.reshape(3, 2, 2),
        # As they are.
        lambda y: eye(6) * y.view(6),
        lambda y: eye(3).view(3, 1, 3).expand(3, 2, 3) * y,
        lambda y: eye(6)[:, 1:4] * y[0],
        lambda y: (eye(2)[:, :, None] * y) / 3.0,
        lambda y: (eye(6) * y.view(6)).exp(),
        lambda y: eye(6) * W[:, :1],
        lambda y: eye(6).float() * 2,
        lambda y: torch.eye(6, 4, dtype=torch.float64) * W,
        lambda y: torch.eye(4, 6, dtype=torch.float64) * W.T,
        lambda y: torch.eye(1, dtype=torch.float64) * y,
        lambda y: torch.eye(0, dtype=torch.float64) @ W[:0],
    ],
)
def test_diagonals(function: Any) -> None:
    assert_same(lambda y: [function(y)], Y)


def test_nothing_leaves_the_diagonal() -> None:
    smaller = simplified(traced(lambda y: [eye(2)[:, :, None].expand(2, 2, 3) * y], Y))
    got = results(smaller, Y / 0)[0]
    assert got[0, 1].eq(0).all()
    assert got[0, 0].isinf().all()
