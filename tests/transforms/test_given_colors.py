"""`sparsity=` given as a `Coloring`: its colours are the seeds."""

from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

import torchjac
from tests.sparse import DETECTS, band, point, tridiagonal
from tests.structure.patterns import patterns
from torchjac import Coloring, SparsityPattern, color
from torchjac.errors import OptionError, PatternError, SparsityMismatchError

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
LAYOUTS = [torch.strided, torch.sparse_coo, torch.sparse_csr]
N = 40
# An irregular graph: 120 pairs of 40 points.
ENDS = torch.randint(N, (2, 120), generator=torch.Generator().manual_seed(0))


def coupled(x: Tensor) -> Tensor:
    return torch.cos(x[ENDS[0]] * x[ENDS[1]]).sum()


def pattern_of_coupled() -> SparsityPattern:
    dense = torch.zeros(N, N, dtype=torch.bool)
    dense[ENDS[0], ENDS[1]] = True
    dense |= dense.T.clone()
    dense.fill_diagonal_(True)
    return SparsityPattern.from_dense(dense)


FEW = color(pattern_of_coupled(), "symmetric", max_terms=4)
DIRECT = color(pattern_of_coupled(), "symmetric")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk_size", ["auto", 1, 3])
def test_a_hessian_of_few_colours(layout: torch.layout, chunk_size: Any) -> None:
    x = point(N)
    assert FEW.num_colors <= 0.75 * DIRECT.num_colors
    derivative = torchjac.hessian(coupled, sparsity=FEW, layout=layout, chunk_size=chunk_size)
    for _ in range(2):  # the first call is checked
        got = derivative(x)
        assert got.layout is layout
        torch.testing.assert_close(got.to_dense(), torch.func.hessian(coupled)(x), **CLOSE)
        assert got.to_dense().equal(got.to_dense().T)


def test_it_takes_a_pass_for_each_colour() -> None:
    x = point(N)
    for coloring in (FEW, DIRECT):
        plan = torchjac.hessian(coupled, sparsity=coloring).plan(x)
        assert plan.passes == coloring.num_colors
        assert plan.coloring == coloring
        torch.testing.assert_close(plan(x), torch.func.hessian(coupled)(x), **CLOSE)
    if DETECTS:  # a plan that is not traced has no colours to speak of
        printed = str(torchjac.hessian(coupled, sparsity=FEW).plan(x))
        assert f"{FEW.num_colors} acyclic colours" in printed


def test_under_vmap_and_grad() -> None:
    derivative = torchjac.hessian(coupled, sparsity=FEW)
    expected = torch.func.hessian(coupled)
    xs = torch.stack([point(N), point(N).flip(0), point(N) - 1])
    torch.testing.assert_close(torch.func.vmap(derivative)(xs), torch.func.vmap(expected)(xs))
    got, want = (
        torch.func.grad(lambda x, h=h: h(x).square().sum())(xs[0]) for h in (derivative, expected)
    )
    torch.testing.assert_close(got, want)
    leaf = xs[0].clone().requires_grad_()
    derivative(leaf).square().sum().backward()
    torch.testing.assert_close(leaf.grad, want)


def test_blocks_of_several_arguments() -> None:
    def func(a: Tensor, b: Tensor) -> Tensor:
        return coupled(torch.cat([a.reshape(-1), b]))

    a, b = point(N)[:24].reshape(4, 6), point(N)[24:]
    got = torchjac.hessian(func, (0, 1), sparsity=FEW)(a, b)
    expected = torch.func.hessian(func, (0, 1))(a, b)
    torch.testing.assert_close(got, expected, **CLOSE)


def test_small_entries_beside_large_ones_lose_digits_and_only_if_that_was_allowed() -> None:
    """What the documentation says of several terms."""
    weights = torch.linspace(0.1, 0.2, ENDS.shape[1], dtype=torch.float64)
    weights[::2] *= 1e12

    def func(x: Tensor) -> Tensor:
        return (weights * x[ENDS[0]] * x[ENDS[1]]).sum()

    x = point(N)
    expected = torch.func.hessian(func)(x)
    direct = torchjac.hessian(func, sparsity=DIRECT)(x)
    torch.testing.assert_close(direct, expected, rtol=1e-14, atol=0.0)
    allowed = torchjac.hessian(func, sparsity=FEW)(x)
    torch.testing.assert_close(allowed, expected, rtol=0.0, atol=1e12 * 1e-15)
    assert not torch.allclose(allowed, expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize(
    ("by", "mode"), [("columns", "forward"), ("rows", "reverse"), ("bidirectional", "both")]
)
def test_the_colours_of_a_jacobian_say_the_mode(by: Any, mode: str) -> None:
    x = point(9)
    # More colours than are needed, to see that they are the ones used.
    columns, rows = {
        "columns": (range(9), None),
        "rows": (None, range(9)),
        "bidirectional": ([0, *[-1] * 8], [0, *range(1, 9)]),
    }[by]
    coloring = Coloring(SparsityPattern.from_dense(band(9)), by, columns, rows)
    transform = torchjac.jac(tridiagonal, sparsity=coloring, layout=torch.sparse_csr)
    for _ in range(2):
        got = transform(x)
        torch.testing.assert_close(got.to_dense(), torchjac.jac(tridiagonal)(x), **CLOSE)
    plan = transform.plan(x)
    assert (plan.passes, plan.coloring) == (coloring.num_colors, coloring)
    if mode != "both":
        assert plan.mode == mode


@pytest.mark.parametrize("by", ["rows", "columns", "bidirectional"])
@given(pattern=patterns(largest=7), layout=st.sampled_from(LAYOUTS))
@example(pattern=SparsityPattern.from_dense(torch.ones(1, 6)), layout=torch.strided)
@example(pattern=SparsityPattern.from_dense(torch.ones(6, 1)), layout=torch.strided)
@example(pattern=SparsityPattern.from_dense(torch.zeros(3, 4)), layout=torch.sparse_csr)
def test_colours_of_any_pattern(by: Any, pattern: SparsityPattern, layout: torch.layout) -> None:
    m, n = pattern.shape
    assume(m and n)
    matrix = pattern.to_dense() * torch.arange(1.0, 1 + m * n).double().reshape(m, n)
    coloring = color(pattern, by)
    derivative = torchjac.jac(lambda x: matrix @ x, sparsity=coloring, layout=layout)
    torch.testing.assert_close(derivative(point(n)).to_dense(), matrix, **CLOSE)


def test_a_wrong_pattern_is_refused_with_colours_as_without() -> None:
    lacking = band(9)
    lacking[3, 4] = False
    coloring = color(SparsityPattern.from_dense(lacking), "columns")
    with pytest.raises(SparsityMismatchError):
        torchjac.jac(tridiagonal, sparsity=coloring)(point(9))


def test_wrong_colours_are_refused_by_name() -> None:
    wrong = Coloring(SparsityPattern.from_dense(band(9)), "columns", [0] * 9)
    with pytest.raises(PatternError, match=r"jac\(sparsity=.*entry \(0, 0\) cannot be told from"):
        torchjac.jac(tridiagonal, sparsity=wrong)(point(9))
    pair = Coloring(FEW.pattern, "symmetric", FEW.colors, max_terms=2)
    with pytest.raises(PatternError, match=r"hessian\(sparsity=.*cannot be put together from 2"):
        torchjac.hessian(coupled, sparsity=pair)(point(N))


@pytest.mark.parametrize(
    ("transform", "by", "mode", "text"),
    [
        (torchjac.jac, "symmetric", "auto", "are those of a Hessian"),
        (torchjac.jac, "rows", "forward", "the colours are seeds of mode='reverse'"),
        (torchjac.jac, "columns", "reverse", "the colours are seeds of mode='forward'"),
        (torchjac.jac, "bidirectional", "reverse", "the colours are seeds of mode='auto'"),
        (torchjac.hessian, "rows", "auto", "the colours of a Hessian are by='symmetric'"),
    ],
)
def test_colours_that_do_not_belong_there(transform: Any, by: Any, mode: Any, text: str) -> None:
    coloring = color(SparsityPattern.from_dense(band(9)), by)
    with pytest.raises(OptionError, match=text):
        transform(tridiagonal, mode=mode, sparsity=coloring)
