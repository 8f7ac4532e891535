"""The fast judgement of a colouring says what the slow one says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.structure.patterns import band, brusselator, patterns, symmetric_patterns
from torchjac import Coloring, SparsityPattern, color
from torchjac.errors import PatternError
from torchjac.structure.soundness import flaw
from torchjac.structure.validate import check_coloring

BY = ["columns", "rows", "bidirectional"]


@pytest.mark.parametrize("by", BY)
@given(pattern=patterns())
def test_what_was_made_here_is_sound(pattern, by):
    assert flaw(color(pattern, by)) is None


@given(pattern=symmetric_patterns())
def test_a_star_colouring_is_sound(pattern):
    assert flaw(color(pattern, "symmetric")) is None


def comes_back(coloring):
    """Whether random entries come back, which is what `validate` ends with."""
    rng = np.random.default_rng(0)
    dense = np.zeros(coloring.pattern.shape)
    rows, cols = coloring.pattern.coo
    dense[rows, cols] = rng.integers(1, 2**30, len(rows))
    if coloring.by == "symmetric":
        dense = np.tril(dense) + np.tril(dense, -1).T
    for i, j, from_columns, group, position in zip(
        rows, cols, *map(np.asarray, coloring.recovery), strict=True
    ):
        if group < 0:
            return False
        colors = coloring.column_indices if from_columns else coloring.row_indices
        matrix = dense if from_columns else dense.T
        if matrix[:, colors == group].sum(1)[position] != dense[i, j]:
            return False
    return True


@pytest.mark.parametrize("by", [*BY, "symmetric"])
@given(data=st.data())
def test_it_finds_what_does_not_come_back(data, by):
    """Colours at random, and colours that are right but for one."""
    pattern = data.draw(symmetric_patterns(6) if by == "symmetric" else patterns(6))
    m, n = pattern.shape
    right = color(pattern, by)
    columns, rows = (
        None if known is None else known.tolist()
        for known in (right.column_colors, right.row_colors)
    )
    for colors, size in ((columns, n), (rows, m)):
        if colors:
            at = data.draw(st.integers(0, size - 1))
            colors[at] = data.draw(st.integers(-1, max(colors)))
    spoiled = Coloring(pattern, by, columns, rows)
    told = flaw(spoiled)
    if told is None or "that no" not in told:
        assert (told is None) == comes_back(spoiled)
    if told is not None:
        with pytest.raises(PatternError):
            check_coloring(spoiled)


def test_a_colour_that_nothing_has_is_found_before_memory_is_taken_for_it():
    pattern = band(5, 1)
    assert flaw(Coloring(pattern, "columns", [0, 1, 2, 0, 10**15])) == (
        "there is a colour that no column has"
    )


def test_a_pattern_that_is_not_symmetric_has_no_star_colouring():
    pattern = SparsityPattern.from_dense(torch.ones(3, 3).triu())
    assert flaw(Coloring(pattern, "symmetric", [0, 1, 2])) == "the pattern is not symmetric"


def test_the_entry_is_named():
    pattern = band(4, 1)
    assert flaw(Coloring(pattern, "columns", [0, 1, 0, 1])) == (
        "entry (1, 0) cannot be told from others in its product"
    )


def test_a_large_pattern_takes_no_time():
    pattern = brusselator(64)
    assert flaw(color(pattern)) is None
