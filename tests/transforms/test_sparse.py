"""`sparsity=` and `layout=`: the same numbers as the dense transform, from a few passes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import torchjac
from tests.sparse import DETECTS, arrow, band, point, rosenbrock, tridiagonal
from torchjac import SparsityPattern
from torchjac.errors import (
    ArgumentTypeError,
    DerivativeMismatchWarning,
    OptionError,
    OptionTypeError,
    PatternError,
    SparsityMismatchError,
    TorchjacFallbackWarning,
    UnsupportedError,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
SPARSITIES = [*["detect"] * DETECTS, band(6)]


# --- the same as dense ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("chunk_size", ["auto", None, 1, 2])
def test_modes_chunks_and_layouts_agree(layout: torch.layout, mode: Any, chunk_size: Any) -> None:
    x = point(9)
    expected = torchjac.jac(tridiagonal)(x)
    for sparsity in (
        *["detect"] * DETECTS,
        band(9),
        SparsityPattern.from_dense(band(9)),
        band(9).numpy(),
    ):
        sparse = torchjac.jac(
            tridiagonal, mode=mode, chunk_size=chunk_size, sparsity=sparsity, layout=layout
        )
        got = sparse(x)
        assert got.layout is layout
        torch.testing.assert_close(got.to_dense(), expected, **CLOSE)


@pytest.mark.parametrize(
    "mode", ["auto", "forward-over-reverse", "reverse-over-reverse", "reverse-over-forward"]
)
@pytest.mark.parametrize("chunk_size", ["auto", 1, 2])
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo, torch.sparse_csr])
def test_hessians_agree(mode: Any, chunk_size: Any, layout: torch.layout) -> None:
    x = point(8)
    expected = torch.func.hessian(rosenbrock)(x)
    for sparsity in (*["detect"] * DETECTS, band(8)):
        got = torchjac.hessian(
            rosenbrock, mode=mode, chunk_size=chunk_size, sparsity=sparsity, layout=layout
        )(x)
        torch.testing.assert_close(got.to_dense(), expected, **CLOSE)


# --- composition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_under_vmap(sparsity: Any, mode: Any) -> None:
    xs = torch.randn(4, 6, dtype=torch.float64)
    got = torch.func.vmap(torchjac.jac(tridiagonal, mode=mode, sparsity=sparsity))(xs)
    torch.testing.assert_close(got, torch.func.vmap(torch.func.jacrev(tridiagonal))(xs), **CLOSE)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo, torch.sparse_csr])
def test_the_result_is_differentiable(sparsity: Any, mode: Any, layout: torch.layout) -> None:
    if layout is torch.sparse_csr and not DETECTS:
        pytest.skip("before torch 2.1 CSR tensors carry no graph")

    def loss(jacobian: Tensor) -> Tensor:
        return (jacobian.to_dense() ** 3).sum()

    x = point(6).requires_grad_()
    sparse = torchjac.jac(tridiagonal, mode=mode, sparsity=sparsity, layout=layout)
    (got,) = torch.autograd.grad(loss(sparse(x)), x)
    (expected,) = torch.autograd.grad(loss(torch.func.jacrev(tridiagonal)(x)), x)
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_under_grad_and_jac(sparsity: Any) -> None:
    x, sparse = point(6), torchjac.jac(tridiagonal, sparsity=sparsity)
    dense = torch.func.jacrev(tridiagonal)
    got = torch.func.grad(lambda x: sparse(x).square().sum())(x)
    torch.testing.assert_close(got, torch.func.grad(lambda x: dense(x).square().sum())(x), **CLOSE)
    torch.testing.assert_close(torchjac.jac(sparse)(x), torch.func.jacrev(dense)(x), **CLOSE)


# --- refused by name -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("chunk_size", ["auto", 1])
def test_a_pattern_that_lacks_entries(mode: Any, chunk_size: Any) -> None:
    pattern = band(8)
    pattern[3, 4] = False
    sparse = torchjac.jac(tridiagonal, mode=mode, chunk_size=chunk_size, sparsity=pattern)
    with pytest.raises(SparsityMismatchError, match=r"outside the pattern \(8×8\).*columns \[.*4"):
        sparse(point(8))
    with pytest.raises(SparsityMismatchError):  # at every call, not only at the first
        sparse(point(8))


def test_a_hessian_pattern_that_lacks_entries() -> None:
    with pytest.raises(SparsityMismatchError, match=r"hessian\(sparsity=\.\.\.\)"):
        torchjac.hessian(rosenbrock, sparsity=torch.eye(6, dtype=torch.bool))(point(6))


@example(3, 3)
@given(st.integers(2, 7), st.data())
def test_no_missing_entry_goes_unnoticed(n: int, data: Any) -> None:
    rows, cols = band(n).nonzero().T.tolist()
    k = data if isinstance(data, int) else data.draw(st.integers(0, len(rows) - 1))
    pattern = band(n)
    pattern[rows[k], cols[k]] = False
    with pytest.raises(SparsityMismatchError):
        torchjac.jac(tridiagonal, sparsity=pattern)(point(n) + 2)


def test_a_wrong_rule_is_not_blamed_on_the_pattern() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * ctx.saved_tensors[0].cos()

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return tangent * 7

    x = point(4)
    with pytest.warns(DerivativeMismatchWarning):
        got = torchjac.jac(Wrong.apply, mode="forward", sparsity=torch.eye(4, dtype=torch.bool))(x)
    torch.testing.assert_close(got, x.cos().diag())


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (
            {"sparsity": "auto"},
            OptionError,
            "(sparsity='auto'): expected None, 'detect', a SparsityPattern",
        ),
        (
            {"sparsity": torch.ones(3, 3)},
            OptionTypeError,
            "Tensor of torch.float32 and shape (3, 3)",
        ),
        ({"sparsity": torch.ones(3, dtype=torch.bool)}, OptionTypeError, "and shape (3,)"),
        ({"sparsity": 5}, OptionTypeError, "expected None, 'detect', a SparsityPattern"),
        ({"layout": torch.sparse_coo}, OptionError, "needs to know where the nonzeros are"),
        ({"layout": torch.sparse_bsr}, OptionError, "expected one of torch.strided"),
    ],
)
@pytest.mark.parametrize("transform", [torchjac.jac, torchjac.hessian])
def test_bad_options(transform: Any, options: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind) as caught:
        transform(tridiagonal, **options)
    assert text in str(caught.value)


def test_a_pattern_of_another_shape() -> None:
    for mode in ("auto", "forward", "reverse"):
        with pytest.raises(PatternError, match="the pattern is 7×7, but the derivative has 6 rows"):
            torchjac.jac(tridiagonal, mode=mode, sparsity=band(7))(point(6))


def test_a_hessian_pattern_that_is_not_symmetric() -> None:
    pattern = band(6)
    pattern[0, 1] = False
    with pytest.raises(PatternError, match="symmetric"):
        torchjac.hessian(rosenbrock, sparsity=pattern)(point(6))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_what_is_handed_out_may_be_written_into(layout: torch.layout) -> None:
    x, sparse = point(6), torchjac.jac(tridiagonal, sparsity=band(6), layout=layout)
    expected = sparse(x).to_dense()
    result = sparse(x)
    if layout is torch.sparse_coo:
        result.indices().zero_()
    else:
        result.crow_indices().zero_()
        result.col_indices().zero_()
    result.values().zero_()
    torch.testing.assert_close(sparse(x).to_dense(), expected)


def test_sparse_layouts_are_refused_within_vmap() -> None:
    sparse = torchjac.jac(tridiagonal, sparsity=band(6), layout=torch.sparse_coo)
    with pytest.raises(UnsupportedError, match=r"Use layout=torch\.strided"):
        torch.func.vmap(sparse)(point(6)[None])


def test_a_boolean_matrix_may_be_sparse() -> None:
    x = point(6)
    got = torchjac.jac(tridiagonal, sparsity=band(6).to_sparse())(x)
    torch.testing.assert_close(got, torchjac.jac(tridiagonal)(x))


def test_a_number_that_makes_a_given_pattern_wrong() -> None:
    pattern = SparsityPattern.from_dense(torch.eye(6).roll(1, 0) + torch.eye(6))
    for shift in (1, 2):
        sparse = torchjac.jac(lambda x, by=shift: x.roll(by) * x, sparsity=pattern)
        if shift == 1:
            assert sparse(point(6) + 3).count_nonzero() == 12
        else:
            with pytest.raises(SparsityMismatchError):
                sparse(point(6) + 3)


def test_products_of_two_draws_are_not_mixed() -> None:
    generator = torch.Generator().manual_seed(0)

    def func(x: Tensor) -> Tensor:
        return arrow(x) * (1 + torch.rand(len(x), generator=generator).double())

    pattern = torch.eye(30, dtype=torch.bool)
    pattern[0] = pattern[:, 0] = True
    with pytest.warns(TorchjacFallbackWarning, match="other values"):
        torchjac.jac(func, sparsity=pattern, check="never")(point(30))


def test_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    pattern, x = SparsityPattern.from_dense(band(6)), point(6)
    sparse = torchjac.jac(lambda x: x.roll(1) * x, sparsity=pattern | pattern.T)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert torchjac.jac(torch.sin, sparsity=pattern)(fake).shape == (6, 6)
    with pytest.raises(ArgumentTypeError, match="outside of its FakeTensorMode"):
        sparse(fake)


def test_equal_patterns_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes the pattern anew for every transform has one transform for all."""
    compared = 0
    equal = np.array_equal

    def counting(*args: Any) -> bool:
        nonlocal compared
        compared += 1
        return equal(*args)

    x, func = torch.linspace(1, 2, 12, dtype=torch.float64), lambda x: x * x.flip(0)
    transforms = []
    for _ in range(3):
        pattern = torchjac.SparsityPattern.from_dense(torch.eye(12) + torch.eye(12).flip(0))
        transforms.append(torchjac.jac(func, sparsity=pattern))
        transforms[-1](x)
    monkeypatch.setattr(np, "array_equal", counting)
    for derivative in transforms * 2:
        derivative(x)
    assert compared == 0
