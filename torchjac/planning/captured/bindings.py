"""A binding: where a function finds something, and what was there when it was looked at."""

from __future__ import annotations

import enum
import logging
import numbers
import re
import reprlib
import types
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CONSTANTS", "MISSING", "Container", "Name", "Namespace", "noun", "same"]

# What cannot change inside; tuples are looked into.
CONSTANTS = (
    *(numbers.Number, str, bytes, type(None), type(...), range, enum.Enum, re.Pattern),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.finfo, torch.iinfo),
    *(torch._ops.OpOverload, torch._ops.OpOverloadPacket, types.CodeType, logging.Logger),
    *(types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType),
    *(types.GetSetDescriptorType, types.MemberDescriptorType),
)
MISSING = object()


class Name(NamedTuple):
    """A variable, an attribute or a slot."""

    label: str
    read: Callable[[], Any]
    held: Any = None

    def difference(self) -> str | None:
        """Say what is held now where another thing was, or None."""
        return difference_of(self.label, self.held, self.renewed().held)

    def renewed(self) -> Name:
        """The same with what is held now."""
        try:
            return self._replace(held=self.read())
        except (AttributeError, ValueError):  # not assigned: an attribute, a closure variable
            return self._replace(held=MISSING)


class Container(NamedTuple):
    """The items of a list, a set or a dict, or all attributes of an object."""

    label: Callable[[Any], str]
    views: tuple[Collection[Any], ...]
    """What it holds, live: the items, or the keys and then the values."""
    space: Mapping[str, Any] | None = None
    """The dict, where the order of its keys does not matter."""
    held: tuple[Any, ...] = ()

    def items(self) -> dict[Any, Any]:
        if len(self.views) == 1:
            return dict(enumerate(self.held))
        half = len(self.held) // 2
        return dict(zip(self.held[:half], self.held[half:], strict=True))

    def difference(self) -> str | None:
        """Say what is held now where another thing was, or None."""
        before, now = self.items(), self.renewed().items()
        for key in {**before, **now}:
            told = difference_of(self.label(key), before.get(key, MISSING), now.get(key, MISSING))
            if told:
                return told
        if self.space is None and list(before) != list(now):
            return f"{self.label(next(iter(before)))} and others changed places"
        return None

    def renewed(self) -> Container:
        """The same with what is held now."""
        return self._replace(held=(*chain(*self.views),))


class Namespace(NamedTuple):
    """A Python module or a class, which others write into as well: only names that count are looked at."""

    label: str
    space: Mapping[str, Any]
    counts: Callable[[str, Any], bool]
    """Whether a name, and what is there, counts."""
    names: frozenset[str] = frozenset()
    """Those that did; what they hold is a `Name` each."""
    keys: tuple[str, ...] = ()
    """All, while nobody writes into it."""

    def difference(self) -> str | None:
        """Say which name is there by now, or None."""
        # A part of a package is new when somebody imports it, and changes nothing.
        new = [
            name
            for name, value in dict(self.space).items()
            if name not in self.names
            and not isinstance(value, types.ModuleType)
            and self.counts(name, value)
        ]
        return f"{self.label}.{min(new)} is new" if new else None

    def renewed(self) -> Namespace:
        """The same with what is there now."""
        there = dict(self.space)
        names = frozenset([name for name, value in there.items() if self.counts(name, value)])
        return self._replace(names=names, keys=(*there,))


def same(before: Any, now: Any) -> bool:
    """Whether one stands for the other: it is the same object, or an equal constant."""
    if before is now:
        return True
    if type(before) is not type(now):
        return False
    if isinstance(before, slice):
        return same((before.start, before.stop, before.step), (now.start, now.stop, now.step))
    if isinstance(before, tuple):
        return len(before) == len(now) and all(map(same, before, now))
    if isinstance(before, numbers.Number) and not isinstance(before, int):
        return repr(before) == repr(now)  # tells 0.0 from -0.0, and not nan from nan
    return isinstance(before, CONSTANTS) and bool(before == now)


def difference_of(label: str, before: Any, now: Any) -> str | None:
    """Say in words that ``label`` holds another thing now, or None."""
    if same(before, now):
        return None
    if before is MISSING or now is MISSING:
        return f"{label} is {'new' if before is MISSING else 'gone'}"
    one, other = noun(before), noun(now)
    if one == other:
        return f"{label} is another {one} now"
    return f"{label} was {one} and is {other} now"


def noun(value: Any) -> str:
    """A constant as it is written, a function by its name, anything else by its type."""
    if isinstance(value, CONSTANTS):
        return reprlib.repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(noun, value))})"
    if isinstance(value, Tensor):
        return "tensor"
    return str(getattr(value, "__name__", type(value).__name__))
