"""Rows of indices against boolean matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from torchjac.errors import StructureError
from torchjac.structure.detection import index_sets
from torchjac.structure.detection.index_sets import IndexSets


@st.composite
def matrices(draw, rows=None, columns=None):
    rows = draw(st.integers(0, 6)) if rows is None else rows
    columns = draw(st.integers(0, 6)) if columns is None else columns
    bits = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    return np.array(bits, bool).reshape(rows, columns)


def sets_of(matrix):
    return IndexSets(sparse.csr_matrix(matrix))


def same(sets, expected):
    assert sets.matrix.has_canonical_format
    assert (sets.matrix.toarray() == expected).all()
    assert sets.matrix.shape == expected.shape
    assert (np.diff(sets.matrix.indptr) >= 0).all()


@given(st.data(), matrices())
def test_gather(data, matrix):
    rows = data.draw(st.lists(st.integers(-1, len(matrix) - 1), max_size=8))
    padded = np.concatenate([matrix, np.zeros((1, matrix.shape[1]), bool)])
    same(
        sets_of(matrix).gather(np.array(rows, np.int64)),
        padded[rows].reshape(len(rows), matrix.shape[1]),
    )


@given(st.data(), st.integers(0, 5), st.integers(0, 5))
def test_union_and_stack(data, rows, columns):
    one, other = (data.draw(matrices(rows, columns)) for _ in range(2))
    same(sets_of(one).union(sets_of(other)), one | other)
    same(IndexSets.stack([sets_of(one), sets_of(other)]), np.concatenate([one, other]))


@given(st.data(), matrices(), st.integers(0, 5))
def test_merge_and_support(data, matrix, count):
    groups = data.draw(matrices(count, len(matrix)))
    expected = (groups.astype(int) @ matrix.astype(int)).astype(bool)
    same(sets_of(matrix).merge(sparse.csr_matrix(groups)), expected)
    same(sets_of(matrix).support(), matrix.any(0, keepdims=True))


@given(st.data(), matrices())
def test_keep(data, matrix):
    mask = data.draw(matrices(1, len(matrix)))[0]
    same(sets_of(matrix).keep(mask), matrix & mask[:, None])


def test_identity_and_empty():
    same(IndexSets.identity(2, 1, 4), np.eye(2, 4, 1, dtype=bool))
    same(IndexSets.empty(2, 3), np.zeros((2, 3), bool))


def test_too_many_entries_are_refused_before_they_exist(monkeypatch):
    monkeypatch.setattr(index_sets, "MOST_ENTRIES", 10)
    sets = sets_of(np.ones((2, 4), bool))
    with pytest.raises(StructureError, match="effectively dense"):
        sets.gather(np.zeros(3, np.int64))
    with pytest.raises(StructureError, match="effectively dense"):
        IndexSets.stack([sets, sets])
    with pytest.raises(StructureError, match="effectively dense"):
        sets.merge(sparse.csr_matrix(np.ones((3, 2), bool)))
    # Many duplicates, few entries: merged a stretch at a time.
    narrow = sets_of(np.ones((9, 1), bool))
    same(narrow.merge(sparse.csr_matrix(np.ones((4, 9), bool))), np.ones((4, 1), bool))
