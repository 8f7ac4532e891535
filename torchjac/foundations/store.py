"""A mapping that forgets what it has held longest, by number and by weight."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Store"]

Value = TypeVar("Value")


class Store(Generic[Value]):
    """Keeps the latest values; threads may use it at once.

    Args:
        most: how many values are kept at most.
        heaviest: how many bytes they may hold together; the latest is kept whatever it weighs.
    """

    def __init__(self, most: int, heaviest: int) -> None:
        self._most, self._heaviest = most, heaviest
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._weight = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """Return what is kept under ``key``."""
        found = self._values.get(key)
        return None if found is None else found[0]

    def put(self, key: Hashable, value: Value, weight: int = 0) -> None:
        """Keep ``value``, which holds ``weight`` bytes, and forget the oldest if that is too much."""
        with self._lock:
            self._drop(key)
            self._values[key] = value, weight
            self._weight += weight
            while len(self._values) > self._most or (
                self._weight > self._heaviest and len(self._values) > 1
            ):
                self._drop(next(iter(self._values)))

    def _drop(self, key: Hashable) -> None:
        _, weight = self._values.pop(key, (None, 0))
        self._weight -= weight

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self._weight = 0
