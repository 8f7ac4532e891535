"""Whether a function is still what it was when its derivative's pattern was found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from torchjac.foundations.pytree import flatten
from torchjac.planning.captured.bindings import CONSTANTS
from torchjac.planning.captured.captures import Captures

__all__ = ["Watch"]

_MOST = 16


class Watch:
    """What the function of one transform reached, for some signatures; it goes with the transform.

    A signature leaves out what is expensive to describe, such as the attributes of a module. Whoever
    keeps the transform has these compared by identity, in microseconds.
    """

    __slots__ = ("_func", "_in_vain", "_seen")

    def __init__(self, func: Callable[..., Any]) -> None:
        self._func, self._in_vain = func, 0
        self._seen: dict[Hashable, Captures] = {}

    def noted(
        self, key: Hashable, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[[], None]:
        """Take down what the function reaches now, called with such arguments; what comes back keeps it."""
        self._seen.pop(key, None)
        if self._in_vain == 1:
            return _keep_nothing  # the transform may have been made for this one call
        leaves = flatten((tuple(args), dict(kwargs)))[0]
        constants = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        if not all(isinstance(constant, CONSTANTS) for constant in constants):
            return _keep_nothing  # another call may bring an object that looks alike
        captures = Captures.of(functools.partial(self._func, *constants))
        return functools.partial(self._keep, key, captures) if captures.is_sure else _keep_nothing

    def _keep(self, key: Hashable, captures: Captures) -> None:
        while len(self._seen) >= _MOST:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = captures

    def is_unchanged(self, key: Hashable) -> bool:
        """Whether that is known, and still so."""
        captures = self._seen.get(key)
        if captures is not None and captures.changed() is None:
            return True
        self._in_vain += 1
        self._seen.pop(key, None)
        return False


def _keep_nothing() -> None:
    pass
