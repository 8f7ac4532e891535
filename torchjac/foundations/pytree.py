"""Trees of values: the one place that imports ``torch.utils._pytree``.

A tree is what `torch.func` takes for one: tuples, lists, dicts, named tuples and registered
classes; everything else, ``None`` included, is a leaf. A lone tensor is by far the commonest tree,
so it never reaches PyTorch's generic (and slow) traversal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree

__all__ = [
    "ONE_LEAF",
    "TreeSpec",
    "broadcast_prefix",
    "flatten",
    "leaves_of",
    "map_tree",
    "unflatten",
]


class TreeSpec:
    """The shape of a tree without its leaves; compares and hashes by structure."""

    __slots__ = ("_spec", "num_leaves")

    def __init__(self, spec: Any, num_leaves: int) -> None:
        self._spec = spec
        self.num_leaves = num_leaves

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeSpec) and bool(self._spec == other._spec)

    def __hash__(self) -> int:
        # PyTorch's own specs are unhashable in some versions; equality decides in the end.
        return hash(self.num_leaves)

    def __repr__(self) -> str:
        return "*" if self._spec is None else str(self._spec)


ONE_LEAF = TreeSpec(None, 1)


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves of ``tree``, in order, and its structure."""
    if isinstance(tree, torch.Tensor):
        return [tree], ONE_LEAF
    leaves, spec = _pytree.tree_flatten(tree)
    if len(leaves) == 1 and leaves[0] is tree:
        return leaves, ONE_LEAF  # any other lone leaf is a tree of the same shape
    return leaves, TreeSpec(spec, len(leaves))


def leaves_of(trees: Sequence[Any]) -> list[Any]:
    """The leaves of several trees, one after another."""
    return [leaf for tree in trees for leaf in flatten(tree)[0]]


def unflatten(leaves: Sequence[Any], spec: TreeSpec) -> Any:
    """Put ``leaves`` back into the structure ``spec``."""
    if spec._spec is None:
        return leaves[0]
    return _pytree.tree_unflatten(list(leaves), spec._spec)


def map_tree(func: Callable[[Any], Any], tree: Any) -> Any:
    """Apply ``func`` to every leaf and keep the structure."""
    leaves, spec = flatten(tree)
    return unflatten([func(leaf) for leaf in leaves], spec)


def broadcast_prefix(prefix: Any, tree: Any) -> list[Any] | None:
    """Spread ``prefix`` (one value, or a tree that ends earlier than ``tree``) over the leaves of ``tree``.

    This is how `torch.func.vmap` reads ``in_dims``. Returns None where the structures do not agree.
    """
    _, spec = _pytree.tree_flatten(tree)
    spread: list[Any] | None = _pytree._broadcast_to_and_flatten(prefix, spec)
    return spread
