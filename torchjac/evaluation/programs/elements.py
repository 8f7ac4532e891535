"""What an operation of a graph does with elements: moves or joins them, or computes each from its like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

__all__ = [
    "is_among_zeros",
    "is_elementwise",
    "is_join",
    "is_move",
    "name_of",
    "origins",
    "origins_of_pieces",
    "source_of",
]

aten = torch.ops.aten

_MOVES = frozenset(
    f"aten::{name}"
    for name in (
        *("alias", "clone", "expand", "flip", "permute", "reshape", "roll", "select", "slice"),
        *("squeeze", "t", "transpose", "unsqueeze", "view", "_unsafe_view", "detach"),
    )
)
_AMONG_ZEROS = frozenset(["aten::select_backward", "aten::slice_backward", "aten::diag_embed"])
_JOINS = frozenset(["aten::cat", "aten::stack"])
_RESHAPES = frozenset(["aten::view", "aten::_unsafe_view"])


def name_of(node: Node) -> str:
    """The operation, as ``aten::mul``; nothing for what is none."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name)


def source_of(node: Node) -> Node:
    """The tensor that a move takes its elements from."""
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def is_move(node: Node) -> bool:
    """Whether every element is one of the source, as it was."""
    if name_of(node) not in _MOVES or node.target is aten.view.dtype:
        return False
    return bool(node.meta["val"].dtype == source_of(node).meta["val"].dtype)


def is_among_zeros(node: Node) -> bool:
    """Whether the elements of the source are put among zeros."""
    return name_of(node) in _AMONG_ZEROS


def is_join(node: Node) -> bool:
    """Whether the elements of several tensors are put side by side, as they were."""
    if name_of(node) not in _JOINS:
        return False
    dtypes = {piece.meta["val"].dtype for piece in node.all_input_nodes}
    return dtypes == {node.meta["val"].dtype}


def is_elementwise(node: Node) -> bool:
    """Whether each element comes of those at its place in the operands, and of nothing else."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    tags = target.tags
    if torch.Tag.pointwise not in tags or torch.Tag.nondeterministic_seeded in tags:
        return False
    return isinstance(node.meta["val"], Tensor)


def origins(node: Node) -> Tensor:
    """For every element of a move, the position in the flattened source; -1 for a zero beside them."""
    like = source_of(node).meta["val"]
    numbers = torch.arange(1, like.numel() + 1, device="cpu").view(like.shape)
    target: Any = aten.reshape.default if name_of(node) in _RESHAPES else node.target
    moved: Tensor = target(
        numbers, *node.args[1:], **{k: v for k, v in node.kwargs.items() if k != "memory_format"}
    )
    return moved - 1


def origins_of_pieces(node: Node) -> list[tuple[Node, Tensor]]:
    """Each tensor of a join, and for every element the position in it; -1 for those of another."""
    pieces: Any = node.args[0]
    target: Any = node.target
    shapes = [piece.meta["val"].shape for piece in pieces]
    parts = torch.arange(sum(s.numel() for s in shapes), device="cpu").split(
        [s.numel() for s in shapes]
    )
    numbers = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    joined, first, found = target(numbers, *node.args[1:], **node.kwargs), 0, []
    for piece, part in zip(pieces, parts, strict=True):
        inside = (joined >= first) & (joined < first + len(part))
        found.append((piece, torch.where(inside, joined - first, -1)))
        first += len(part)
    return found
