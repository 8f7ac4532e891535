"""One look at a function nobody has seen yet: how large its outputs and what goes on inside are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["look"]


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


def look(evaluate: Callable[[], Sequence[Tensor]]) -> tuple[tuple[int, ...], int]:
    """Evaluate a function once, plainly.

    Returns:
        The elements of each of its outputs, and the bytes of the largest result of any of its ops.

    An exception that this raises is the function's own, for nothing is differentiated here.
    """
    with torch.no_grad(), _Largest() as largest:  # type: ignore[no-untyped-call]
        try:
            values = evaluate()
        except Exception:  # noqa: BLE001 - a compiled function, say, that refuses to be watched
            largest.nbytes = 0
    if not largest.nbytes:
        with torch.no_grad():
            values = evaluate()
    return tuple(value.numel() for value in values), largest.nbytes
