"""Whether a function is still what it was when its derivative's pattern was found."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from torchjac.foundations.pytree import flatten
from torchjac.planning.captured.bindings import CONSTANTS
from torchjac.planning.captured.captures import Captures
from torchjac.planning.memory import Record

__all__ = ["Watch"]

_MOST = 16


class Watch:
    """What the function of one transform reached, for some signatures; it goes with the transform.

    A signature leaves out what is expensive to describe, such as the attributes of a module. Whoever
    keeps the transform has these compared by identity, in microseconds.
    """

    __slots__ = ("_func", "_gives_up", "_in_vain", "_seen")

    def __init__(self, func: Callable[..., Any]) -> None:
        self._func, self._in_vain, self._gives_up = func, 0, False
        self._seen: dict[Hashable, tuple[weakref.ref[Record], Captures]] = {}

    def noted(
        self, key: Hashable, args: Sequence[Any], kwargs: Mapping[str, Any], *, again: bool
    ) -> Callable[[Record], None]:
        """Take down what the function reaches now, called with such arguments.

        What comes back keeps it, for a record of the pattern.
        ``again`` is whether its pattern is only compared, where an entry that it lacks may be zero. That is
        good enough for a transform that meets the function as it is, not for one whose function has changed.
        """
        self._seen.pop(key, None)
        # A first call in vain may be the only one: to take it down takes longer than to compare it.
        if again and (self._gives_up or self._in_vain < 2):
            return _keep_nothing
        captures = self._captures(args, kwargs)
        if captures is None:
            self._gives_up = True
            return _keep_nothing
        return functools.partial(self._keep, key, captures)

    def _captures(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Captures | None:
        """What the function reaches, if all of that can be compared."""
        leaves = flatten((tuple(args), dict(kwargs)))[0]
        constants = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        if not all(isinstance(constant, CONSTANTS) for constant in constants):
            return None  # another call may bring an object that looks alike
        captures = Captures.of(functools.partial(self._func, *constants))
        return captures if captures.is_sure else None

    def _keep(self, key: Hashable, captures: Captures, record: Record) -> None:
        while len(self._seen) >= _MOST:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = weakref.ref(record), captures

    def is_unchanged(self, key: Hashable, record: Record) -> bool:
        """Whether what the function reached is known for that very record, and still so."""
        seen = self._seen.get(key)
        if seen is None or seen[0]() is not record:
            self._in_vain += 1
            return False
        if seen[1].changed() is None:
            return True
        self._seen.pop(key, None)
        self._gives_up = True
        return False


def _keep_nothing(record: Record) -> None:
    pass
