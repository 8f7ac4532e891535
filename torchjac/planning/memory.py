"""What is remembered of a signature between calls.

A memory may be stale, for a function can change its mind; then it costs time, never correctness. It
holds no function, module or tensor. All transforms share one, which forgets the oldest signatures when there
are many or when they are heavy; a transform that is kept also has a small one of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torchjac.evaluation.engines import Direction
from torchjac.foundations.identity import Identity
from torchjac.foundations.seeds import Seeds
from torchjac.foundations.store import Store
from torchjac.planning.compressed import Compression
from torchjac.planning.ways import Way

__all__ = [
    "Alike",
    "Known",
    "Memory",
    "Record",
    "forget_everything",
    "known_of",
    "recall_alike",
    "remember_alike",
]

_MOST = 4096
_HEAVIEST = 2**29  # bytes of indices that belong to sparsity patterns
# Of one transform, beside its latest signature.
_MOST_HELD, _HEAVIEST_HELD = 16, 2**28
# Points at which a comparison may tell nothing before it is given up.
_MOST_UNSETTLED = 3


@dataclass
class Record:
    """What earlier calls of one signature found out."""

    output_counts: tuple[int, ...]
    """Elements of each differentiable output."""
    largest: int
    """Bytes of the largest tensor that any op of the function made."""
    ways: tuple[Way, ...]
    """The ways that the options leave, best first."""
    slower: bool = False
    """Whether the problem's own function was refused, and its slower alternative is used."""
    refused: int = 0
    """How many of the ways, in their order, PyTorch has refused."""
    compression: Compression | None = None
    """The sparsity that is made use of."""
    prepared: dict[tuple[Way, Direction], Seeds] = field(default_factory=dict)
    """The seeds of the ways that take them all at once, for they hold so little that it always fits, or are
    one."""
    keeps_constants: bool = True
    """Whether forward passes keep operands without a tangent apart."""
    repeats: tuple[Way, Seeds] | None = None
    """The way and the seeds of calls that only repeat one whose result is known to be right."""
    instead: Way | None = None
    """The way that has to be taken because a check has failed of the best one."""
    checked: set[Way] = field(default_factory=set)
    """The ways whose result has been compared with a trusted pass."""
    unsettled: int = 0
    """How many comparisons could not tell much, so that the next call is compared too."""
    guest: tuple[Hashable, int] = (None, 0)
    """The signature that was last served with this record though it has another, and how often in a row."""
    age: object = None
    """What tells whether it counts: the time that all is remembered since, unless another one replaced it."""

    @property
    def next_way(self) -> Way:
        """The way that the next call takes."""
        return self.instead or self.ways[self.refused]

    @property
    def nbytes(self) -> int:
        """What it holds that is worth being counted."""
        return self.compression.nbytes if self.compression else 0

    def apart(self) -> Record:
        """A copy for runs of which nothing is to be remembered: they may be of other seeds or programs."""
        return replace(self, prepared={}, repeats=None, instead=None, checked=set(), unsettled=0)


@dataclass
class Known:
    """What products with the operators of one signature found out."""

    steps: dict[str, int] = field(default_factory=dict)
    """For each side, how many of the ways are no good here."""
    checked: set[Hashable] = field(default_factory=set)
    """The comparisons that have been made."""
    unsettled: dict[Hashable, int] = field(default_factory=dict)
    """At how many points a comparison could not tell much."""

    def settle(self, check: Hashable, *, telling: bool) -> None:
        """Note that ``check`` was made at a point; where all is zero, it would pass whatever is wrong."""
        count = self.unsettled.get(check, 0) + 1
        if telling or count > _MOST_UNSETTLED:
            self.checked.add(check)
        else:
            self.unsettled[check] = count


class Alike(NamedTuple):
    """A signature among those that differ in captured tensors alone."""

    key: Hashable
    tensors: Sequence[Identity]
    """Those that it captured."""
    decisive: frozenset[int]
    """The places of those that its pattern depends on."""

    def serves(self, tensors: Sequence[Identity]) -> bool:
        """Whether its pattern is that of another one, over such tensors."""
        pairs = enumerate(zip(self.tensors, tensors, strict=True))
        return all(one == other for place, (one, other) in pairs if place in self.decisive)


_records: Store[Record] = Store(_MOST, _HEAVIEST)
_alike: Store[Alike] = Store(_MOST, _HEAVIEST)
_known: Store[Known] = Store(_MOST, _HEAVIEST)
_now = object()


class Memory:
    """What one transform remembers: what it met lately, even where the shared memory has forgotten that."""

    _latest: tuple[Hashable, Record] | None = None
    _others: Store[Record] | None = None

    def recall(self, key: Hashable) -> Record | None:
        """Return what is known of a signature."""
        latest = self._latest
        if latest is not None and latest[0] is key and latest[1].age is _now:
            return latest[1]
        record = _records.get(key) or self._own(key)
        if record is None or record.age is not _now:
            return None
        if latest is None or latest[1] is record:
            self._latest = key, record
        else:
            self._hold(key, record)
        return record

    def remember(self, key: Hashable, record: Record) -> None:
        """Keep a record in place of the one before, here and for other transforms."""
        for before in (_records.get(key), self._own(key)):
            if before is not None:
                before.age = None
        record.age = _now
        self._hold(key, record)
        _records.put(key, record, record.nbytes)

    def _own(self, key: Hashable) -> Record | None:
        latest = self._latest
        if latest is not None and latest[0] == key:
            return latest[1]
        return None if self._others is None else self._others.get(key)

    def _hold(self, key: Hashable, record: Record) -> None:
        latest, self._latest = self._latest, (key, record)
        if latest is None or latest[1].age is not _now:
            return
        if self._others is None:
            self._others = Store(_MOST_HELD, _HEAVIEST_HELD)
        self._others.put(*latest, latest[1].nbytes)


def remember_alike(likeness: Hashable, alike: Alike) -> None:
    """Note which signature of a code was seen last."""
    _alike.put(likeness, alike)


def recall_alike(likeness: Hashable) -> Alike | None:
    """Which signature of a code was seen last."""
    return _alike.get(likeness)


def known_of(key: Hashable) -> Known:
    """Return what products of a signature have found out, to be added to."""
    found = _known.get(key)
    if found is None:
        found = Known()
        _known.put(key, found)
    return found


def forget_everything() -> None:
    """Start anew; tests count first-time work with it."""
    global _now
    _now = object()
    _records.clear()
    _alike.clear()
    _known.clear()
