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

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
        return result


def look(evaluate: Callable[[], Sequence[Tensor]]) -> tuple[tuple[int, ...], int]:
    """Evaluate a function once, plainly; return the elements of its outputs and its largest result.

    The largest result is that of any op, in bytes. An exception that this raises is the function's own, for nothing is differentiated here.
    """
    with torch.no_grad(), _Largest() as largest:
        try:
            values = evaluate()
        except Exception:  # a compiled function, say, that refuses to be watched
            largest.nbytes = 0
    if not largest.nbytes:
        with torch.no_grad():
            values = evaluate()
    return tuple(value.numel() for value in values), largest.nbytes
