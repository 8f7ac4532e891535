"""``torch.utils._pytree``, which only torchjac/foundations/pytree.py imports."""

from collections import OrderedDict, namedtuple

import torch
from torch.utils import _pytree

Point = namedtuple("Point", "x y")


def test_none_and_unregistered_objects_are_leaves():
    thing = object()
    leaves, _ = _pytree.tree_flatten((None, thing))
    assert leaves == [None, thing]


def test_the_builtin_containers_are_trees():
    tree = Point([1, (2,)], OrderedDict(b=3, a={"c": 4}))
    leaves, spec = _pytree.tree_flatten(tree)
    assert leaves == [1, 2, 3, 4]
    assert _pytree.tree_unflatten(leaves, spec) == tree


def test_a_tensor_is_one_leaf_and_a_size_is_none():
    assert len(_pytree.tree_flatten(torch.ones(3))[0]) == 1


def test_specs_compare_by_structure():
    one, same, other = (_pytree.tree_flatten(tree)[1] for tree in ((1, [2]), (3, [4]), [1, [2]]))
    assert one == same
    assert one != other


def test_a_prefix_is_spread_over_the_leaves_below_it():
    _, spec = _pytree.tree_flatten((1, [2, 3]))
    assert _pytree._broadcast_to_and_flatten(0, spec) == [0, 0, 0]
    assert _pytree._broadcast_to_and_flatten((0, None), spec) == [0, None, None]
    assert _pytree._broadcast_to_and_flatten((0, [1, 2]), spec) == [0, 1, 2]


def test_a_prefix_of_another_structure_gives_none():
    _, spec = _pytree.tree_flatten((1, [2, 3]))
    assert _pytree._broadcast_to_and_flatten((0, 1, 2), spec) is None
    assert _pytree._broadcast_to_and_flatten((0, [1]), spec) is None
