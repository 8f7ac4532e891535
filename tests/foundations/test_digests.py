"""Sums by which processes tell whether they have the same numbers."""

import pytest
import torch
from torch import Tensor

from torchjac.foundations.digests import digest

LONG = torch.linspace(-1, 1, 200_000)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 0), (2, 3), (70_000,)])
def test_the_same_numbers_agree(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape).mul(3).to(dtype)
    one = digest(tensor)
    assert one.agrees(digest(tensor.clone()))
    assert one.total == pytest.approx(tensor.double().sum().item())


@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("size", [1, 10, 100_000])
@pytest.mark.parametrize("together", [True, False], ids=["together", "each"])
def test_what_differs_by_rounding_agrees(dtype: torch.dtype, size: int, together: bool) -> None:
    """Also where all numbers are off by the same factor."""
    tensor = torch.rand(size, dtype=torch.float64).add(1).to(dtype)
    factor = torch.ones(size, dtype=torch.float64) if together else torch.randn(size).double()
    exact = torch.finfo(dtype).eps
    assert digest(tensor).agrees(digest((tensor * (1 + 2 * exact * factor)).to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("size", [3, 10, 1000, 100_000])
def test_other_masks_do_not(dtype: torch.dtype, size: int) -> None:
    tensor = torch.rand(size).add(1)
    masks = [torch.bernoulli(torch.full((size,), 0.5)) for _ in range(10)]
    digests = [digest((tensor * mask).to(dtype), unit=1.0) for mask in masks]
    for k, (one, mask) in enumerate(zip(digests, masks, strict=True)):
        for other, other_mask in zip(digests[:k], masks, strict=False):
            assert one.agrees(other) == torch.equal(mask, other_mask)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(5), torch.zeros(5)),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        (LONG, LONG.flip(0)),
        (LONG, LONG.roll(2**14)),
        (torch.arange(10), torch.arange(10).index_fill(0, torch.tensor(3), 4)),
        (torch.tensor([0.0, 1.0]), torch.tensor([torch.nan, 1.0])),
        (torch.tensor([torch.inf, 1.0]), torch.tensor([-torch.inf, 1.0])),
        (torch.tensor([torch.nan, torch.inf]), torch.tensor([torch.inf, torch.nan])),
    ],
    ids=["sum", "order", "long order", "stretches", "integers", "nan", "sign", "which is none"],
)
def test_other_numbers_do_not(one: Tensor, other: Tensor) -> None:
    assert not digest(one).agrees(digest(other))
    assert not digest(other).agrees(digest(one))


@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1.7e308])
def test_what_has_no_sum_agrees_with_itself(number: float) -> None:
    tensor = torch.full((100,), number, dtype=torch.float64)
    assert digest(tensor).agrees(digest(tensor.clone()))


def test_terms_that_cancelled() -> None:
    left, other = torch.tensor([3e-8, -1e-8]), torch.tensor([-2e-8, 4e-8])
    assert not digest(left).agrees(digest(other))
    assert digest(left, unit=1.0).agrees(digest(other, unit=1.0))
    assert not digest(left, unit=1.0).agrees(digest(other + 1e-3, unit=1.0))
