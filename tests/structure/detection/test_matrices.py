"""Captured sparse matrices: the places of their entries are those of the pattern."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchjac
from tests.structure.patterns import patterns

D = torch.float64
LAYOUTS = {
    "coo": lambda matrix: matrix.to_sparse_coo(),
    "csr": lambda matrix: matrix.to_sparse_csr(),
    "csc": lambda matrix: matrix.to_sparse_csc(),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
    pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta"),
    # PyTorch has no batching rule for products with them.
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
]


def numbers(pattern):
    """A matrix with entries there, whatever they are."""
    m, n = pattern.shape
    return pattern.to_dense() * torch.arange(1.0, 1 + m * n, dtype=D).reshape(m, n).sin()


# Of a matrix: the function, and the pattern of its Jacobian made of booleans.
FUNCTIONS = {
    "vector": (lambda s: lambda x: s @ x, lambda a: a),
    "matrix": (lambda s: lambda x: torch.mm(s, x[:, None])[:, 0], lambda a: a),
    "sparse.mm": (lambda s: lambda x: torch.sparse.mm(s, x[:, None])[:, 0].sin(), lambda a: a),
    "mv": (lambda s: lambda x: torch.mv(s, x) ** 2, lambda a: a),
    "normal equations": (lambda s: lambda x: s.t() @ (s @ x), lambda a: a.mT.int() @ a.int() > 0),
    "copy": (lambda s: lambda x: s.clone().detach() @ x, lambda a: a),
    "addmm": (
        lambda s: lambda x: torch.sparse.addmm(x.new_ones(s.shape[0], 1), s, x[:, None])[:, 0],
        lambda a: a,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
@given(pattern=patterns(largest=6).filter(lambda pattern: 0 not in pattern.shape))
def test_the_pattern_is_that_of_the_matrix(name, layout, pattern):
    function, expected = FUNCTIONS[name]
    func = function(LAYOUTS[layout](numbers(pattern)))
    found = torchjac.jac_sparsity(func)(torch.ones(pattern.shape[1], dtype=D))
    assert found.to_dense().tolist() == expected(pattern.to_dense()).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@given(pattern=patterns(largest=6).filter(lambda pattern: 0 not in pattern.shape))
def test_the_pattern_of_a_hessian(layout, pattern):
    matrix = numbers(pattern)
    sparse = LAYOUTS[layout](matrix)
    x = torch.linspace(1, 2, pattern.shape[1], dtype=D)
    found = torchjac.hessian(lambda x: ((sparse @ x) ** 3).sum(), sparsity="detect")(x)
    dense = torchjac.hessian(lambda x: ((matrix @ x) ** 3).sum())(x)
    torch.testing.assert_close(found, dense)
    detected = torchjac.hessian_sparsity(lambda x: ((sparse @ x) ** 3).sum())(x)
    entries = pattern.to_dense().int()
    assert detected.to_dense().tolist() == (entries.mT @ entries > 0).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_takes_no_memory_for_what_is_zero(layout):
    n = 100_000  # dense, 80 GB
    at = torch.arange(n)
    places = torch.stack([torch.cat([at, at[1:]]), torch.cat([at, at[:-1]])])
    band = torch.sparse_coo_tensor(places, torch.ones(2 * n - 1, dtype=D), (n, n)).coalesce()
    matrix = LAYOUTS[layout](band)
    x = torch.linspace(0, 1, n, dtype=D)
    derivative = torchjac.jac(
        lambda x: (matrix @ x).sin(), sparsity="detect", layout=torch.sparse_coo
    )
    found = derivative(x)
    assert found.indices().equal(band.indices())
    torch.testing.assert_close(found.values(), (band @ x).cos()[band.indices()[0]])


def test_an_explicit_zero_is_an_entry():
    places = torch.tensor([[0, 1], [1, 0]])
    matrix = torch.sparse_coo_tensor(places, torch.tensor([0.0, 2.0], dtype=D), (2, 2))
    found = torchjac.jac_sparsity(lambda x: matrix @ x)(torch.ones(2, dtype=D))
    assert found.to_dense().tolist() == [[False, True], [True, False]]


def test_what_is_computed_from_it_counts_as_dense():
    matrix = torch.eye(3, dtype=D).to_sparse_coo()
    x = torch.linspace(1, 2, 3, dtype=D)
    scaled = lambda x: (2 * matrix) @ x  # noqa: E731
    assert torchjac.jac_sparsity(scaled)(x).nnz == 9
    found = torchjac.jac(scaled, sparsity="detect")(x)
    torch.testing.assert_close(found, 2 * torch.eye(3, dtype=D))


@given(seed=st.integers(0, 99))
def test_another_matrix_is_another_pattern(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(1, 2, 4, dtype=D)
    derivative = torchjac.jac(lambda x, matrix: (matrix @ x).sin(), sparsity="detect")
    kept = []
    for _ in range(3):
        mask = torch.rand(4, 4, generator=generator) < 0.4
        kept.append((mask * torch.rand(4, 4, dtype=D, generator=generator)).to_sparse_coo())
        dense = kept[-1].to_dense()
        expected = (dense @ x).cos()[:, None] * dense
        torch.testing.assert_close(derivative(x, kept[-1]), expected)


def test_a_captured_matrix_that_is_another_one_now():
    x = torch.linspace(1, 2, 4, dtype=D)
    matrix = torch.eye(4, dtype=D).to_sparse_coo()
    derivative = torchjac.jac(lambda x: matrix @ x, sparsity="detect", check="never")
    torch.testing.assert_close(derivative(x), torch.eye(4, dtype=D))
    matrix = torch.eye(4, dtype=D).flip(0).to_sparse_coo()
    torch.testing.assert_close(derivative(x), torch.eye(4, dtype=D).flip(0))
