"""Dtypes, sizes of zero and one, and mixtures of them."""

import pytest
import torch
from torch import Tensor

import torchjac

MODES = ["auto", "forward", "reverse"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_every_floating_dtype(mode: str, dtype: torch.dtype) -> None:
    x = torch.tensor([0.5, 1.0, 2.0], dtype=dtype)
    got = torchjac.jac(lambda x: x**3, mode=mode)(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, torch.diag(3 * x**2))


@pytest.mark.parametrize("mode", MODES)
def test_dtype_is_the_inputs_whatever_the_mode(mode: str) -> None:
    x = torch.tensor([0.5, 1.0], dtype=torch.float32)
    got = torchjac.jac(lambda x: x.double() ** 2, mode=mode)(x)
    assert got.dtype == torch.float32
    inputs = (x, x.double())
    first, second = torchjac.jac(lambda x, y: x * y, (0, 1), mode=mode)(*inputs)
    assert (first.dtype, second.dtype) == (torch.float32, torch.float64)
    assert torchjac.jac(lambda x: x * 0.5, mode=mode)(torch.tensor(2.0)).dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0), (1, 1)])
def test_small_shapes(shape: tuple[int, ...], mode: str) -> None:
    x = torch.full(shape, 0.7, dtype=torch.float64)
    got = torchjac.jac(torch.sin, mode=mode)(x)
    assert got.shape == shape + shape
    torch.testing.assert_close(
        got.reshape(x.numel(), -1 if x.numel() else 0), torch.diag(x.cos().reshape(-1))
    )


@pytest.mark.parametrize("mode", MODES)
def test_hundreds_of_leaves_across_chunks(mode: str) -> None:
    tree = {str(i): torch.full((1 + i % 3,), float(i), dtype=torch.float64) for i in range(40)}

    def func(tree: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: leaf**2 for name, leaf in tree.items() if int(name) % 2}

    got = torchjac.jac(func, mode=mode, chunk_size=7)(tree)
    for out, row in got.items():
        for name, block in row.items():
            expected = torch.diag(2 * tree[out]) if out == name else torch.zeros_like(block)
            torch.testing.assert_close(block, expected)
