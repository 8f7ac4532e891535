from collections import OrderedDict, namedtuple

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjac.foundations.pytree import broadcast_prefix, flatten, map_tree, unflatten

Point = namedtuple("Point", "x y")

LEAVES = st.none() | st.integers() | st.text(max_size=2)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
        | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3).map(OrderedDict)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=8,
)


@given(TREES)
def test_flatten_and_unflatten_are_inverse(tree):
    leaves, spec = flatten(tree)
    rebuilt = unflatten(leaves, spec)
    assert rebuilt == tree
    assert type(rebuilt) is type(tree)


@given(TREES)
def test_a_spec_knows_the_number_of_its_leaves(tree):
    leaves, spec = flatten(tree)
    assert spec.num_leaves == len(leaves)


@given(TREES)
def test_mapping_changes_every_leaf_and_keeps_the_structure(tree):
    mapped, spec = flatten(map_tree(lambda leaf: (leaf, leaf), flatten(tree)[0]))
    assert mapped == [twin for leaf in flatten(tree)[0] for twin in (leaf, leaf)]
    assert flatten(map_tree(repr, tree))[1] == flatten(tree)[1]
    assert spec.num_leaves == 2 * flatten(tree)[1].num_leaves


@given(TREES, TREES)
def test_specs_are_equal_where_the_structures_are_and_hash_alike(one, other):
    spec, again = flatten(one)[1], flatten(map_tree(lambda _: 0, one))[1]
    assert spec == again
    assert hash(spec) == hash(again)
    same = map_tree(lambda _: 0, one) == map_tree(lambda _: 0, other)
    assert (spec == flatten(other)[1]) <= same


@given(TREES)
def test_one_value_is_spread_over_all_leaves(tree):
    assert broadcast_prefix(0, tree) == [0] * flatten(tree)[1].num_leaves


def test_a_lone_tensor_is_its_own_tree():
    x = torch.ones(2)
    leaves, spec = flatten(x)
    assert leaves == [x]
    assert unflatten([7], spec) == 7
    assert spec == flatten(torch.ones(3))[1]


def test_a_lone_tensor_and_a_tree_of_one_differ():
    assert flatten(torch.ones(2))[1] != flatten((torch.ones(2),))[1]
    assert flatten((torch.ones(2),))[1] != flatten([torch.ones(2)])[1]


def test_specs_are_keys():
    assert {flatten({"a": 1, "b": (2, 3)})[1]: "here"}[flatten({"a": 4, "b": (5, 6)})[1]] == "here"


def test_a_prefix_of_another_structure_is_refused_with_none():
    assert broadcast_prefix((0, 1), (1, 2, 3)) is None
