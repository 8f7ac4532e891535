"""Python's garbage collector, kept away where it does harm."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """Do without the collector while functions run on fake tensors.

    In torch 2.4 it takes away the attributes of a fake tensor that a graph alone holds, and the backward pass
    then finds a fake tensor without a mode.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
