"""Being compiled, and running compiled functions as they were written where PyTorch would give them up."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["compiling", "uncompiled"]

_HAS_STANCES = hasattr(getattr(torch, "compiler", None), "set_stance")


def _never() -> bool:
    """What `compiling` is before torch 2.1, whose compiler cannot trace torch.func at all."""
    return False


compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", _never)
"""True while torch.compile traces the call."""


class _Stance:
    """PyTorch's, which is the process's: the first thread to come sets it, and the last sets it back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._set: Any = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._set = torch.compiler.set_stance("force_eager")
                self._set.__enter__()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._set.__exit__(None, None, None)


_stance = _Stance()
_unchanged = contextlib.nullcontext()


def uncompiled(needed: bool = True) -> contextlib.AbstractContextManager[object]:
    """Run what `torch.compile` made as it was written, within the block; since torch 2.6.

    A function that is first called below a dispatch mode, or within a transform of torch.func, is else
    given up for good: never compiled again, and with ``fullgraph=True`` it raises from then on. And the
    backward pass of a compiled function cannot be vmapped, nor differentiated.
    """
    # Nothing can be compiled before the compiler was imported, which takes a second.
    if not needed or compiling() or "torch._dynamo" not in sys.modules or not _HAS_STANCES:
        return _unchanged
    return _stance()
