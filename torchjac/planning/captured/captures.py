"""Whether what a function captured is still what it was.

A plan runs the graph of a function that was traced once. The tensors in that graph are the captured
ones themselves, so what is written into them is seen; numbers, switches, and which tensor stands
where are not. Therefore a plan keeps all *bindings* that the function can reach: a variable, an
attribute or an item, and what was there. Comparing them by identity in a few calls that loop in C
costs some 30 ns each; a binding that differs is looked at closely, for an equal number is no change.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from operator import getitem, is_
from typing import Any

from torch import Tensor

from torchjac.planning.captured.bindings import Container, Name, Namespace
from torchjac.planning.captured.reach import OF_MODULES, Reach

__all__ = ["Captures"]

_END = object()


class Captures:
    """Where a function finds what it captured, and what was there when it was looked at."""

    __slots__ = ("_containers", "_fast", "_names", "_namespaces", "tensors", "unsure_of")
    _fast: tuple[Any, ...]

    def __init__(self, found: Reach) -> None:
        self._names, self._containers = found.names, found.containers
        self._namespaces = found.namespaces
        self.tensors: tuple[Tensor, ...] = (*found.tensors.values(),)
        """The tensors found, each once."""
        self.unsure_of: str | None = found.unsure_of
        """What was met whose contents cannot be followed, in words."""
        self._prepare()

    @classmethod
    def of(cls, func: Callable[..., Any]) -> Captures:
        """Look at ``func`` and at all that it reaches."""
        return cls(Reach(func))

    @property
    def is_sure(self) -> bool:
        """Whether every binding that ``func`` can reach is among those that are compared."""
        return self.unsure_of is None

    def __len__(self) -> int:
        """The number of bindings that are compared."""
        return len(self._names) + sum(len(c.held) // len(c.views) for c in self._containers)

    def versions(self) -> tuple[int, ...]:
        """How often each tensor was written to; inference tensors do not count that."""
        return tuple([0 if tensor.is_inference() else tensor._version for tensor in self.tensors])

    def changed(self) -> str | None:
        """Describe the first binding that holds another thing now, or None."""
        reads, empty, attributes, items, (shared, keys) = self._fast
        try:
            for read, value in reads:
                if read() is not value:
                    return self._compare()
            same = (not empty or not any(empty)) and (not attributes or _hold(*attributes))
            same = same and [*map(tuple, shared)] == keys
            if same and (not items or all(map(is_, chain.from_iterable(items[0]), items[1]))):
                return None
        except (AttributeError, KeyError, ValueError, RuntimeError):  # deleted, resized
            pass
        return self._compare()

    def _prepare(self) -> None:
        """Lay the bindings out so that loops in C compare them; one assignment, for threads."""
        reads = tuple([(name.read, name.held) for name in self._names])
        empty = tuple([c.views[0] for c in self._containers if not c.held])
        full = [c for c in self._containers if c.held]
        ordered = [c for c in full if c.space is None]
        attributes = [(c.space, c.items()) for c in full if c.space is not None]
        triples = [
            (space, key, value)
            for space, held in attributes
            for key, value in held.items()
            # Those of a module's own dicts that are empty are told by their contents alone.
            if key not in OF_MODULES or value or not held.keys() >= OF_MODULES
        ]
        bound = tuple(zip(*triples, strict=True)) or ((), (), ())
        spaces, lengths = [space for space, _ in attributes], [len(held) for _, held in attributes]
        shared = [n.space for n in self._namespaces], [n.keys for n in self._namespaces]
        # A mark at the end meets something else if a container grew or shrank.
        live = (*(view for c in ordered for view in c.views), (_END,))
        held = (*chain.from_iterable(c.held for c in ordered), _END)
        sized = (spaces, lengths, *bound) if spaces else None
        self._fast = reads, empty, sized, (live, held) if ordered else None, shared

    def _compare(self) -> str | None:
        bindings: list[Name | Container | Namespace] = [
            *self._names,
            *self._containers,
            *self._namespaces,
        ]
        told = next(filter(None, (binding.difference() for binding in bindings)), None)
        if told:
            return told
        # Equal numbers are other objects now: from here on those are expected.
        self._names = [name.renewed() for name in self._names]
        self._containers = [container.renewed() for container in self._containers]
        self._namespaces = [namespace.renewed() for namespace in self._namespaces]
        self._prepare()
        return None


def _hold(spaces: Any, lengths: Any, owners: Any, keys: Any, values: Any) -> bool:
    """Whether dicts hold what they held: their number of keys, and for each key the same object."""
    return list(map(len, spaces)) == lengths and all(map(is_, map(getitem, owners, keys), values))
