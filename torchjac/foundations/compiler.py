"""Being compiled, and running compiled functions as they were written where PyTorch would give them up."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["compiling", "eagerly", "uncompiled"]

Function = TypeVar("Function", bound=Callable[..., Any])


def _never() -> bool:
    """What `compiling` is before torch 2.1, whose compiler cannot trace torch.func at all."""
    return False


compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", _never)
"""True while torch.compile traces the call."""


class _Stance:
    """The compiler's, which is the process's: the first thread to come sets it, the last sets it back.

    `torch.compiler.set_stance` does the same, and refuses to where a compiled function has handed over to
    Python, which is where it calls a transform that it cannot trace.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                frames: Any = sys.modules[_FRAMES]
                self._before = frames._stance
                frames._stance = frames.DynamoStance("force_eager")
            self._inside += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                frames: Any = sys.modules[_FRAMES]
                frames._stance = self._before


_FRAMES = "torch._dynamo.eval_frame"
_stance = _Stance()
_unchanged = contextlib.nullcontext()


def uncompiled(needed: bool = True) -> contextlib.AbstractContextManager[object]:
    """Run what `torch.compile` made as it was written, within the block; since torch 2.6.

    A function that is first called below a dispatch mode, or within a transform of torch.func, is else
    given up for good: never compiled again, and with ``fullgraph=True`` it raises from then on. And the
    backward pass of a compiled function cannot be vmapped, nor differentiated.
    """
    # Nothing can be compiled before the compiler was imported, which takes a second.
    if not needed or compiling() or not hasattr(sys.modules.get(_FRAMES), "_stance"):
        return _unchanged
    return _stance


def eagerly(function: Function) -> Function:
    """The same function for a torch.compile that has broken its graph: it does not trace the inside of it."""
    return _disabled(function) if "torch._dynamo" in sys.modules else function


@functools.cache
def _disabled(function: Any) -> Any:
    return torch._dynamo.disable(function)
