"""Whether a function is still what it was when its derivative's pattern was found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from torchjac.foundations.pytree import flatten
from torchjac.planning.captured.bindings import CONSTANTS
from torchjac.planning.captured.captures import Captures
from torchjac.planning.signature import Search, of_function

__all__ = ["Watch"]

_MOST = 16
_KEPT = 3  # calls; of a transform that is not kept there are fewer


class _Description(NamedTuple):
    """What `of_function` says of a function, and how long it holds."""

    captures: Captures
    are_connected: list[bool]
    """Whether each of the captured tensors requires grad."""
    found: tuple[Hashable, bool]
    connects: bool
    seen: dict[int, int]


class Watch:
    """What the function of one transform reached, for some signatures; it goes with the transform.

    A signature leaves out what is expensive to describe, such as the attributes of a module, and takes time
    for the rest. Whoever keeps the transform has all of it compared by identity, in microseconds.
    """

    __slots__ = ("_calls", "_description", "_first", "_func", "_in_vain", "_seen")

    def __init__(self, func: Callable[..., Any]) -> None:
        self._func, self._in_vain, self._calls = func, 0, 0
        self._seen: dict[Hashable, Captures] = {}
        self._description: _Description | None = None
        self._first: tuple[Hashable, bool] | None = None

    def described(self, func: Callable[..., Any], search: Search) -> tuple[Hashable, bool]:
        """As `of_function`; to see that nothing has changed takes a tenth of describing it again."""
        known = self._description
        if known is not None:
            reached = known.captures
            if reached.changed() is None and known.are_connected == reached.connected():
                search.connects, search.seen = known.connects, known.seen.copy()
                return known.found
            self._description = None
        self._calls += 1
        if self._calls > _KEPT:
            return of_function(func, search)
        # Looked at before it is described: what changes in between is a change.
        captures = Captures.of(func) if self._calls == _KEPT else None
        are_connected = [] if captures is None else captures.connected()
        found = of_function(func, search)
        if found == self._first:
            found = self._first  # one and the same is not compared part by part
        self._first = found
        if captures is not None and captures.is_sure and search.is_sure:
            connects, seen = search.connects, search.seen.copy()
            self._description = _Description(captures, are_connected, found, connects, seen)
        return found

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
