"""Values that follow from constants alone, computed only when a rule asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Constant"]

# A constant of more elements counts as unknown: it would cost more than the structure it gives.
MOST_ELEMENTS = 1 << 25
_DEEPEST = 50


class Constant:
    """The values of one tensor, or how to compute them.

    Args:
        compute: gives the values.
        operands: what ``compute`` asks for.
        captured: the tensors from outside whose values go in.
    """

    def __init__(
        self,
        compute: Callable[[], Any],
        operands: tuple[Constant, ...] = (),
        captured: tuple[Tensor, ...] = (),
    ) -> None:
        self._compute: Callable[[], Any] | None = compute
        self._operands = operands
        self._value: Any = None
        self._depth: int = 1 + max((operand._depth for operand in operands), default=0)
        self._captured = captured
        if self._depth > _DEEPEST:
            # A long loop over constants must not end in a recursion as deep as it is long.
            self.value()

    def value(self) -> Any:
        """Compute once."""
        if self._compute is not None:
            self._value, self._compute = self._compute(), None
            self._depth = 0
        return self._value

    def captured(self) -> dict[int, Tensor]:
        """The tensors from outside whose values went in, by identity."""
        found: dict[int, Tensor] = {}
        stack, seen = [self], {id(self)}
        while stack:
            constant = stack.pop()
            found.update((id(tensor), tensor) for tensor in constant._captured)
            fresh = [operand for operand in constant._operands if id(operand) not in seen]
            seen.update(map(id, fresh))
            stack += fresh
        return found

    def gather(self, pick: Callable[[Tensor], Tensor]) -> Constant:
        """Some of the elements."""
        return Constant(lambda: pick(self.value()), (self,))


def fits(tensor: Tensor) -> bool:
    """Whether the values of a tensor may be looked at."""
    return tensor.numel() <= MOST_ELEMENTS and tensor.layout is torch.strided
