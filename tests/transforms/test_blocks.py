"""`jac_blocks`: the rows or columns of the dense Jacobian, and never more than a block of them."""

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import torchjac
from tests.counted import Counted
from torchjac.errors import (
    ArgumentError,
    DerivativeMismatchWarning,
    OptionError,
    OptionTypeError,
    OutputTypeError,
    TorchjacFallbackWarning,
    UnsupportedError,
)
from torchjac.testing import strategies

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]
X = torch.linspace(-1, 1, 6, dtype=torch.float64)
MATRIX = torch.linspace(-1, 2, 24, dtype=torch.float64).reshape(4, 6)


def func(x: Tensor) -> Tensor:
    return (MATRIX @ x).tanh()


def put_together(blocks: Any) -> Tensor:
    """The matrix, every element of it written exactly once."""
    whole = torch.full(blocks.shape, torch.nan, dtype=blocks.dtype)
    written = torch.zeros(blocks.shape)
    by = blocks.by
    for at, block in blocks:
        where = at if by == "rows" else (slice(None), at)
        assert whole[where].shape == block.shape
        whole[where] = block
        written[where] += 1
    assert written.eq(1).all()
    return whole


@given(
    strategies.programs_with_arguments(other_outputs=True),
    st.sampled_from(["rows", "columns", "auto"]),
    st.sampled_from(["auto", None, 1, 2, 3]),
)
def test_blocks_are_the_matrix(case: Any, by: Any, chunk_size: Any) -> None:
    program, args = case
    expected = torchjac.jac_operator(program)(*args).to_dense()
    assume(expected.isfinite().all())
    blocks = torchjac.jac_blocks(program, by=by, chunk_size=chunk_size)(*args)
    assert by in ("auto", blocks.by)
    count = blocks.shape[blocks.by == "columns"]
    if chunk_size != "auto":
        assert len(blocks) == (-(-count // chunk_size) if chunk_size else min(count, 1))
    torch.testing.assert_close(put_together(blocks), expected, rtol=1e-8, atol=1e-9)
    assert len(blocks) == 0


def test_slices_and_attributes() -> None:
    blocks = torchjac.jac_blocks(func, by="rows", chunk_size=3)(X)
    assert repr(blocks) == "Blocks(4×6 by rows, 2 to come, torch.float64, cpu)"
    torch.testing.assert_close(blocks.value, func(X))
    (one, first), (two, second) = blocks
    assert (one, two) == (slice(0, 3), slice(3, 4))
    assert (first.shape, second.shape) == ((3, 6), (1, 6))
    with pytest.raises(StopIteration):
        next(blocks)


@pytest.mark.parametrize(
    ("function", "by"),
    [
        (lambda x: x[:1] * torch.ones(50, dtype=x.dtype), "columns"),
        (lambda x: x.sum(), "rows"),
        (torch.sin, "rows"),
    ],
)
def test_auto_takes_the_fewer_passes(function: Any, by: str) -> None:
    assert torchjac.jac_blocks(function)(X).by == by


def test_evaluates_once_and_makes_each_block_when_it_is_asked_for() -> None:
    counted = Counted(func)
    blocks = torchjac.jac_blocks(counted, by="rows", chunk_size=1)(X)
    assert (counted.evaluations, counted.passes) == (1, 0)
    for count in range(1, 5):
        next(blocks)
        assert (counted.evaluations, counted.passes) == (1, count)


def test_the_graph_is_freed_with_the_iterator() -> None:
    seen = []

    def watched(x: Tensor) -> Tensor:
        y = func(x)
        seen.append(weakref.ref(y))
        return y.sin()

    gc.disable()
    try:
        blocks = torchjac.jac_blocks(watched, chunk_size=1)(X)
        next(blocks)
        del blocks
        assert seen[0]() is None
    finally:
        gc.enable()


def test_grad_mode_is_the_callers_between_the_blocks() -> None:
    x = X.clone().requires_grad_()
    for _, block in torchjac.jac_blocks(func, chunk_size=2)(x):
        assert torch.is_grad_enabled()
        assert not block.requires_grad
        assert (x * 2).requires_grad
    assert x.grad is None


def test_parameters_of_a_module() -> None:
    module = nn.Linear(3, 2)
    blocks = torchjac.jac_blocks(module, "params", chunk_size=3)(torch.ones(3))
    leaves = torchjac.jac(module, "params")(torch.ones(3))
    expected = torch.cat([leaf.reshape(2, -1) for leaf in leaves.values()], 1)
    torch.testing.assert_close(put_together(blocks), expected.detach())


class Sine(torch.autograd.Function):
    """With neither a forward nor a second backward formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        if cotangent.requires_grad:
            raise NotImplementedError("no second derivative")
        (x,) = ctx.saved_tensors
        return cotangent * x.cos()


def test_what_pytorch_refuses_takes_another_way() -> None:
    with pytest.warns(TorchjacFallbackWarning, match="jac_blocks"):
        whole = put_together(torchjac.jac_blocks(Sine.apply, by="columns")(X))
    torch.testing.assert_close(whole, X.cos().diag())


def test_a_wrong_batching_rule_is_noticed_whatever_the_first_block_says() -> None:
    """Four rows that no rule gets wrong, and then those of ``cdist``."""
    z = torch.randn(4, 3, dtype=torch.float64)

    def rows(z: Tensor) -> Tensor:
        return torch.cat([z.sum() * torch.ones(4).to(z), torch.cdist(z, z[:2] + 1).flatten()])

    with pytest.warns(DerivativeMismatchWarning, match="jac_blocks"):
        whole = put_together(torchjac.jac_blocks(rows, by="rows", chunk_size=4)(z))
    expected = torchjac.jac(rows, mode="reverse", chunk_size=1)(z).reshape(12, 12)
    torch.testing.assert_close(whole, expected)


def test_progress_counts_rows(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    put_together(torchjac.jac_blocks(func, by="rows", chunk_size=3, progress=True)(X))
    assert "jac_blocks: 4/4 passes (100%)" in capsys.readouterr().err


def test_bad_input() -> None:
    with pytest.raises(OptionError, match=r"jac_blocks\(by='row'\): expected one of 'rows'"):
        torchjac.jac_blocks(func, by="row")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"jac_blocks\(chunk_size=0\)"):
        torchjac.jac_blocks(func, chunk_size=0)
    with pytest.raises(OptionTypeError, match=r"jac_blocks\(func\)"):
        torchjac.jac_blocks(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"jac_blocks\(argnums=1\)"):
        torchjac.jac_blocks(func, 1)(X)
    with pytest.raises(OutputTypeError, match="jac_blocks"):
        torchjac.jac_blocks(lambda x: 3)(X)
    with pytest.raises(UnsupportedError, match="derivatives would end here"):
        torchjac.jac_blocks(func)(X.clone().requires_grad_() * 1)
    with pytest.raises(UnsupportedError, match="not within vmap"):
        torch.func.vmap(lambda x: next(torchjac.jac_blocks(func)(x))[1])(X.expand(2, 6))
