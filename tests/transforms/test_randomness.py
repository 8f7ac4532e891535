"""One draw per call, from the caller's random state, whatever the mode or the chunking."""

from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac

X = torch.rand(6, dtype=torch.float64) + 0.5


def noisy(x: Tensor) -> Tensor:
    return torch.nn.functional.dropout(x, 0.5, True) + torch.rand_like(x) * x**2


def plain(x: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the derivative (it is diagonal) by plain autograd, and where the state then is."""
    leaf = x.clone().requires_grad_()
    value = noisy(leaf)
    value.sum().backward()
    return leaf.grad, torch.rand(1)


@pytest.mark.parametrize("chunk_size", ["auto", None, 1, 4])
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_same_draw_and_same_state_afterwards(mode: str, chunk_size: Any) -> None:
    torch.manual_seed(3)
    expected, state = plain(X)
    for _ in range(2):  # the first call looks and checks as well
        torch.manual_seed(3)
        got = torchjac.jac(noisy, mode=mode, chunk_size=chunk_size)(X)
        torch.testing.assert_close(got, torch.diag(expected))
        assert torch.rand(1) == state


@pytest.mark.parametrize(
    "mode", ["auto", "forward-over-reverse", "reverse-over-reverse", "reverse-over-forward"]
)
@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_hessian_draws_once(mode: str, chunk_size: Any) -> None:
    def scalar(x: Tensor) -> Tensor:
        return (torch.nn.functional.dropout(x, 0.5, True) ** 3).sum()

    torch.manual_seed(3)
    mask = torch.nn.functional.dropout(torch.ones_like(X), 0.5, True)
    for _ in range(2):
        torch.manual_seed(3)
        got = torchjac.hessian(scalar, mode=mode, chunk_size=chunk_size)(X)
        torch.testing.assert_close(got, torch.diag(6 * mask**3 * X))


def test_batched_jac_follows_the_randomness_option() -> None:
    x = torch.ones(64, 3, dtype=torch.float64)
    with pytest.raises(torchjac.errors.OptionError, match="randomness='different'"):
        torchjac.batched_jac(noisy)(x)
    same = torchjac.batched_jac(noisy, randomness="same")(x)
    assert (same == same[0]).all()
    different = torchjac.batched_jac(noisy, randomness="different")(x)
    assert not (different == different[0]).all()


def test_a_generator_that_cannot_be_set_back_mixes_no_chunks() -> None:
    generator = torch.Generator()

    def func(x: Tensor) -> Tensor:
        return x.sum() * torch.rand(200, generator=generator, dtype=torch.float64)

    with pytest.raises(torchjac.errors.UnsupportedError, match="other values"):
        torchjac.jac(func, mode="forward", chunk_size=1)(torch.ones(3).double())
    with pytest.warns(torchjac.errors.TorchjacFallbackWarning, match="other values"):
        got = torchjac.jac(func, chunk_size=1)(torch.ones(1, 2).double())
    assert (got == got[:, :1, :1]).all()
