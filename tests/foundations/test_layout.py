import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjac.foundations.layout import Layout
from torchjac.testing import strategies

LEAVES = st.lists(strategies.shapes().map(torch.empty), max_size=4)


@st.composite
def layouts_and_ranges(draw):
    layout = Layout(draw(LEAVES))
    start = draw(st.integers(0, layout.total))
    return layout, start, draw(st.integers(start, layout.total))


@given(LEAVES)
def test_every_element_has_one_position(leaves):
    layout = Layout(leaves)
    assert layout.counts == [leaf.numel() for leaf in leaves]
    assert layout.total == sum(layout.counts)


@given(layouts_and_ranges())
def test_sections_cut_any_range_into_exactly_its_positions(case):
    layout, start, stop = case
    everything = [
        (leaf, position) for leaf, count in enumerate(layout.counts) for position in range(count)
    ]
    cut = [
        (section.leaf, section.first + step)
        for section in layout.sections(start, stop)
        for step in range(section.length)
    ]
    assert cut == everything[start:stop]


@given(layouts_and_ranges())
def test_sections_follow_one_another_without_gaps_and_none_is_empty(case):
    layout, start, stop = case
    row = 0
    for section in layout.sections(start, stop):
        assert section.row == row
        assert section.length > 0
        row += section.length
    assert row == stop - start


def test_leaves_keep_their_order():
    layout = Layout([torch.empty(2), torch.empty(0), torch.empty(()), torch.empty(1, 3)])
    assert [section.leaf for section in layout.sections(0, 6)] == [0, 2, 3]


def test_a_batched_layout_counts_the_positions_of_one_sample():
    layout = Layout([torch.empty(5, 2, 3), torch.empty(5)], batched=True)
    assert layout.counts == [6, 1]


def test_a_batch_of_none_has_the_positions_of_a_sample():
    assert Layout([torch.empty(0, 3)], batched=True).total == 3
