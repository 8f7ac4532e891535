"""What a description has read, to be read again: if all of it is the same, so is the description.

To describe a function takes as long as to evaluate a small one. A transform that is kept describes the same
one at every call; reading again what was read then is less work.
"""

from __future__ import annotations

import operator
import types
import weakref
from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch

from torchjac.foundations.strides import is_dense

__all__ = ["LONG", "TENSORS", "Trail"]


class _Absent:
    """What stands for a name under which there is nothing."""


_ABSENT = repeat(_Absent())


TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_ROWS = frozenset({list, tuple})
_SIZED = frozenset({*_ROWS, str, bytes})
# What tells by its identity all that a description says of it; functions are read themselves.
_TOLD = frozenset(
    {
        *(int, float, complex, bool, str, bytes, type(None), range, torch.Size),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format),
        *(types.ModuleType, types.CodeType, _Absent),
    }
)
_parts = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__", "__dict__")
_contents = operator.attrgetter("cell_contents")
_MOST = 256  # things to look at; reading more may take longer than what is gained
LONG = 64  # of a list or a text, for descriptions too


class _Tensor(NamedTuple):
    """A tensor and what may change about it."""

    ref: weakref.ref[torch.Tensor]
    kind: type
    shape: torch.Size | None
    """Of one that requires grad."""


class _Items(NamedTuple):
    """A list, a tuple or an empty dict, and what it holds."""

    kind: type
    identity: int
    items: list[Any]


class _Function(NamedTuple):
    """What was read of a function."""

    ref: weakref.ref[Any]
    names: Sequence[str]
    ids: list[int]
    """Of what was found."""
    looked_into: list[tuple[int, Any]]
    """Where in that something is that may change itself, or be gone."""


class Trail:
    """What descriptions of ``func`` have read of it, of which Python modules and constants are kept alive.

    It is broken where something was met that may change in other ways.
    """

    __slots__ = ("_functions", "_kept", "_left", "is_broken")

    def __init__(self, func: Any) -> None:
        self._functions: list[_Function] = []
        self._kept: list[Any] = []  # numbers, texts and the like, lest others get their ids
        self._left, self.is_broken = _MOST, False
        self._held(func)

    def note(self, function: types.FunctionType, names: Sequence[str]) -> None:
        """Note what a function is made of, and what it finds under these names."""
        if self.is_broken:
            return
        try:
            found = _read(function, names)
        except ValueError:  # a variable that has no value yet
            self.is_broken = True
            return
        pairs = [(one, self._held(one)) for one in found]
        looked_into = [(k, held) for k, (one, held) in enumerate(pairs) if held is not one]
        ids = [*map(id, found)]
        self._functions.append(_Function(weakref.ref(function), names, ids, looked_into))

    def _held(self, found: Any) -> Any:
        kind = type(found)
        self._left -= 1
        if kind is types.FunctionType:
            return weakref.ref(found)
        if kind in TENSORS and is_dense(found):
            return _Tensor(weakref.ref(found), kind, found.shape if found.requires_grad else None)
        if self._left < 0 or (kind in _SIZED and len(found) > LONG):  # it may hold itself, too
            self.is_broken = True
        elif kind in _ROWS or (kind is dict and not found):
            return _Items(kind, id(found), [self._held(item) for item in found])
        elif kind is types.BuiltinFunctionType:
            # Of PyTorch, or from a Python module; it may as well be the method of an object.
            self.is_broken |= not isinstance(found.__self__, (types.ModuleType, type(None)))
        else:
            self.is_broken |= kind not in _TOLD
        self._kept.append(found)
        return found

    def is_unchanged(self) -> bool:
        """Whether all of it would be found again."""
        try:
            for ref, names, ids, looked_into in self._functions:
                function = ref()
                found = () if function is None else _read(function, names)
                if [*map(id, found)] != ids:
                    return False
                for place, held in looked_into:
                    if not _is(found[place], held):
                        return False
        except ValueError:  # a variable that has no value any more
            return False
        return True


def _read(function: types.FunctionType, names: Sequence[str]) -> list[Any]:
    """All that a description of the function looks at."""
    space = function.__globals__
    found = [*_parts(function), *_closure(function, names)]
    for known in map(space.get, names, _ABSENT):
        found.append(known)
        if type(known) is types.ModuleType:
            found += map(vars(known).get, names, _ABSENT)
        elif type(known) is types.FunctionType and known.__globals__ is not space:
            found += [known.__code__, *_closure(known, names)]
    return found


def _closure(function: types.FunctionType, names: Sequence[str]) -> list[Any]:
    found = [*map(_contents, function.__closure__ or ())]
    for known in tuple(found):
        if type(known) is types.ModuleType:
            found += map(vars(known).get, names, _ABSENT)
    return found


def _is(found: Any, held: Any) -> bool:
    kind = type(held)
    if kind is weakref.ref:
        return held() is found
    if kind is _Tensor:
        if held.ref() is not found or type(found) is not held.kind:
            return False
        if held.shape is None:
            return not found.requires_grad
        return bool(found.requires_grad) and found.shape == held.shape
    if kind is _Items:
        items = held.items
        # Another one may lie where it lay.
        is_there = id(found) == held.identity and type(found) is held.kind
        return is_there and len(found) == len(items) and all(map(_is, found, items))
    return found is held
