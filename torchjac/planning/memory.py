"""What is remembered of a signature between calls.

A memory may be stale, for a function can change its mind; then it costs time, never correctness. It
holds no function, module or tensor. All transforms share one, which forgets the oldest signatures when there
are many or when they are heavy; a transform that is kept holds on to its own.
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
_MOST_HELD = 16  # signatures of one transform
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
    """The seeds of the ways that take them all at once, holding so little that it always fits."""
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
    """When it was remembered; there is no such time any more if it was replaced, or all was forgotten."""

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
    """What one transform remembers; its latest signatures it does not forget, whatever others do."""

    _latest: tuple[Hashable, Record] | None = None
    _others: Store[Record] | None = None

    def recall(self, key: Hashable) -> Record | None:
        """Return what is known of a signature."""
        latest = self._latest
        if latest is not None and latest[0] is key and latest[1].age is _now:
            return latest[1]
        record = _records.get(key)
        if record is None and self._others is not None:
            record = self._others.get(key)
        if record is None or record.age is not _now:
            return None
        self._latest = key, record
        if latest is not None and latest[1] is not record:
            self._put_by(*latest)
        return record

    def remember(self, key: Hashable, record: Record) -> None:
        """Keep a record in place of another one, here and for other transforms."""
        before = _records.get(key)
        if before is not None:
            before.age = None
        record.age = _now
        latest, self._latest = self._latest, (key, record)
        if latest is not None:
            self._put_by(*latest)
        _records.put(key, record, record.nbytes)

    def _put_by(self, key: Hashable, record: Record) -> None:
        if self._others is None:
            self._others = Store(_MOST_HELD, _HEAVIEST)
        self._others.put(key, record, record.nbytes)


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
