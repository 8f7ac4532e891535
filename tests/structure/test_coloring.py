import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.structure.patterns import (
    arrow_head,
    band,
    brusselator,
    grid,
    patterns,
    symmetric_patterns,
)
from torchjac import Coloring, SparsityPattern, color
from torchjac.errors import OptionError, OptionTypeError, PatternError
from torchjac.structure.validate import check_coloring

BY = ["columns", "rows", "bidirectional", "auto"]


def recovered(coloring, dense):
    """What the docstring says, with matrices."""
    products = []
    for colors, number, side in (
        (coloring.column_colors, coloring.num_column_colors, dense),
        (coloring.row_colors, coloring.num_row_colors, dense.T),
    ):
        seeds = torch.zeros(number, side.shape[1], dtype=dense.dtype)
        if colors is not None:
            for position, its in enumerate(colors.tolist()):
                if its >= 0:
                    seeds[its, position] = 1
        products.append(seeds @ side.T)
    values = [
        products[0 if from_columns else 1][group, position]
        for from_columns, group, position in zip(
            coloring.from_columns, coloring.group, coloring.position, strict=True
        )
    ]
    result = torch.zeros_like(dense)
    if values:
        result[coloring.pattern.to_coo()] = torch.stack(values)
    return result


@pytest.mark.parametrize("by", BY)
@given(pattern=patterns(), seed=st.integers(0, 2**16))
def test_every_entry_comes_back_from_the_products(by, pattern, seed):
    coloring = color(pattern, by=by)
    check_coloring(coloring)
    random = np.random.default_rng(seed).integers(1, 2**40, pattern.shape)
    dense = torch.from_numpy(random) * pattern.to_dense()
    assert recovered(coloring, dense).equal(dense)


@given(pattern=symmetric_patterns(), seed=st.integers(0, 2**16))
def test_every_entry_of_a_symmetric_matrix_comes_back(pattern, seed):
    coloring = color(pattern, by="symmetric")
    check_coloring(coloring)
    assert coloring.row_colors is None
    assert coloring.from_columns.all()
    random = np.random.default_rng(seed).integers(1, 2**40, pattern.shape)
    dense = torch.from_numpy(random + random.T) * pattern.to_dense()
    assert recovered(coloring, dense).equal(dense)


@given(patterns())
def test_columns_of_the_transpose_are_rows(pattern):
    columns, rows = color(pattern.T, by="columns"), color(pattern, by="rows")
    assert columns.colors.equal(rows.colors)
    assert rows.column_colors is None
    assert columns.row_colors is None


@given(patterns())
def test_never_fewer_than_a_full_row_and_never_more_than_there_are_columns(pattern):
    dense = pattern.to_dense()
    number = color(pattern, by="columns").num_colors
    assert number >= int(dense.sum(1).max()) if dense.numel() else number == 0
    assert number <= int(dense.any(0).sum()) if dense.numel() else True


@given(symmetric_patterns())
def test_a_star_colouring_stays_within_the_greedy_bound(pattern):
    """A vertex has at most Δ² others within two steps (Gebremedhin et al., 2007)."""
    full = pattern | SparsityPattern.from_dense(torch.eye(pattern.shape[0]))
    degree = int(full.to_dense().sum(1).max()) if full.nnz else 0
    assert color(full, by="symmetric").num_colors <= max(0, (degree - 1) ** 2 + 1)


@given(patterns(), st.sampled_from([0.3, 1.0, 4.0]), st.sampled_from([0.3, 1.0, 4.0]))
def test_auto_is_the_cheapest_of_columns_rows_and_both(pattern, row_cost, column_cost):
    def cost(coloring):
        return coloring.num_row_colors * row_cost + coloring.num_column_colors * column_cost

    chosen = color(pattern, row_cost=row_cost, column_cost=column_cost)
    others = [
        color(pattern, by=by, row_cost=row_cost, column_cost=column_cost)
        for by in ("columns", "rows", "bidirectional")
    ]
    assert cost(chosen) <= min(map(cost, others)) + 1e-9


@given(patterns(), st.sampled_from(BY))
def test_the_same_pattern_is_coloured_the_same(pattern, by):
    state = torch.get_rng_state()
    first, again = color(pattern, by), color(pattern, by)
    assert first.colors.equal(again.colors)
    assert torch.get_rng_state().equal(state)


@given(patterns())
def test_bidirectional_colors_are_columns_then_rows_counted_on(pattern):
    coloring = color(pattern, by="bidirectional")
    m, n = pattern.shape
    columns, rows = coloring.colors.split([n, m])
    assert columns.equal(coloring.column_colors)
    shifted = coloring.row_colors + coloring.num_column_colors
    assert rows.equal(torch.where(coloring.row_colors < 0, -1, shifted))
    assert coloring.num_colors == len(set(coloring.colors.tolist()) - {-1})


def test_what_has_no_entry_takes_part_in_no_pass():
    pattern = SparsityPattern([0, 2], [1, 1], (3, 3))
    assert color(pattern, by="columns").colors.tolist() == [-1, 0, -1]
    assert color(pattern, by="rows").colors.tolist() == [0, -1, 1]
    assert color(SparsityPattern([1], [1], (3, 3)), by="symmetric").colors.tolist() == [-1, 0, -1]


def test_a_large_grid_stays_within_its_effort_and_below_the_usual_greedy():
    # Largest first and natural order both take 12 here.
    assert color(brusselator(64)).num_colors <= 9


def test_costs_decide_between_rows_and_columns():
    pattern = SparsityPattern.from_dense(torch.ones(4, 6))
    assert color(pattern).by == "rows"
    assert color(pattern, row_cost=2.0).by == "columns"


# What is refused.


def test_options_are_refused():
    pattern = band(4, 1)
    with pytest.raises(OptionTypeError) as caught:
        color(pattern.to_dense())
    assert str(caught.value) == (
        "color(pattern): expected a SparsityPattern, got Tensor. SparsityPattern.from_dense and "
        "from_scipy make one of a matrix."
    )
    with pytest.raises(OptionError) as caught:
        color(pattern, by="diagonals")
    assert str(caught.value) == (
        "color(by='diagonals'): expected one of 'columns', 'rows', 'symmetric', 'bidirectional', 'auto'."
    )
    for bad in (0, -1.0, float("inf"), float("nan"), "1", True):
        with pytest.raises(OptionError, match=r"row_cost=.*expected a positive number"):
            color(pattern, row_cost=bad)


def test_a_colouring_by_hand_says_by_what():
    with pytest.raises(
        OptionError, match=r"Coloring.by='auto'.: expected one of 'columns', 'rows'"
    ):
        Coloring(band(4, 1), "auto", [0, 1, 2, 0])


def test_a_hessian_has_to_be_symmetric():
    with pytest.raises(PatternError) as caught:
        color(SparsityPattern([0], [0], (2, 3)), by="symmetric")
    assert str(caught.value) == (
        "color(by='symmetric'): expected a square pattern, got 2×3. Take by='columns' or 'rows'."
    )
    with pytest.raises(PatternError) as caught:
        color(SparsityPattern([0, 1, 2], [0, 0, 2], (3, 3)), by="symmetric")
    assert str(caught.value) == (
        "color(by='symmetric'): expected a symmetric pattern, got an entry (1, 0) and none at (0, 1). "
        "Give pattern | pattern.T, or take by='columns' or 'rows'."
    )


def test_colors_have_to_fit_the_pattern():
    pattern = band(3, 1)
    for colors in ([0, 1], [0, 1, -2], [0.0, 1.0, 2.0], [[0, 1, 2]]):
        with pytest.raises(PatternError, match="expected 3 integers from -1"):
            Coloring(pattern, "columns", colors)
    with pytest.raises(PatternError, match=r"row_colors.: expected None"):
        Coloring(pattern, "columns", [0, 1, 2], [0, 1, 2])
    with pytest.raises(PatternError, match=r"row_colors.: expected a colour for each of 3"):
        Coloring(pattern, "rows")
    with pytest.raises(PatternError, match=r"Coloring\(pattern\): expected a .*, got Tensor"):
        Coloring(torch.eye(3), "columns", [0, 1, 2])


def test_colors_that_are_handed_out_can_be_changed_freely():
    coloring = color(band(5, 1), "bidirectional")
    before = hash(coloring), coloring.colors
    parts = (coloring.column_colors, coloring.row_colors, coloring.colors, coloring.group)
    for part in (*parts, coloring.position):
        part.fill_(7)
    assert coloring == color(band(5, 1), "bidirectional")
    assert (hash(coloring), coloring.colors.tolist()) == (before[0], before[1].tolist())


# The validator finds what is wrong.

WRONG = {
    "columns that share a row": (
        Coloring(band(4, 1), "columns", [0, 1, 0, 2]),
        "columns 0 and 2 have colour 0 and share row 1",
    ),
    "rows that share a column": (
        Coloring(band(4, 1), "rows", None, [0, 1, 1, 2]),
        "rows 1 and 2 have colour 1 and share column 1",
    ),
    "a neutral column with an entry": (
        Coloring(band(2, 0), "columns", [0, -1]),
        "column 1 has an entry in row 1 and no colour",
    ),
    "an empty colour": (
        Coloring(band(2, 0), "columns", [2, 0]),
        "no column has colour 1, which costs a pass all the same",
    ),
    "neighbours of one colour": (
        Coloring(band(3, 1), "symmetric", [0, 0, 1]),
        "column 0 and column 1 have colour 0 and an entry in common",
    ),
    "a path of two colours": (
        Coloring(band(4, 1), "symmetric", [0, 1, 0, 1]),
        "the path column 0 - column 1 - column 2 - column 3 has two colours, 1 and 0",
    ),
    "a neutral diagonal": (
        Coloring(band(2, 1), "symmetric", [0, -1]),
        "column 1 has a diagonal entry and no colour",
    ),
    "both ends neutral": (
        Coloring(SparsityPattern([0, 0], [0, 1], (1, 2)), "bidirectional", [0, -1], [-1]),
        "row 0 and column 1 have no colour and an entry in common",
    ),
    "neighbours of a neutral vertex": (
        Coloring(SparsityPattern([0, 0], [0, 1], (1, 2)), "bidirectional", [0, 0], [-1]),
        "column 0 and column 1 have colour 0 and meet at row 0, which has none",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_validator_finds_a_planted_mistake(case):
    coloring, message = WRONG[case]
    with pytest.raises(PatternError) as caught:
        check_coloring(coloring)
    assert str(caught.value) == f"check_coloring: {message}."


@given(symmetric_patterns(), st.integers(0, 2**16))
def test_the_definition_and_the_recovery_agree(pattern, seed):
    """Random colours: whatever a proper colouring's definition refuses does not come back either."""
    n = pattern.shape[0]
    colors = np.random.default_rng(seed).integers(0, 4, n)
    colors = np.unique(colors, return_inverse=True)[1]
    i, j = (index.numpy() for index in pattern.to_coo())
    if (colors[i] == colors[j])[i != j].any():
        return
    coloring = Coloring(pattern, "symmetric", colors)
    random = np.random.default_rng(seed + 1).integers(1, 2**40, pattern.shape)
    dense = torch.from_numpy(random + random.T) * pattern.to_dense()
    try:
        check_coloring(coloring)
    except PatternError:
        assert not recovered(coloring, dense).equal(dense)
    else:
        assert recovered(coloring, dense).equal(dense)


def test_a_wrong_recovery_is_found_even_if_the_colors_are_right():
    coloring = color(grid(4, 4, periodic=False), by="columns")
    from_columns, group, position = coloring.recovery
    coloring.__dict__["recovery"] = from_columns, group, np.roll(position, 1)
    with pytest.raises(PatternError, match="does not come back"):
        check_coloring(coloring)


def test_repr_tells_the_passes():
    assert repr(color(band(5, 1), by="rows")) == "Coloring(by='rows', num_colors=3)"
    assert repr(color(arrow_head(9))) == (
        "Coloring(by='bidirectional', num_colors=3 (2 of columns, 1 of rows))"
    )
