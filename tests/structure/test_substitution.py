"""Entries that are put together from several products: acyclic colourings, and how they are found."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.structure.patterns import arrow_head, band, brusselator, grid, symmetric_patterns
from torchjac import Coloring, SparsityPattern, color
from torchjac.errors import OptionError, OptionTypeError, PatternError
from torchjac.structure.acyclic import acyclic_colors, color_acyclic
from torchjac.structure.soundness import flaw
from torchjac.structure.star import adjacency
from torchjac.structure.validate import check_coloring

TERMS = st.sampled_from([2, 3, 4, 8, 100])
CYCLE = SparsityPattern.from_dense(
    torch.eye(4) + torch.eye(4).roll(1, 0) + torch.eye(4).roll(-1, 0)
)


def random(n, density, seed=0):
    dense = np.random.default_rng(seed).random((n, n)) < density / 2
    return SparsityPattern.from_dense(dense | dense.T | np.eye(n, dtype=bool))


def recovered(coloring, dense):
    """What the docstrings of `Coloring` say, entry by entry."""
    seeds = torch.nn.functional.one_hot(coloring.colors + 1).T[1:].to(dense)
    products = seeds @ dense
    values = products[coloring.group, coloring.position]
    for entry, group, position, sign in zip(*coloring.corrections, strict=True):
        values[entry] += sign * products[group, position]
    result = torch.zeros_like(dense)
    result[coloring.pattern.to_coo()] = values
    return result


@given(pattern=symmetric_patterns(16), most=TERMS, seed=st.integers(0, 2**16))
@example(pattern=SparsityPattern.from_dense(torch.zeros(0, 0)), most=2, seed=0)
@example(pattern=SparsityPattern.from_dense(torch.zeros(3, 3)), most=2, seed=0)
@example(pattern=band(16, 1), most=4, seed=0)
@example(pattern=arrow_head(16), most=2, seed=0)
def test_every_entry_comes_back_from_few_products(pattern, most, seed):
    colors = color_acyclic(pattern, most)
    coloring = Coloring(pattern, "symmetric", colors, max_terms=most)
    check_coloring(coloring)
    assert flaw(coloring) is None
    if not pattern.nnz:
        return
    # Integers, so that sums are exact.
    numbers = np.random.default_rng(seed).integers(1, 2**30, pattern.shape)
    dense = torch.from_numpy(numbers + numbers.T) * pattern.to_dense()
    assert recovered(coloring, dense).equal(dense)
    terms = 1 + torch.bincount(coloring.corrections.entry, minlength=pattern.nnz)
    assert int(terms.max()) <= most


@given(pattern=symmetric_patterns(16), most=TERMS)
def test_both_names_of_an_entry_are_the_same_sum(pattern, most):
    """So that the Hessian is symmetric to the last digit."""
    coloring = Coloring(pattern, "symmetric", color_acyclic(pattern, most), max_terms=most)
    if pattern.nnz:
        noise = torch.randn(pattern.shape[0], pattern.shape[0], dtype=torch.float64)
        got = recovered(coloring, noise)  # not symmetric: the products do not fit together
        assert got.equal(got.T)


@given(pattern=symmetric_patterns(16), most=TERMS)
def test_allowing_more_terms_never_takes_more_colours(pattern, most):
    direct, allowed = color(pattern, "symmetric"), color(pattern, "symmetric", max_terms=most)
    assert allowed.num_colors <= direct.num_colors
    assert allowed.max_terms == (1 if allowed.num_colors == direct.num_colors else most)
    check_coloring(allowed)


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_width", [1, 2, 5])
def test_with_any_number_of_terms_a_band_takes_half_its_width(half_width):
    """Coleman & Cai (1986): as many colours as a full block of it has columns, which none can undercut."""
    pattern = band(40, half_width)
    assert color(pattern, "symmetric", max_terms=40).num_colors == half_width + 1
    assert color(pattern, "symmetric").num_colors == 2 * half_width + 1


@pytest.mark.parametrize("n", [20, 200])
def test_a_long_path_takes_a_third_colour_to_cut_it_up(n):
    for most in (2, 4):
        assert color(band(n, 1), "symmetric", max_terms=most).num_colors == 3
    with pytest.raises(PatternError, match="does not come back"):
        check_coloring(Coloring(band(n, 1), "symmetric", np.arange(n) % 2, max_terms=4))


def test_an_irregular_pattern_takes_half_the_colours():
    for pattern in (random(200, 0.04), random(500, 0.1), random(1000, 0.02)):
        direct, allowed = color(pattern, "symmetric"), color(pattern, "symmetric", max_terms=4)
        assert allowed.num_colors <= 0.65 * direct.num_colors


def test_a_regular_pattern_gains_less():
    for pattern, fewer in ((grid(20, 20, periodic=True), 5), (brusselator(12), 7)):
        allowed = color(pattern, "symmetric", max_terms=4)
        check_coloring(allowed)
        assert allowed.num_colors <= fewer


def test_trees_stay_as_small_as_they_have_to_be():
    """A path grown from one end is cut before an edge has more than two vertices on both sides."""
    _, neighbours = adjacency(band(12, 1))
    colors = acyclic_colors(neighbours, range(12), 2)
    assert colors.tolist()[:7] == [0, 1, 0, 1, 0, 2, 0]


# --- what is wrong is told -----------------------------------------------------------------------


def test_a_cycle_of_two_colours():
    wrong = Coloring(CYCLE, "symmetric", [0, 1, 0, 1], max_terms=4)
    with pytest.raises(PatternError, match="is on a cycle of two colours, 0 and 1"):
        check_coloring(wrong)
    assert flaw(wrong) == "entry (0, 1) cannot be put together from 4 products"


def test_neighbours_of_one_colour():
    wrong = Coloring(CYCLE, "symmetric", [0, 0, 1, 2], max_terms=4)
    with pytest.raises(PatternError, match="column 0 and column 1 have colour 0 and an entry in"):
        check_coloring(wrong)
    assert "cannot be put together" in str(flaw(wrong))


def test_a_column_without_a_colour():
    with pytest.raises(PatternError, match="column 3 has a diagonal entry and no colour"):
        check_coloring(Coloring(CYCLE, "symmetric", [0, 1, 0, -1], max_terms=4))
    hollow = SparsityPattern.from_dense(1 - torch.eye(3))
    with pytest.raises(PatternError, match="column 2 has an entry and no colour"):
        check_coloring(Coloring(hollow, "symmetric", [0, 1, -1], max_terms=4))


@given(pattern=symmetric_patterns(7), most=TERMS, data=st.data())
def test_the_fast_judgement_is_that_of_the_numbers(pattern, most, data):
    """Colours at random: whatever `flaw` lets pass comes back."""
    n = pattern.shape[0]
    colors = data.draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n))
    coloring = Coloring(pattern, "symmetric", colors, max_terms=most)
    if flaw(coloring) is None and pattern.nnz:
        numbers = np.random.default_rng(0).integers(1, 2**30, pattern.shape)
        dense = torch.from_numpy(numbers + numbers.T) * pattern.to_dense()
        assert recovered(coloring, dense).equal(dense)


@pytest.mark.parametrize(
    ("by", "max_terms", "kind", "text"),
    [
        ("columns", 2, OptionError, "only the entries of a symmetric matrix"),
        ("symmetric", 0, OptionError, "expected 1 or more"),
        ("symmetric", 2.0, OptionTypeError, "expected an int"),
        ("symmetric", True, OptionTypeError, "expected an int"),
    ],
)
def test_bad_options(by, max_terms, kind, text):
    for make in (color, Coloring):
        with pytest.raises(kind, match=rf"{make.__name__}\(max_terms={max_terms}\): .*{text}"):
            make(CYCLE, by, max_terms=max_terms)


def test_colourings_are_equal_if_all_of_them_is():
    pattern = random(40, 0.2)
    one, same = (color(pattern, "symmetric", max_terms=4) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != color(pattern, "symmetric")
    assert one != Coloring(pattern, "symmetric", one.colors, max_terms=5)
    assert one != Coloring(pattern, "columns", one.colors)
    assert one != pattern
    assert repr(one) == f"Coloring(by='symmetric', num_colors={one.num_colors}, max_terms=4)"
