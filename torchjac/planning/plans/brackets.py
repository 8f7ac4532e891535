"""Where to bracket J = J₁·J₂ ⋯ J_K, and in which direction to make each part: integers in, a tree out.

Source:
    Naumann, *Optimization of Generalized Jacobian Chain Products without Memory Constraints* (2020);
    Griewank & Walther, *Evaluating Derivatives* (2nd ed., 2008), chapter 10; the recurrence is that of
    Godbole, *On Efficient Computation of Matrix Chain Products* (1973).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, TypeAlias

__all__ = [
    "Against",
    "Along",
    "Bracketing",
    "ContinueAgainst",
    "ContinueAlong",
    "Product",
    "Tree",
    "bracket",
    "one_way",
]

MARGIN = 0.1
"""The part of the cost that a less simple way has to save."""


@dataclass(frozen=True)
class Along:
    """Segments ``start`` to ``end - 1`` by passes along them, from the identity at the start."""

    start: int
    end: int
    seeds: int


@dataclass(frozen=True)
class Against:
    """Segments ``start`` to ``end - 1`` by passes against them, from the identity at the end."""

    start: int
    end: int
    seeds: int


@dataclass(frozen=True)
class ContinueAlong:
    """The rows of ``matrix``, sent along the segments from its end to ``end - 1``."""

    matrix: Tree
    end: int
    seeds: int

    @property
    def start(self) -> int:
        """Where the matrix starts."""
        return self.matrix.start


@dataclass(frozen=True)
class ContinueAgainst:
    """The columns of ``matrix``, sent against the segments from its start back to ``start``."""

    start: int
    matrix: Tree
    seeds: int

    @property
    def end(self) -> int:
        """Where the matrix ends."""
        return self.matrix.end


@dataclass(frozen=True)
class Product:
    """Two matrices, multiplied; ``right`` starts where ``left`` ends."""

    left: Tree
    right: Tree

    @property
    def start(self) -> int:
        """Where the left one starts."""
        return self.left.start

    @property
    def end(self) -> int:
        """Where the right one ends."""
        return self.right.end


Tree: TypeAlias = Along | Against | ContinueAlong | ContinueAgainst | Product


@dataclass(frozen=True)
class Bracketing:
    """How a chain is multiplied out.

    Args:
        sizes: the elements at each cut, the ends included.
        cost: of everything, in the units of the costs that came in.
        passes: how many seeds are sent in all, through however many segments at a time.
        tree: the last step, and what it is made of.
    """

    sizes: tuple[int, ...]
    cost: float
    passes: int
    tree: Tree

    @property
    def runs(self) -> tuple[int, ...]:
        """How many seeds are sent through each stretch, from the left to the right."""
        return _runs(self.tree)

    def __str__(self) -> str:
        return self._words(self.tree)

    def _words(self, tree: Tree) -> str:
        if isinstance(tree, Product):
            return f"{self._factor(tree.left, Product)} · {self._factor(tree.right)}"
        if isinstance(tree, ContinueAlong):
            part = self._shape(tree.matrix.end, tree.end)
            return f"{self._factor(tree.matrix)} sent along {part}"
        if isinstance(tree, ContinueAgainst):
            part = self._shape(tree.start, tree.matrix.start)
            return f"{self._factor(tree.matrix)} sent against {part}"
        direction = "along" if isinstance(tree, Along) else "against"
        return f"{self._shape(tree.start, tree.end)} {direction}"

    def _factor(self, tree: Tree, *bare: type[Tree]) -> str:
        words = self._words(tree)
        return words if isinstance(tree, (Along, Against, *bare)) else f"({words})"

    def _shape(self, start: int, end: int) -> str:
        return f"J[{self.sizes[start]}×{self.sizes[end]}]"


def _runs(tree: Tree) -> tuple[int, ...]:
    if isinstance(tree, Product):
        return (*_runs(tree.left), *_runs(tree.right))
    if isinstance(tree, ContinueAlong | ContinueAgainst):
        return (*_runs(tree.matrix), tree.seeds)
    return (tree.seeds,)


def bracket(
    sizes: Sequence[int],
    costs: Sequence[int],
    *,
    along: Sequence[int] | None = None,
    against: Sequence[int] | None = None,
    product_cost: float = 2,
    forward_cost: float = 1,
    margin: float = MARGIN,
) -> Bracketing:
    """Choose how to multiply out a chain of segments.

    The rules, in order:

    1. All segments in one go, in the direction that costs less.
    2. Parts in one go, multiplied, if that saves ``margin`` of the cost.
    3. Parts sent on through other segments as well, if that saves as much again: it takes a pass for
       each row or column of a whole matrix, where a product takes none.

    Of ways that cost the same the one with fewer passes, and then the one along the segments, which is
    reverse mode and the better trodden.

    Args:
        sizes: m, the size of each cut, and n.
        costs: of sending one seed through each segment, in either direction, in flops; what is only
            read and written counts as well.
        along: the seeds that it takes to make each single segment along it, where a pattern makes them
            fewer than ``sizes[i]``.
        against: likewise against it, where they are fewer than ``sizes[i + 1]``.
        product_cost: of one multiplication and addition in a product of matrices.
        forward_cost: what a pass against the segments costs, in passes along them.
        margin: the part of the cost that a less simple way has to save.

    Example:
        >>> found = bracket([1024, 512, 16, 512, 1024], [2**20, 2**14, 2**14, 2**20])
        >>> print(found, "in", found.passes, "passes")
        J[1024×16] against · J[16×1024] along in 32 passes
    """
    chain = _Chain.of(sizes, costs, along, against, product_cost, forward_cost)
    chosen = chain.whole()
    for way in (chain.cheapest(sent_on=False), chain.cheapest(sent_on=True)):
        if way.cost < (1 - margin) * chosen.cost:
            chosen = way
    return chain.bracketing(chosen)


def one_way(
    sizes: Sequence[int],
    costs: Sequence[int],
    *,
    along: Sequence[int] | None = None,
    against: Sequence[int] | None = None,
    forward_cost: float = 1,
) -> Bracketing:
    """The best without cuts: all segments in one go, in one direction. The arguments are `bracket`'s.

    Example:
        >>> print(one_way([600, 8, 600], [10_000, 10_000]))
        J[600×600] along
    """
    chain = _Chain.of(sizes, costs, along, against, 0, forward_cost)
    return chain.bracketing(chain.whole())


class _Choice(NamedTuple):
    cost: float
    passes: int
    tree: Tree


@dataclass(frozen=True)
class _Chain:
    """What `bracket` was given; ``work[i]`` is the cost of a seed through all segments before i."""

    sizes: Sequence[int]
    work: Sequence[float]
    along: Sequence[int]
    against: Sequence[int]
    product_cost: float
    forward_cost: float

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        costs: Sequence[float],
        along: Sequence[int] | None,
        against: Sequence[int] | None,
        product_cost: float,
        forward_cost: float,
    ) -> _Chain:
        work = [0, *accumulate(costs)]
        along = sizes[:-1] if along is None else along
        against = sizes[1:] if against is None else against
        return cls(sizes, work, along, against, product_cost, forward_cost)

    def bracketing(self, choice: _Choice) -> Bracketing:
        return Bracketing(tuple(self.sizes), *choice)

    def whole(self) -> _Choice:
        """All segments in one go."""
        return _least(self._at_once(0, len(self.work) - 1))

    def cheapest(self, *, sent_on: bool) -> _Choice:
        """The best for the chain, by way of the best for each part, from the short ones up."""
        last = len(self.work) - 1
        best: dict[tuple[int, int], _Choice] = {}
        for length in range(1, last + 1):
            for start in range(last - length + 1):
                end = start + length
                choices = self._at_once(start, end)
                for cut in range(start + 1, end):
                    left, right = best[start, cut], best[cut, end]
                    choices.append(self._multiplied(left, right))
                    choices += self._sent_on(left, right) if sent_on else []
                best[start, end] = _least(choices)
        return best[0, last]

    def _at_once(self, start: int, end: int) -> list[_Choice]:
        single = end == start + 1
        rows = self.along[start] if single else self.sizes[start]
        columns = self.against[start] if single else self.sizes[end]
        work = self.work[end] - self.work[start]
        return [
            _Choice(rows * work, rows, Along(start, end, rows)),
            _Choice(columns * work * self.forward_cost, columns, Against(start, end, columns)),
        ]

    def _multiplied(self, left: _Choice, right: _Choice) -> _Choice:
        tree = Product(left.tree, right.tree)
        rows, inner = self.sizes[tree.start], self.sizes[right.tree.start]
        cost = left.cost + right.cost + self.product_cost * rows * inner * self.sizes[tree.end]
        return _Choice(cost, left.passes + right.passes, tree)

    def _sent_on(self, left: _Choice, right: _Choice) -> list[_Choice]:
        """The left one sent along the segments of the right one, or that against those of the left."""
        start, cut, end = left.tree.start, right.tree.start, right.tree.end
        rows, columns = self.sizes[start], self.sizes[end]
        onward = rows * (self.work[end] - self.work[cut])
        back = columns * (self.work[cut] - self.work[start]) * self.forward_cost
        along = ContinueAlong(left.tree, end, rows)
        against = ContinueAgainst(start, right.tree, columns)
        return [
            _Choice(left.cost + onward, left.passes + rows, along),
            _Choice(right.cost + back, right.passes + columns, against),
        ]


def _least(choices: Iterable[_Choice]) -> _Choice:
    """By cost, then passes; then the first, which is along the segments."""
    return min(choices, key=lambda choice: choice[:2])
