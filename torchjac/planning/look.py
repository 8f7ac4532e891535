"""One look at a function nobody has seen yet: how large its outputs and what goes on inside are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["evaluate_plainly", "look"]

Evaluation: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any op makes."""

    nbytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(returned.alias_info is not None for returned in func._schema.returns):
            return result  # a view, or changed in place: no new memory
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
        return result


def look(evaluate: Evaluation, primals: Sequence[Tensor]) -> tuple[tuple[int, ...], int]:
    """Evaluate a function plainly, once unless it refuses to be watched.

    Returns:
        The elements of each of its outputs, and the bytes of the largest result of any of its ops.

    An exception that this raises is the function's own, for nothing is differentiated here.
    """
    values = None
    with _Largest() as largest:  # type: ignore[no-untyped-call]
        try:
            values = evaluate_plainly(evaluate, primals)
        except Exception:  # noqa: BLE001 - a compiled function, say, that refuses to be watched
            largest.nbytes = 0
    if values is None:
        values = evaluate_plainly(evaluate, primals)
    return tuple(value.numel() for value in values), largest.nbytes


def evaluate_plainly(evaluate: Evaluation, primals: Sequence[Tensor]) -> Sequence[Tensor]:
    """Evaluate without a graph or, for a function that takes derivatives itself, with one."""
    try:
        with torch.no_grad():
            return evaluate(primals)
    except RuntimeError as error:
        # What autograd says of a tensor that does not require grad; nothing else is tried twice.
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return evaluate([primal.detach().requires_grad_() for primal in primals])
