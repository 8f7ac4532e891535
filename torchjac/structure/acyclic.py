"""Acyclic colouring: fewer colours than a star colouring, for entries put together from several products.

Adjacent vertices differ, and no cycle has two colours only. So the entries between two colours are the
edges of a forest, and all of a tree's can be found: at a leaf one stands alone, and what is known is
subtracted further in. How many products an entry takes is the size of the smaller of the two parts that
its edge divides the tree into; that is kept small, for every subtraction may cost digits.

Source:
    Coleman & Cai, *The Cyclic Coloring Problem and Estimation of Sparse Hessian Matrices* (1986);
    Gebremedhin, Tarafdar, Manne & Pothen, *New Acyclic and Star Coloring Algorithms with Application to
    Computing Hessians* (2007). The bound on the trees is our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from torchjac.structure.orders import Lists
from torchjac.structure.pattern import Indices, SparsityPattern
from torchjac.structure.star import adjacency, star_orders

__all__ = ["acyclic_colors", "color_acyclic"]

# Entries that all orders together may look at, some microseconds each.
_EFFORT = 100_000


def color_acyclic(pattern: SparsityPattern, most: int) -> Indices:
    """Colour the columns of a symmetric pattern, from 0; -1 for one without an entry.

    The best of some orders, more of them for a small pattern.

    Args:
        pattern: symmetric.
        most: the products that an entry may be put together from, two or more.
    """
    degree, neighbours = adjacency(pattern)
    orders = star_orders(degree, _EFFORT // (pattern.nnz + 1))
    found = [acyclic_colors(neighbours, order, most) for order in orders]
    best = min(found, key=lambda colors: int(colors.max(initial=-1)))
    return np.where(np.diff(pattern.csr[0]) > 0, best, -1)


def acyclic_colors(neighbours: Lists, order: Iterable[int], most: int) -> Indices:
    """Give every vertex, in ``order``, the first colour that closes no cycle and leaves all trees bounded.

    Args:
        neighbours: of each vertex.
        order: each vertex once.
        most: the products that an entry may be put together from, two or more.
    """
    starts, indices = neighbours
    colors = [-1] * (len(starts) - 1)
    forest = _Forest(most)
    # Of each vertex, by the colour of its neighbours: where it is in the trees of its colour and theirs.
    places: list[dict[int, int]] = [{} for _ in colors]
    for vertex in order:
        around: dict[int, list[int]] = {}
        for other in indices[starts[vertex] : starts[vertex + 1]]:
            if colors[other] >= 0:
                around.setdefault(colors[other], []).append(other)
        taken = set(around)
        for mates in around.values():
            known = {color for mate in mates for color in places[mate]} - taken
            taken |= {
                color
                for color in known
                if not forest.has_room([places[mate].get(color) for mate in mates])
            }
        color = next(c for c in range(len(taken) + 1) if c not in taken)
        colors[vertex] = color
        for of_mates, mates in around.items():
            for mate in mates:
                if color not in places[mate]:
                    places[mate][color] = forest.single()
            places[vertex][of_mates] = forest.join([places[mate][color] for mate in mates])
    return np.array(colors, dtype=np.int64)


class _Forest:
    """Trees that grow together, each of which can be taken apart into small pieces.

    A tree has ``most`` vertices at most, or else a hub and branches of so many: then one of the two parts
    that an edge divides it into is small. Pieces (small trees, branches, and hubs) are disjoint sets.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._parents: list[int] = []
        self._sizes: list[int] = []
        self._hubs: list[int] = []
        """Of a piece the hub that it is a branch of; of a hub itself; -1 for a small tree."""

    def single(self) -> int:
        """A tree of one vertex."""
        return self._new(1, -1)

    def _new(self, size: int, hub: int) -> int:
        self._parents.append(len(self._parents))
        self._sizes.append(size)
        self._hubs.append(hub)
        return len(self._parents) - 1

    def _piece(self, place: int) -> int:
        parents = self._parents
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    def has_room(self, places: Sequence[int | None]) -> bool:
        """Whether a vertex can be joined to all of ``places``; None for one that has no tree so far."""
        pieces = [self._piece(place) for place in places if place is not None]
        hubs = self._hubs
        trees = {piece if hubs[piece] < 0 else hubs[piece] for piece in pieces}
        if len(trees) < len(pieces):
            return False  # a cycle
        of_hubs = [piece for piece in pieces if hubs[piece] >= 0]
        if len(of_hubs) < 2:
            return not of_hubs or self._fits(of_hubs[0], pieces, len(places) - len(pieces))
        return False

    def _fits(self, piece: int, pieces: Sequence[int], more: int) -> bool:
        """Whether a new vertex, all small trees and ``more`` vertices can go into a branch at ``piece``."""
        grown = 1 + more + sum(self._sizes[other] for other in pieces if other != piece)
        if self._hubs[piece] != piece:
            grown += self._sizes[piece]
        return grown <= self._most

    def join(self, places: Sequence[int]) -> int:
        """Join a new vertex to all of ``places``, and return where it is."""
        pieces, hubs = [self._piece(place) for place in places], self._hubs
        hub = max(hubs[piece] for piece in pieces)
        branch = [piece for piece in pieces if hubs[piece] != piece]
        size = 1 + sum(self._sizes[piece] for piece in branch)
        if hub < 0 and size > self._most:
            hub = self._new(0, -1)
            for piece in [hub, *pieces]:
                hubs[piece] = hub
            return hub
        joined = self._new(size, hub)
        for piece in branch:
            self._parents[piece] = joined
        return joined
