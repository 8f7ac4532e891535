"""What is said when PyTorch refuses a way: once, with the op, the reason and the cost."""

from __future__ import annotations

import os
import sys
import traceback
import warnings

import torch

from torchjac.errors import TorchjacError, TorchjacFallbackWarning, UnsupportedError
from torchjac.evaluation.surroundings import is_out_of_memory
from torchjac.planning.ways import Way

__all__ = [
    "Refusals",
    "is_of_a_backward",
    "is_of_the_call",
    "is_refusal",
    "reason_of",
    "warn_slower",
    "warn_user",
]

# What PyTorch refuses with. Any other type, a subclass included, is the function's own.
_REFUSALS = (RuntimeError, NotImplementedError, IndexError, ValueError, TypeError, AssertionError)
# Saved tensors of other shapes under vmap than without: that is PyTorch's, too.
_CHECKPOINT = ("torch.utils.checkpoint", "CheckpointError")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
# What calls the ``backward`` of a custom autograd.Function in a pass of plain autograd.
_APPLY = torch.autograd.function.BackwardCFunction.apply.__code__
# What torch.compile wraps around functions of ours that it is not to look into.
_WRAPPER = os.path.join(_TORCH, "_dynamo", "eval_frame.py")


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's that called torchjac, however deep the call is here."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, _WRAPPER)):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level + 1)


def is_refusal(error: Exception) -> bool:
    """Whether PyTorch may have raised this, so that another way can do."""
    kind = type(error)
    is_pytorchs = (
        kind in _REFUSALS
        or (kind.__module__, kind.__name__) == _CHECKPOINT
        # Of a compiled function, under a transform that the compiler cannot step into.
        or kind.__module__ == "torch._dynamo.exc"
    )
    return is_pytorchs and not is_out_of_memory(error)


def is_of_a_backward(error: BaseException) -> bool:
    """Whether the ``backward`` of a custom `autograd.Function` raised this, and not PyTorch around it."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return _APPLY in codes and not all(
        code.co_filename.startswith((_TORCH, _PACKAGE)) for code in codes[codes.index(_APPLY) :]
    )


def is_of_the_call(error: Exception) -> bool:
    """Whether an error has nothing to do with a vmap around the function: bad input, or out of memory."""
    own = isinstance(error, TorchjacError) and not isinstance(error, UnsupportedError)
    return own or is_out_of_memory(error)


def warn_slower(name: str, error: Exception, samples: int) -> None:
    """Say that a function cannot be batched, so that it is evaluated sample by sample."""
    warn_user(
        f"{name}: PyTorch cannot vmap this function ({reason_of(error)}). It is evaluated one sample at a "
        f"time, here and at later calls with such arguments: {samples} evaluations instead of one. A "
        f"function that takes the whole batch (per_sample=False) avoids that.",
        TorchjacFallbackWarning,
    )


class Refusals:
    """The ways that were tried and what PyTorch said to each."""

    def __init__(self, name: str, way: Way, error: Exception) -> None:
        self._name = name
        self._refused = [(way, error)]

    @property
    def first(self) -> Exception:
        """What the best way was refused with."""
        return self._refused[0][1]

    def rule_out(self, way: Way) -> bool:
        """Whether ``way`` cannot work either: without a forward rule, vmap makes no difference."""
        return any(
            tried.direction == way.direction == "forward" and "forward AD" in str(error)
            for tried, error in self._refused
        )

    def add(self, way: Way, error: Exception) -> None:
        """Note that ``way`` was refused."""
        self._refused.append((way, error))

    def _reasons(self) -> str:
        return "; ".join(f"{way}: {reason_of(error)}" for way, error in self._refused)

    def warn(self, taken: Way, passes: int) -> None:
        """Say which way was taken in the end."""
        many = f"{passes} passes" if passes != 1 else "1 pass"
        warn_user(
            f"{self._name}: PyTorch refused the faster way ({self._reasons()}). Taken instead, here and "
            f"at later calls with such arguments: {taken}, {many}.",
            TorchjacFallbackWarning,
        )

    def error(self) -> UnsupportedError:
        """The error for when no way is left.

        What the user's own backward raises in plain passes it raises without us too: it is raised as it is.
        """
        for way, error in self._refused:
            if way == way.trusted and is_of_a_backward(error):
                raise error
        return UnsupportedError(
            f"{self._name}: PyTorch cannot differentiate this function in any way that the options allow "
            f"({self._reasons()}). The function itself runs. Use mode='auto' if you chose another mode, "
            f"or replace the op that is named."
        )


def reason_of(error: Exception) -> str:
    """The first line of what PyTorch said, with the op in front where only the engine knows it."""
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    line = line if len(line) <= 160 else line[:157] + "..."
    op = getattr(error, "torchjac_op", None)
    return f"{op}: {line}" if op else line
