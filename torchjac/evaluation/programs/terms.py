"""The terms that elements of a graph's tensor are sums of, through what only moves them."""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from torchjac.evaluation.programs.elements import (
    is_among_zeros,
    is_join,
    is_move,
    name_of,
    origins,
    origins_of_pieces,
    source_of,
)

__all__ = ["Term", "is_sum", "terms_of"]

# More than these are left as the sums that they are.
_MOST = 32


class Term(NamedTuple):
    """Of each element, what one tensor adds to it, or with a sign of -1 takes away."""

    node: Node
    places: Tensor
    """Where in the flattened tensor; -1 where it has no part in the element."""
    sign: int


def is_sum(node: Node) -> bool:
    """Whether it adds tensors up, or puts them together, or among zeros, or takes one away."""
    return _is_signed(node) or is_join(node) or is_among_zeros(node)


def terms_of(node: Node, places: Tensor, known: Container[Node]) -> list[Term]:
    """What the elements of ``node`` at some places are sums of; sums that are known are one term."""
    terms = [Term(node, places, 1)]
    while True:
        longer = [finer for term in terms for finer in _expanded(term, known)]
        if len(longer) > _MOST or (len(longer) == len(terms) and _same(longer, terms)):
            return terms
        terms = longer


def _same(terms: list[Term], others: list[Term]) -> bool:
    return all(term is other for term, other in zip(terms, others, strict=True))


def _expanded(term: Term, known: Container[Node]) -> list[Term]:
    """One step nearer to where the elements come from."""
    node, places, sign = term
    if node in known:
        return [term]
    if is_move(node) or is_among_zeros(node) or is_join(node):
        pieces = origins_of_pieces(node) if is_join(node) else [(source_of(node), origins(node))]
        terms = [Term(piece, _through(where, places), sign) for piece, where in pieces]
        return [term for term in terms if bool((term.places >= 0).any())]
    if _is_signed(node):
        first, *others = node.args
        last = -sign if name_of(node) in ("aten::sub", "aten::neg") else sign
        signs = [sign, last] if others else [last]
        operands = [first, *others]
        return [Term(o, places, s) for o, s in zip(operands, signs, strict=True)]  # type: ignore[arg-type]
    return [term]


def _through(origins: Tensor, places: Tensor) -> Tensor:
    return torch.where(places >= 0, origins.reshape(-1)[places.clamp(min=0)], -1)


def _is_signed(node: Node) -> bool:
    """Whether it is a sum, a difference or a negative of tensors as large as it, and no more than that."""
    if name_of(node) not in ("aten::add", "aten::sub", "aten::neg") or node.kwargs:
        return False
    like = node.meta["val"]
    # The sum of truth values is another operation.
    return like.dtype != torch.bool and all(
        isinstance(argument, Node)
        and argument.meta["val"].shape == like.shape
        and argument.meta["val"].dtype == like.dtype
        for argument in node.args
    )
