import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.structure.patterns import patterns
from torchjac import SparsityPattern
from torchjac.errors import PatternError, TorchjacError
from torchjac.structure.color import color
from torchjac.structure.picture import braille

scipy_sparse = pytest.importorskip("scipy.sparse")


@given(patterns())
def test_the_entries_are_in_row_major_order_each_once(pattern):
    m, n = pattern.shape
    keys = (pattern.rows * n + pattern.cols).tolist()
    assert keys == sorted(set(keys))
    assert pattern.nnz == len(keys) == int(pattern.to_dense().sum())
    assert pattern.rows.dtype == pattern.cols.dtype == torch.int64
    assert pattern.to_dense().shape == (m, n)


@given(patterns(), st.randoms(use_true_random=False))
def test_every_form_leads_back_to_the_pattern(pattern, random):
    assert SparsityPattern.from_dense(pattern.to_dense()) == pattern
    assert SparsityPattern.from_dense(pattern.to_dense().double().numpy()) == pattern
    assert SparsityPattern.from_csr(*pattern.to_csr(), pattern.shape) == pattern
    assert SparsityPattern.from_scipy(pattern.to_scipy()) == pattern
    assert SparsityPattern.from_scipy(pattern.to_scipy().tocsc()) == pattern
    assert pickle.loads(pickle.dumps(pattern)) == pattern
    entries = 2 * list(zip(*(index.tolist() for index in pattern.to_coo()), strict=True))
    random.shuffle(entries)
    rows, cols = [i for i, _ in entries], [j for _, j in entries]
    assert SparsityPattern.from_coo(rows, cols, pattern.shape) == pattern
    assert SparsityPattern(torch.tensor(rows, dtype=torch.int32), cols, pattern.shape) == pattern


@given(patterns())
def test_the_transpose_is_that_of_the_dense_matrix(pattern):
    assert SparsityPattern.from_dense(pattern.to_dense().T) == pattern.T
    assert pattern == pattern.T.T
    assert [a.tolist() for a in pattern.T.csr] == [a.tolist() for a in pattern.csc[:2]]
    m, n = pattern.shape
    assert pattern.is_symmetric == (
        m == n and torch.equal(pattern.to_dense(), pattern.to_dense().T)
    )


@given(patterns(), st.integers(0, 2**16))
def test_set_operations_are_those_of_the_dense_matrices(pattern, seed):
    random = np.random.default_rng(seed)
    dense = torch.from_numpy(random.random(pattern.shape) < 0.4)
    other = SparsityPattern.from_dense(dense)
    assert (pattern | other).to_dense().equal(pattern.to_dense() | dense)
    assert (pattern & other).to_dense().equal(pattern.to_dense() & dense)
    assert (pattern | other).covers(pattern)
    assert pattern.covers(pattern & other)
    assert pattern.covers(other) == bool((pattern.to_dense() | ~dense).all())
    assert (pattern == other) == pattern.to_dense().equal(dense)


@given(patterns())
def test_equal_patterns_have_one_hash(pattern):
    again = SparsityPattern(*pattern.to_coo(), pattern.shape)
    assert hash(again) == hash(pattern)
    assert len({again, pattern}) == 1
    assert pattern != pattern.to_dense


def test_what_is_handed_in_or_out_can_be_changed_freely():
    rows, cols = torch.tensor([0, 1]), np.array([1, 0])
    pattern = SparsityPattern(rows, cols, (2, 2))
    rows[0], cols[0] = 1, 0
    for index in (*pattern.to_coo(), *pattern.to_csr()):
        index.fill_(7)
    assert pattern.to_dense().tolist() == [[False, True], [True, False]]


def test_what_is_computed_with_cannot_be_changed():
    pattern = SparsityPattern([0, 1], [1, 0], (2, 2))
    for index in (
        *pattern.coo,
        *pattern.csr,
        *pattern.csc,
        *pattern.T.coo,
        *(pattern | pattern).coo,
    ):
        with pytest.raises(ValueError, match="read-only"):
            index[0] = 7


def test_an_explicit_zero_of_scipy_is_an_entry():
    matrix = scipy_sparse.coo_matrix(([0.0, 1.0, 2.0], ([0, 1, 1], [1, 0, 0])), shape=(2, 2))
    assert SparsityPattern.from_scipy(matrix).nnz == 2


def test_a_nan_is_no_zero():
    assert SparsityPattern.from_dense([[float("nan"), 0.0]]).nnz == 1


def test_a_pattern_made_inside_a_transform_outlives_it():
    made = []

    def func(x):
        made.append(SparsityPattern.from_dense(np.eye(2)))
        assert color(made[-1]).num_colors == 1
        return x.sum()

    torch.func.grad(func)(torch.ones(2))
    assert made[0].rows.tolist() == [0, 1]


# What it looks like.


def test_repr_is_a_header_and_a_picture():
    assert (
        repr(SparsityPattern.from_dense(torch.eye(4))) == "SparsityPattern(4×4, nnz=4, 25.0%)\n⠑⢄"
    )
    assert repr(SparsityPattern([], [], (0, 3))) == "SparsityPattern(0×3, nnz=0, 0.0%)"


@given(patterns())
def test_a_small_picture_has_a_dot_for_every_entry(pattern):
    dots = sum((ord(c) - 0x2800).bit_count() for c in pattern.picture().replace("\n", ""))
    assert dots == pattern.nnz


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 2**16))
def test_a_picture_is_never_larger_than_forty_by_twenty(m, n, seed):
    random = np.random.default_rng(seed)
    lines = braille(random.integers(0, m, 30), random.integers(0, n, 30), (m, n)).split("\n")
    assert 1 <= len(lines) <= 20
    assert len({len(line) for line in lines}) == 1
    assert 1 <= len(lines[0]) <= 40
    assert set("".join(lines)) - {"⠀"}


def test_spy_draws_on_the_axes_it_is_given():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pattern = SparsityPattern.from_dense(torch.eye(3))
    _, ax = plt.subplots()
    assert pattern.spy(ax) is ax
    coloring = color(pattern | SparsityPattern([0], [2], (3, 3)), by="columns")
    drawn = coloring.pattern.spy(colors=coloring)
    assert drawn.collections[0].get_array().tolist() == coloring.group.tolist()
    with pytest.raises(PatternError, match="another pattern"):
        pattern.spy(ax, colors=coloring)
    plt.close("all")


def test_neither_scipy_nor_matplotlib_is_imported():
    code = (
        "import sys, torchjac; p = torchjac.SparsityPattern([0], [0], (1, 1)); torchjac.color(p);"
        "repr(p); assert not {'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is refused.

REFUSED = {
    "shape": (
        lambda: SparsityPattern([0], [0], (1,)),
        "SparsityPattern(shape=(1,)): expected the numbers of rows and columns, (m, n).",
    ),
    "negative shape": (
        lambda: SparsityPattern.from_coo([], [], (-1, 2)),
        "SparsityPattern.from_coo(shape=(-1, 2)): expected the numbers of rows and columns, (m, n).",
    ),
    "unequal": (
        lambda: SparsityPattern([0, 1], [0], (2, 2)),
        "SparsityPattern(rows, cols): got 2 rows and 1 columns; every entry needs one of each.",
    ),
    "range": (
        lambda: SparsityPattern.from_coo([0, 5], [0, 0], (3, 2)),
        "SparsityPattern.from_coo(rows): there is no row 5 in a pattern with 3 of them; expected indices "
        "from 0 to 2.",
    ),
    "empty range": (
        lambda: SparsityPattern([0], [0], (1, 0)),
        "SparsityPattern(cols): got an entry of a pattern without a column.",
    ),
    "float indices": (
        lambda: SparsityPattern([0.5], [0], (2, 2)),
        "SparsityPattern(rows): expected a list of integers, got float64 of shape (1,).",
    ),
    "indptr": (
        lambda: SparsityPattern.from_csr([0, 2, 1], [0], (2, 2)),
        "SparsityPattern.from_csr(indptr): expected 3 integers that do not decrease, from 0 to 1 (the "
        "number of indices), got [0, 2, 1].",
    ),
    "vector": (
        lambda: SparsityPattern.from_dense(torch.ones(3)),
        "SparsityPattern.from_dense(matrix): expected two dimensions of numbers, got shape (3,) of bool.",
    ),
    "sparse": (
        lambda: SparsityPattern.from_dense(torch.eye(2).to_sparse()),
        "SparsityPattern.from_dense(matrix): expected a strided tensor, got torch.sparse_coo. from_coo "
        "and from_csr take the indices of a sparse one.",
    ),
    "scipy": (
        lambda: SparsityPattern.from_scipy(torch.eye(2)),
        "SparsityPattern.from_scipy(matrix): expected a sparse matrix of SciPy, got Tensor. from_dense "
        "takes other matrices.",
    ),
    "meta": (
        lambda: SparsityPattern.from_dense(torch.ones(2, 2, device="meta")),
        "SparsityPattern.from_dense(matrix): got a tensor on the meta device, without values.",
    ),
    "ragged": (
        lambda: SparsityPattern.from_dense([[1], [1, 2]]),
        "SparsityPattern.from_dense(matrix): expected rows of one length.",
    ),
    "words": (
        lambda: SparsityPattern.from_dense([["a", "b"]]),
        "SparsityPattern.from_dense(matrix): expected two dimensions of numbers, got shape (1, 2) of <U1.",
    ),
    "covers": (
        lambda: SparsityPattern([], [], (2, 2)).covers(torch.eye(2)),
        "covers(other): expected a SparsityPattern, got Tensor.",
    ),
    "lines": (
        lambda: SparsityPattern([], [], (2, 2)).picture(0),
        "picture(lines=0): expected a positive int.",
    ),
    "colors": (
        lambda: SparsityPattern([], [], (2, 2)).spy(colors=3),
        "spy(colors=...): expected a Coloring, got int. Give color(pattern).",
    ),
    "union": (
        lambda: SparsityPattern([], [], (1, 2)) | SparsityPattern([], [], (2, 1)),
        "pattern | other: expected patterns of one shape, got 1×2 and 2×1.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_pattern_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(PatternError) as caught:
        make()
    assert str(caught.value) == message
    assert isinstance(caught.value, TorchjacError)
    assert isinstance(caught.value, ValueError)
