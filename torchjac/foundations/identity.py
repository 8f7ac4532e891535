"""Objects that are told apart by what they are, and not kept alive by it."""

from __future__ import annotations

import weakref
from typing import Any

__all__ = ["Identity"]


class Identity:
    """An object told apart by identity and held weakly: once it is gone it equals nothing."""

    __slots__ = ("_hash", "_ref")

    def __init__(self, subject: object) -> None:
        self._ref = weakref.ref(subject)
        self._hash = id(subject)

    def is_of(self, ref: weakref.ref[Any]) -> bool:
        """Whether a weak reference is to the same object, be it gone or not."""
        return self._ref is ref

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        subject = self._ref()
        return isinstance(other, Identity) and subject is not None and subject is other._ref()
