"""The question that torchjac began with, by its own numbers: one call for all rows gave their sum."""

import torch

import torchjac

EXPECTED = torch.tensor([[2.0, 0.0], [0.0, 2.0], [8.0, 0.0], [0.0, 16.0]])


def rows(x: torch.Tensor) -> torch.Tensor:
    """Four outputs of two inputs; their rows sum to [10, 18]."""
    return torch.cat([x**2, 4 * x**2]) * torch.tensor([1.0, 1.0, 1.0, 2.0])


def test_the_mistake() -> None:
    x = torch.ones(2, requires_grad=True)
    (summed,) = torch.autograd.grad(rows(x), x, torch.ones(4))
    assert summed.tolist() == [10, 18]


def test_jac_gives_the_rows() -> None:
    for mode in ("auto", "forward", "reverse"):
        for chunk_size in ("auto", None, 1, 2, 3):
            got = torchjac.jac(rows, mode=mode, chunk_size=chunk_size)(torch.ones(2))
            torch.testing.assert_close(got, EXPECTED)


def test_jac_of_gives_the_rows() -> None:
    x = torch.ones(2, requires_grad=True)
    torch.testing.assert_close(torchjac.jac_of(rows(x), x), EXPECTED)
