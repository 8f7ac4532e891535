"""Evaluations that nobody is to notice leave the buffers of modules as they are.

A module may write into its buffers whenever it is evaluated: batch norm counts and averages, a spectral
norm takes a step of its power iteration. The evaluations that a first call makes on top of the one that
the user asked for (to see how large the outputs are, to compare) would move them too, and the answer
would be that of another state.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from torchjac.evaluation.programs.tracing import UntraceableError
from torchjac.evaluation.surroundings import (
    are_faked,
    is_traced,
    without_modes,
    without_transforms,
)

__all__ = ["Buffers"]


class Buffers:
    """The buffers of some modules, and what was in them at a call's start."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        every = {id(part): part for module in modules for part in module.modules()}
        dicts = [part._buffers for part in every.values()]
        # Those of a scripted module are out of reach.
        self._dicts = [d for d in dicts if d and type(d) in (dict, OrderedDict)]
        self._start = [_copied(buffers) for buffers in self._dicts]

    def apart(self) -> contextlib.AbstractContextManager[None]:
        """Leave them as they are, whatever is written within the block."""
        return self._written_back() if are_faked() else self._replaced()

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        """Have copies of what was there at the start in their place."""
        before = [dict(buffers) for buffers in self._dicts]
        try:
            for buffers, start in zip(self._dicts, self._start, strict=True):
                buffers.update(_copied(start))
            yield
        finally:
            _put_back(self._dicts, before)

    @contextlib.contextmanager
    def _written_back(self) -> Iterator[None]:
        """Write back what was there, for in a trace they are constants, and have to be themselves."""
        before = [dict(buffers) for buffers in self._dicts]
        kept = [_copied(buffers) for buffers in self._dicts]
        tensors = [buffer for buffers in before for buffer in buffers.values()]
        versions = [_version(tensor) for tensor in tensors]
        try:
            yield
            self._refuse_others(before)
        finally:
            _put_back(self._dicts, before)
            values = [value for buffers in kept for value in buffers.values()]
            for tensor, version, value in zip(tensors, versions, values, strict=True):
                if _version(tensor) != version:
                    assert tensor is not None
                    assert value is not None
                    with without_modes(), without_transforms(), torch.no_grad():
                        # Not counted as a change: the graph may have saved it, to be traced as well.
                        tensor.data.copy_(value)

    def _refuse_others(self, before: Sequence[dict[str, Tensor | None]]) -> None:
        """A graph would not put other tensors in the place of buffers, as the function does."""
        if not is_traced():
            return
        for buffers, kept in zip(self._dicts, before, strict=True):
            for name in {**buffers, **kept}:
                if buffers.get(name) is not kept.get(name):
                    raise UntraceableError(
                        f"it puts another tensor in the place of the buffer {name!r}"
                    )


def _copied(buffers: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    with without_modes(), without_transforms(), torch.no_grad():
        return {name: None if b is None else b.clone() for name, b in buffers.items()}


def _put_back(
    dicts: Iterable[dict[str, Tensor | None]], before: Iterable[dict[str, Tensor | None]]
) -> None:
    for buffers, kept in zip(dicts, before, strict=True):
        if buffers.keys() != kept.keys():
            buffers.clear()
        buffers.update(kept)


def _version(tensor: Tensor | None) -> int:
    # A trace would take it for the function that asks.
    with torch._C.DisableTorchFunction():
        return 0 if tensor is None or tensor.is_inference() else tensor._version
