"""Elements that never change, among others of the same tensor that do.

A seed is zero nearly everywhere, and what is multiplied with a zero of the graph's own is zero, whatever it
is (see `zeros`). So of K + c * u, with constants K and c, the elements where c is zero are those of K: of the
Jacobian of a discretised equation, all entries but a few in each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from torchjac.evaluation.programs.elements import (
    is_among_zeros,
    is_elementwise,
    is_join,
    is_move,
    name_of,
    origins,
    source_of,
)
from torchjac.evaluation.programs.elementwise import linear_arguments
from torchjac.evaluation.programs.rewriting import named

__all__ = ["Known", "PartlyKnown"]


_MOST_BYTES = 1 << 27  # of one tensor


class Known(NamedTuple):
    """Of each element, whether it never changes, and which number it is then."""

    where: Tensor
    numbers: Tensor

    def at(self, places: Tensor) -> Known:
        """The same of some elements."""
        return Known(self.where.reshape(-1)[places], self.numbers.reshape(-1)[places])


class PartlyKnown:
    """What is known of the elements of each node, if anything.

    Args:
        known: the nodes of which everything is, and these values.
    """

    def __init__(self, known: Mapping[Node, Tensor]) -> None:
        self._known = known
        self._found: dict[Node, Known | None] = {}

    def of(self, node: Node) -> Known | None:
        """What is known of its elements; None for nothing."""
        waiting = [] if node in self._found else [node]
        while waiting:  # graphs may be deeper than Python's stack
            last = waiting[-1]
            missing = [operand for operand in last.all_input_nodes if operand not in self._found]
            if missing and last not in self._known:
                waiting += missing
            else:
                self._found[waiting.pop()] = self._of(last)
        return self._found[node]

    def _of(self, node: Node) -> Known | None:
        if node in self._known:
            numbers = self._known[node]
            return Known(torch.ones_like(numbers, dtype=torch.bool), numbers)
        if self._is_too_large(node):
            return None
        if is_move(node) or is_among_zeros(node):
            return self._moved(node)
        if is_join(node):
            return self._joined(node)
        return self._computed(node) if is_elementwise(node) else None

    @staticmethod
    def _is_too_large(node: Node) -> bool:
        like = node.meta.get("val")
        return isinstance(like, Tensor) and like.numel() * like.element_size() > _MOST_BYTES

    def _moved(self, node: Node) -> Known | None:
        source, places, like = self.of(source_of(node)), origins(node), node.meta["val"]
        inside = (places >= 0).to(like.device)
        if source is None:
            if bool(inside.all()):
                return None
            return Known(~inside, torch.zeros(like.shape, dtype=like.dtype, device=like.device))
        where, numbers = source.at(places.clamp(min=0))
        return Known(where | ~inside, numbers.masked_fill(~inside, 0))

    def _joined(self, node: Node) -> Known | None:
        pieces: Any = node.args[0]
        if not any(map(self.of, pieces)):
            return None
        target: Any = node.target
        wheres, numbers = zip(*map(self._or_nothing, pieces), strict=True)
        return Known(
            target(list(wheres), *node.args[1:], **node.kwargs),
            target(list(numbers), *node.args[1:], **node.kwargs),
        )

    def _or_nothing(self, node: Node) -> Known:
        like, known = node.meta["val"], self.of(node)
        if known is not None:
            return known
        numbers = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        return Known(torch.zeros_like(numbers, dtype=torch.bool), numbers)

    def _computed(self, node: Node) -> Known | None:
        # Integers cannot be computed with what is put in where nothing is known, such as a zero to divide by.
        if not any(map(self.of, node.all_input_nodes)) or not node.meta["val"].is_floating_point():
            return None
        operands = {operand: self._or_nothing(operand) for operand in node.all_input_nodes}
        target: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: operands[n].numbers)
        numbers: Tensor = target(*args, **kwargs)
        where = torch.ones_like(numbers, dtype=torch.bool)
        for operand in operands.values():
            where = where & operand.where
        arguments = named(target, node.args, dict(node.kwargs))
        for name in linear_arguments(name_of(node).removeprefix("aten::"), arguments):
            if isinstance(arguments[name], Node):
                factor = operands[arguments[name]]
                vanishes = (factor.where & (factor.numbers == 0)).to(numbers.device)
                where, numbers = where | vanishes, numbers.masked_fill(vanishes, 0)
        return Known(where, numbers) if bool(where.any()) else None
