"""Cuts: against every cut of small graphs, and with counted effort on big ones."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchjac.structure import cuts as under_test
from torchjac.structure.cuts import find_cuts, segments


def chain(*sizes):
    """A chain of nodes, as the arguments of `find_cuts`."""
    return [[], *([node] for node in range(len(sizes) - 1))], list(sizes), [0], [len(sizes) - 1]


def found_sizes(predecessors, sizes, sources, sinks):
    return [cut.size for cut in find_cuts(predecessors, sizes, sources, sinks)]


# Slow and obvious.


def live_nodes(predecessors, sources, sinks):
    """The nodes on a path from a source to a sink; nothing leads into a source."""
    reached = forward(predecessors, sources, avoiding=())
    return {v for v in reached if forward(predecessors, sources, (), start=[v]) & set(sinks)}


def forward(predecessors, sources, avoiding, start=None):
    """What is reached from the sources, or from some other start, past none of some nodes."""
    reached = set(sources if start is None else start) - set(avoiding)
    for node, before in enumerate(predecessors):
        if node not in avoiding and node not in sources and reached & set(before):
            reached.add(node)
    return reached


def all_cuts(predecessors, sources, sinks):
    """What is still read of every set of nodes that holds the sources and all that it depends on."""
    live = sorted(live_nodes(predecessors, sources, sinks))
    given, wanted = set(sources) & set(live), set(sinks)
    rest = [v for v in live if v not in given]
    for number in range(len(rest) + 1):
        for more in combinations(rest, number):
            done = given | set(more)
            if all(set(predecessors[v]) & set(live) <= done for v in more):
                yield {
                    v
                    for v in done
                    if v in wanted or any(v in predecessors[w] for w in live if w not in done)
                }


@st.composite
def graphs(draw, most=8):
    number = draw(st.integers(1, most))
    nodes = st.integers(0, number - 1)
    predecessors = [
        draw(st.lists(st.integers(0, v - 1), max_size=3)) if v else [] for v in range(number)
    ]
    sizes = draw(st.lists(st.integers(1, 12), min_size=number, max_size=number))
    sources = draw(st.sets(nodes, min_size=1, max_size=2))
    sinks = draw(st.sets(nodes, min_size=1, max_size=2)) | {number - 1}
    return predecessors, sizes, sources, sinks


@given(graphs())
def test_every_cut_separates_the_sources_from_the_sinks(graph):
    predecessors, sizes, sources, sinks = graph
    for cut in find_cuts(*graph):
        assert not forward(predecessors, sources, cut.nodes) & set(sinks)
        assert cut.size == sum(sizes[node] for node in cut.nodes)


@given(graphs())
def test_the_ends_are_the_sources_and_the_sinks_that_meet(graph):
    predecessors, _, sources, sinks = graph
    live = live_nodes(predecessors, sources, sinks)
    found = find_cuts(*graph)
    assert set(found[0].nodes) == sources & live
    assert set(found[-1].nodes) == sinks & live


@given(graphs())
def test_the_narrowest_is_the_narrowest_of_all(graph):
    predecessors, sizes, sources, sinks = graph
    least = min(sum(sizes[v] for v in cut) for cut in all_cuts(predecessors, sources, sinks))
    assert min(found_sizes(*graph)) == least


@given(graphs())
def test_none_is_narrower_than_the_cuts_on_both_sides_of_it(graph):
    predecessors, sizes, _, _ = graph
    for start, end in pairwise(find_cuts(*graph)):
        between = all_cuts(predecessors, start.nodes, end.nodes)
        least = min(sum(sizes[v] for v in cut) for cut in between)
        assert least == min(start.size, end.size)


@given(graphs())
def test_sizes_fall_and_then_rise(graph):
    found = found_sizes(*graph)
    bottom = found.index(min(found))
    assert all(a > b for a, b in pairwise(found[: bottom + 1]))
    assert len(found) == 2 or all(a < b for a, b in pairwise(found[bottom:]))


@given(graphs())
def test_each_node_is_in_one_segment_and_has_what_it_needs(graph):
    predecessors, _, sources, sinks = graph
    live = live_nodes(predecessors, sources, sinks)
    found = find_cuts(*graph)
    parts = segments(found, predecessors)
    assert len(parts) == len(found) - 1
    assert sorted(node for part in parts for node in part) == sorted(live - sources)
    for (start, end), part in zip(pairwise(found), parts, strict=True):
        known = set(start.nodes)
        for node in part:
            assert set(predecessors[node]) & live <= known
            known.add(node)
        assert set(end.nodes) <= known


@given(graphs(most=7))
def test_no_node_of_a_cut_is_upstream_of_the_cut_before(graph):
    predecessors, _, sources, _ = graph
    for start, end in pairwise(find_cuts(*graph)):
        for node in set(end.nodes) - set(start.nodes):
            assert not forward(predecessors, sources, (), start=[node]) & set(start.nodes)


# By hand.


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ([1024, 512, 16, 512, 1024], [1024, 512, 16, 512, 1024]),
        ([1024, 512, 512, 16, 16, 512, 512, 1024], [1024, 512, 16, 512, 1024]),
        ([10, 1000, 10], [10, 10]),
        ([10, 500, 1000, 10], [10, 10]),
        ([256, 256, 256, 256], [256, 256]),
        ([600, 8, 600], [600, 8, 600]),
        ([256, 250, 256], [256, 250, 256]),
        ([1000, 15, 100, 10, 1000], [1000, 10, 1000]),
        ([1000, 10, 1000, 20, 1000], [1000, 10, 20, 1000]),
        ([1000, 1, 1000], [1000, 1, 1000]),
        ([1024, 512, 16], [1024, 512, 16]),
        ([7], [7, 7]),
    ],
)
def test_chains(sizes, kept):
    assert found_sizes(*chain(*sizes)) == kept


def test_the_first_of_equal_cuts_is_kept():
    assert [cut.nodes for cut in find_cuts(*chain(90, 8, 8, 8, 90))] == [(0,), (1,), (4,)]


def test_a_skip_connection_makes_it_no_cut():
    predecessors, sizes, sources, sinks = chain(100, 5, 100)
    predecessors[2].append(0)
    assert found_sizes(predecessors, sizes, sources, sinks) == [100, 100]


def test_a_skip_past_one_of_two_waists():
    predecessors, sizes, sources, sinks = chain(100, 5, 100, 7, 100)
    predecessors[2].append(0)
    assert found_sizes(predecessors, sizes, sources, sinks) == [100, 7, 100]


def test_a_node_read_twice_is_counted_once():
    assert found_sizes([[], [0, 0], [1], [1], [2, 3]], [64, 4, 9, 9, 64], [0], [4]) == [64, 4, 64]


def test_two_streams_are_cut_where_they_are_narrow_together():
    """One is narrow early and the other late, and neither is a cut alone."""
    #   0 ─ 1 ─ 3 ─ 5
    #    └─ 2 ─ 4 ─┘
    found = find_cuts([[], [0], [0], [1], [2], [3, 4]], [99, 3, 50, 50, 4, 99], [0], [5])
    assert [(cut.nodes, cut.size) for cut in found] == [((0,), 99), ((1, 4), 7), ((5,), 99)]


def test_the_order_of_the_nodes_does_not_matter():
    """All of the first stream comes before the second: no cut is narrow at any moment."""
    predecessors = [[], [0], [1], [2], [0], [4], [5], [3, 6]]
    sizes = [90, 30, 2, 30, 30, 3, 30, 90]
    assert [cut.nodes for cut in find_cuts(predecessors, sizes, [0], [7])] == [(0,), (2, 5), (7,)]


def test_a_flow_is_sent_back_where_it_was_in_the_way():
    #   0 ─ 1 ─ 4 ─ 5 ─ 6,  0 ─ 2 ─ 5,  2 ─ 3 ─ 6: what first goes by 2 and 5 has to go by 3
    predecessors = [[], [0], [0], [2], [1], [2, 4], [3, 5]]
    found = find_cuts(predecessors, [20, 7, 6, 5, 9, 7, 20], [0], [6])
    assert [(cut.nodes, cut.size) for cut in found] == [((0,), 20), ((3, 5), 12), ((6,), 20)]


def test_what_a_cut_needs_of_itself_is_not_computed_twice():
    """{1, 3} is on every path too, but 2 would be done on both sides of it."""
    #   0 ─ 1 ─ 2 ─ 3 ─ 5,  0 ─ 3,  2 ─ 4 ─ 5
    predecessors = [[], [0], [1], [2, 0], [2], [3, 4]]
    sizes = [100, 4, 40, 4, 100, 100]
    found = find_cuts(predecessors, sizes, [0], [5])
    assert [cut.nodes for cut in found] == [(0,), (2, 3), (5,)]
    assert segments(found, predecessors) == [[1, 2, 3], [4, 5]]


def test_several_sources_and_sinks():
    found = find_cuts([[], [], [0, 1], [2], [2]], [30, 30, 6, 30, 40], [0, 1], [3, 4])
    assert [(cut.nodes, cut.size) for cut in found] == [((0, 1), 60), ((2,), 6), ((3, 4), 70)]


def test_a_node_that_is_source_and_sink_is_in_every_cut():
    found = find_cuts([[], [], [0], [2]], [50, 5, 3, 50], sources=[0, 1], sinks=[1, 3])
    assert [cut.nodes for cut in found] == [(0, 1), (1, 2), (1, 3)]
    assert segments(found, [[], [], [0], [2]]) == [[2], [3]]


def test_the_identity_has_one_empty_segment():
    found = find_cuts([[]], [7], [0], [0])
    assert [cut.size for cut in found] == [7, 7]
    assert segments(found, [[]]) == [[]]


def test_a_sink_that_leads_on_to_another():
    predecessors, sizes = [[], [0], [1], [2]], [9, 2, 5, 9]
    found = find_cuts(predecessors, sizes, [0], [1, 3])
    assert [cut.nodes for cut in found] == [(0,), (1,), (1, 3)]
    assert segments(found, predecessors) == [[1], [2, 3]]


def test_what_is_on_no_path_does_not_count():
    #   1 ─ 2 ─ 3 is all: 0 is a constant, 4 is not read, 5 is not wanted, and 6 is not reached
    predecessors = [[], [], [0, 1], [2], [], [2], [0]]
    found = find_cuts(predecessors, [1, 9, 2, 9, 1, 1, 1], sources=[1, 4], sinks=[3, 6])
    assert [cut.nodes for cut in found] == [(1,), (2,), (3,)]
    assert segments(found, predecessors) == [[2], [3]]


def test_no_path_at_all():
    found = find_cuts([[], []], [3, 4], [0], [1])
    assert [cut.size for cut in found] == [0, 0]
    assert segments(found, [[], []]) == [[]]


def test_no_more_than_32():
    down = [2**power for power in range(30, 0, -1)]
    kept = found_sizes(*chain(*down, 1, *reversed(down)))
    assert len(kept) <= 32
    assert kept[0] == kept[-1] == 2**30
    assert min(kept) == 1


# Effort, as counts.


def ladder(rungs):
    """Two streams that mix at every step."""
    return [[], [0], [0], *([v, v + 1] for v in range(1, 2 * rungs, 2) for _ in "ab")]


@pytest.mark.parametrize("effort", [0, under_test._EFFORT])
@pytest.mark.parametrize(
    ("predecessors", "width"),
    [
        ([[], *([0] for _ in range(2500)), *([v] for v in range(1, 2501))], 2500),
        (ladder(2500), 2),
        ([[], *([max(0, v - k) for k in (1, 2, 7)] for v in range(1, 5000))], 7),
    ],
    ids=["streams", "ladder", "band"],
)
def test_a_big_graph_is_looked_at_a_few_times(monkeypatch, predecessors, width, effort):
    networks = []

    class Kept(under_test._Network):
        def __init__(self):
            super().__init__()
            networks.append(self)

    monkeypatch.setattr(under_test, "_Network", Kept)
    monkeypatch.setattr(under_test, "_EFFORT", effort)
    last = len(predecessors)
    predecessors = [*predecessors, list(range(last - width, last))]
    sizes = [10**9, *(1000 + v * 7919 % 1009 for v in range(1, last)), 10**9]
    found = find_cuts(predecessors, sizes, [0], [last])
    assert min(cut.size for cut in found) < 2000 * width
    looked = sum(network.looked for network in networks)
    heads = sum(len(network.heads) for network in networks)
    assert looked <= effort + 2 * heads
    assert heads <= 8 * (sum(map(len, predecessors)) + last)


def test_a_long_chain_needs_no_flow(monkeypatch):
    monkeypatch.setattr(under_test, "_minimum", pytest.fail)
    assert found_sizes(*chain(*[4096] * 2500, 8, *[4096] * 2500)) == [4096, 8, 4096]
