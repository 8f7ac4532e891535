"""What a description has read, to be read again: if all of it is the same, so is the description.

To describe a function takes as long as to evaluate a small one. A transform that is kept describes the same
one at every call; reading again what was read then takes a tenth of that.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

__all__ = ["Trail"]

_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_OF_FUNCTIONS = ("__code__", "__defaults__", "__kwdefaults__", "__dict__")
_ROWS = frozenset({list, tuple})
# What tells by its identity all that a description says of it; functions are read themselves.
_TOLD = frozenset(
    {
        *(int, float, complex, bool, str, bytes, type(None), range, torch.Size),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format),
        *(types.ModuleType, types.FunctionType, types.CodeType),
    }
)
_MOST = 256  # things to look at; reading more may take longer than what is gained


class _Tensor(NamedTuple):
    """A tensor, which is not kept alive, and what may change about it."""

    ref: weakref.ref[torch.Tensor]
    kind: type
    shape: torch.Size | None
    """Of one that requires grad."""


class _Items(NamedTuple):
    """A list, a tuple or an empty dict, which is not kept alive, and what it holds."""

    kind: type
    identity: int
    items: list[Any]


class Trail:
    """Where a description has found things, and what was there.

    It is broken where something was met that may change in other ways.
    """

    __slots__ = ("_left", "_places", "is_broken")

    def __init__(self) -> None:
        self._places: list[tuple[Callable[[], Any], Any]] = []
        self._left, self.is_broken = _MOST, False

    def note(self, function: types.FunctionType, names: Iterable[str]) -> None:
        """Note what a function is made of, and what it finds under these names."""
        self._note_parts(function, *_OF_FUNCTIONS)
        self._note_closure(function)
        space = function.__globals__
        for name in names:
            self._note(functools.partial(space.get, name))
            known = space.get(name)
            if isinstance(known, types.ModuleType):
                for attribute in names:
                    self._note(functools.partial(vars(known).get, attribute))
            elif isinstance(known, types.FunctionType) and known.__globals__ is not space:
                self._note_parts(known, "__code__")
                self._note_closure(known)

    def _note_parts(self, function: types.FunctionType, *names: str) -> None:
        for name in names:
            self._note(functools.partial(getattr, function, name))

    def _note_closure(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            self._note(functools.partial(getattr, cell, "cell_contents"))

    def _note(self, read: Callable[[], Any]) -> None:
        try:
            self._places.append((read, self._held(read())))
        except ValueError:  # a variable that has no value yet
            self.is_broken = True

    def _held(self, found: Any) -> Any:
        kind = type(found)
        self._left -= 1
        self.is_broken |= self._left < 0
        if kind in _TENSORS:
            return _Tensor(weakref.ref(found), kind, found.shape if found.requires_grad else None)
        if kind in _ROWS and not self.is_broken:  # one may hold itself
            return _Items(kind, id(found), [self._held(item) for item in found])
        if kind is dict and not found:
            return _Items(kind, id(found), [])
        if kind is types.BuiltinFunctionType:
            # Of PyTorch, or from a Python module; it may as well be the method of an object.
            self.is_broken |= not isinstance(found.__self__, (types.ModuleType, type(None)))
        else:
            self.is_broken |= kind not in _TOLD
        return found

    def is_unchanged(self) -> bool:
        """Whether all of it would be found again."""
        try:
            for read, held in self._places:
                found = read()
                if found is not held and not _is(found, held):
                    return False
        except ValueError:  # a variable that has no value any more
            return False
        return True


def _is(found: Any, held: Any) -> bool:
    kind = type(held)
    if kind is _Tensor:
        if held.ref() is not found or type(found) is not held.kind:
            return False
        shape = held.shape
        return found.requires_grad is (shape is not None) and shape in (None, found.shape)
    if kind is _Items:
        items = held.items
        # Another one may lie where it lay.
        is_there = id(found) == held.identity and type(found) is held.kind
        return is_there and len(found) == len(items) and all(map(_is, found, items))
    return found is held
