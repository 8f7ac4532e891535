"""Brackets: against every bracketing of short chains, and by multiplying out what the tree says."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjac.planning.plans.brackets import (
    Against,
    Along,
    ContinueAgainst,
    ContinueAlong,
    Product,
    bracket,
    one_way,
)


def dense(*sizes):
    """The cost of a seed through dense layers of these sizes: flops, and what is read and written."""
    return [2 * a * b + a + b for a, b in pairwise(sizes)]


# Slow and obvious.


def every_cost(sizes, costs, along, against, start, end, product_cost=2, forward_cost=1):
    """The costs of all bracketings of a part of a chain."""

    def part(i, j):
        return every_cost(sizes, costs, along, against, i, j, product_cost, forward_cost)

    single = end == start + 1
    work = sum(costs[start:end])
    yield (along[start] if single else sizes[start]) * work
    yield (against[start] if single else sizes[end]) * work * forward_cost
    for cut in range(start + 1, end):
        left, right = list(part(start, cut)), list(part(cut, end))
        yield from (cost + sizes[start] * sum(costs[cut:end]) for cost in left)
        yield from (cost + sizes[end] * sum(costs[start:cut]) * forward_cost for cost in right)
        product = product_cost * sizes[start] * sizes[cut] * sizes[end]
        yield from (a + b + product for a in left for b in right)


@st.composite
def chains(draw, most=4, colors=False):
    number = draw(st.integers(1, most))
    sizes = draw(st.lists(st.integers(1, 40), min_size=number + 1, max_size=number + 1))
    costs = draw(st.lists(st.integers(0, 500), min_size=number, max_size=number))
    if not colors:
        return sizes, costs
    along = [draw(st.integers(1, size)) for size in sizes[:-1]]
    against = [draw(st.integers(1, size)) for size in sizes[1:]]
    return sizes, costs, along, against


@given(chains(colors=True), st.integers(0, 3), st.integers(1, 3))
def test_no_bracketing_is_cheaper(chain, product_cost, forward_cost):
    sizes, costs, along, against = chain
    found = bracket(
        sizes,
        costs,
        along=along,
        against=against,
        product_cost=product_cost,
        forward_cost=forward_cost,
        margin=0,
    )
    every = every_cost(*chain, 0, len(costs), product_cost, forward_cost)
    assert found.cost == min(every)


@given(chains(most=6), st.integers(0, 3))
def test_a_cut_as_wide_as_those_beside_it_never_helps(chain, product_cost):
    """What `find_cuts` leaves out."""
    sizes, costs = chain
    cost = bracket(sizes, costs, product_cost=product_cost, margin=0).cost
    for at in range(1, len(costs)):
        if sizes[at] >= max(sizes[at - 1], sizes[at + 1]):
            fewer = sizes[:at] + sizes[at + 1 :]
            merged = [*costs[: at - 1], costs[at - 1] + costs[at], *costs[at + 1 :]]
            assert bracket(fewer, merged, product_cost=product_cost, margin=0).cost == cost


@given(chains(most=6, colors=True))
def test_never_dearer_than_one_way_and_little_dearer_than_the_best(chain):
    sizes, costs, along, against = chain
    single = one_way(sizes, costs, along=along, against=against)
    best = bracket(sizes, costs, along=along, against=against, margin=0)
    found = bracket(sizes, costs, along=along, against=against)
    assert best.cost <= found.cost <= single.cost
    assert found.tree == single.tree or found.cost < 0.9 * single.cost
    assert 0.9**2 * found.cost <= best.cost  # a margin for products, and one for sending on


def multiplied_out(tree, parts):
    """The matrix of a tree, and the seeds that it took."""

    def through(start, end):
        product = torch.eye(parts[start].shape[0], dtype=torch.float64)
        for part in parts[start:end]:
            product = product @ part
        return product

    if isinstance(tree, Along):
        seeds = torch.eye(tree.seeds, dtype=torch.float64)
        return seeds @ through(tree.start, tree.end), tree.seeds
    if isinstance(tree, Against):
        seeds = torch.eye(tree.seeds, dtype=torch.float64)
        return through(tree.start, tree.end) @ seeds, tree.seeds
    if isinstance(tree, Product):
        (left, passes), (right, more) = (multiplied_out(t, parts) for t in (tree.left, tree.right))
        return left @ right, passes + more
    matrix, passes = multiplied_out(tree.matrix, parts)
    if isinstance(tree, ContinueAlong):
        assert matrix.shape[0] == tree.seeds
        return matrix @ through(tree.matrix.end, tree.end), passes + tree.seeds
    assert isinstance(tree, ContinueAgainst)
    assert matrix.shape[1] == tree.seeds
    return through(tree.start, tree.matrix.start) @ matrix, passes + tree.seeds


@given(chains(most=6), st.integers(0, 3))
def test_the_tree_gives_the_product_in_so_many_passes(chain, product_cost):
    sizes, costs = chain
    parts = [torch.randn(a, b, dtype=torch.float64) for a, b in pairwise(sizes)]
    found = bracket(sizes, costs, product_cost=product_cost, margin=0)
    result, passes = multiplied_out(found.tree, parts)
    assert passes == found.passes
    expected = torch.linalg.multi_dot(parts) if len(parts) > 1 else parts[0]
    torch.testing.assert_close(result, expected)
    assert (found.tree.start, found.tree.end) == (0, len(costs))


# By hand.


@pytest.mark.parametrize(
    ("sizes", "passes", "words"),
    [
        ([1024, 512, 16, 512, 1024], 32, "J[1024×16] against · J[16×1024] along"),
        ([600, 8, 600], 16, "J[600×8] against · J[8×600] along"),
        ([500, 1, 300], 2, "J[500×1] against · J[1×300] along"),
        ([4096, 4096, 64, 4096], 128, "J[4096×64] against · J[64×4096] along"),
        ([256, 256, 256], 256, "J[256×256] along"),
        ([10, 1000, 10], 10, "J[10×10] along"),
        ([10, 1000, 9], 9, "J[10×9] against"),
        ([3, 50, 7], 3, "J[3×7] along"),
        ([1024, 512, 16], 16, "J[1024×16] against"),
        ([256, 250, 256], 256, "J[256×256] along"),
    ],
)
def test_dense_chains(sizes, passes, words):
    found = bracket(sizes, dense(*sizes))
    assert str(found) == words
    assert found.passes == passes


def test_what_a_waist_saves():
    sizes = [1024, 512, 16, 512, 1024]
    assert bracket(sizes, dense(*sizes)).cost < 0.1 * one_way(sizes, dense(*sizes)).cost


@pytest.mark.parametrize(
    ("sizes", "costs", "words"),
    [
        # A product of 2·100·2·100 flops, or 100 more seeds through what costs next to nothing.
        ([100, 2, 100], [9999, 100], "J[100×2] against sent along J[2×100]"),
        ([100, 2, 100], [100, 9999], "J[2×100] along sent against J[100×2]"),
        (
            [100, 2, 50, 100],
            [9999, 9999, 100],
            "(J[100×2] against · J[2×50] along) sent along J[50×100]",
        ),
    ],
)
def test_a_cheap_segment_is_gone_through_again(sizes, costs, words):
    assert str(bracket(sizes, costs)) == words


def test_products_on_the_right_are_in_brackets():
    found = bracket([9, 9, 9, 2], [10**6] * 3, along=[1, 1, 1], against=[9, 9, 1], margin=0)
    assert str(found) == "J[9×9] along · (J[9×9] along · J[9×2] along)"
    assert found.passes == 3


def test_ties_go_along():
    assert bracket([5, 5], [3]).tree == Along(0, 1, 5)
    assert bracket([5, 5, 5], [0, 0]).tree == Along(0, 2, 5)


def test_fewer_passes_win_among_equal_costs():
    assert bracket([5, 4], [0]).tree == Against(0, 1, 4)


@pytest.mark.parametrize(
    ("forward_cost", "tree"), [(1, Against(0, 1, 6)), (1.5, Along(0, 1, 8)), (2, Along(0, 1, 8))]
)
def test_forward_has_to_be_cheaper_by_its_cost(forward_cost, tree):
    assert bracket([8, 6], [10], forward_cost=forward_cost).tree == tree


def test_the_colors_of_a_segment_are_its_seeds():
    """A diagonal segment between dense ones."""
    found = bracket([20, 20], [100], along=[1], against=[1])
    assert found.tree == Along(0, 1, 1)
    assert one_way([20, 20], [100], along=[1], against=[1]) == found
    # Colours are of single segments; several in one go take the identity.
    assert one_way([20, 20, 20], [100, 100], along=[1, 1], against=[1, 1]).passes == 20


def test_a_waist_that_saves_little_is_not_taken():
    sizes, costs = [100, 96, 100], [10**6, 10**6]
    assert bracket(sizes, costs).tree == Along(0, 2, 100)
    assert isinstance(bracket(sizes, costs, margin=0).tree, Product)


def test_a_product_is_preferred_to_as_many_flops_in_passes():
    """The last layer as a matrix, or one more pass through it for each row: the same multiplications."""
    sizes = [4096, 4096, 64, 4096]
    found, cheapest = (bracket(sizes, dense(*sizes), margin=margin) for margin in (0.1, 0))
    assert 0.95 * found.cost < cheapest.cost < found.cost
    assert (found.passes, cheapest.passes) == (64 + 64, 64 + 4096)


def test_32_segments_are_no_trouble():
    sizes = [2 ** abs(16 - at) for at in range(33)]
    found = bracket(sizes, dense(*sizes))
    assert found.passes == 2
