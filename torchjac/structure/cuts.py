"""Cuts of a graph: the few tensors that everything from the sources to the sinks runs through.

A cut of k elements makes of an m×n map the product of an m×k and a k×n map. All cuts here are
*frontiers*: a set of nodes, closed under predecessors, is done, and the cut is what the rest of the graph
still reads of it. So nothing is computed on both sides of a cut.

Source:
    Ford & Fulkerson, *Maximal Flow Through a Network* (1956), for the minimum cut; Dinic, *Algorithm for
    Solution of a Problem of Maximum Flow in Networks with Power Estimation* (1970), for finding it;
    Picard, *Maximal Closure of a Graph* (1976), for the edges that keep what is done closed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

__all__ = ["Cut", "find_cuts", "segments"]

Predecessors: TypeAlias = Sequence[Sequence[int]]
Paths: TypeAlias = dict[int, list[int]]
Readers: TypeAlias = dict[int, list[int]]

_MOST = 32
# Edges that all minimum cuts together may look at, a third of a microsecond each.
_EFFORT = 1_000_000
_ENDLESS = 1 << 62
_SOURCE, _SINK = -1, -2


class Cut(NamedTuple):
    """Nodes that every path from a source to a sink meets, in ascending order.

    Args:
        nodes: the nodes.
        size: the number of elements of their tensors together.
    """

    nodes: tuple[int, ...]
    size: int


def find_cuts(
    predecessors: Predecessors,
    sizes: Sequence[int],
    sources: Collection[int],
    sinks: Collection[int],
) -> list[Cut]:
    """The cuts worth knowing, in the order of the chain: sizes fall to the narrowest, and then rise.

    The first are all sources and the last all sinks, of those that are on a path from one to the other;
    no other node counts. Between two cuts there is none that is narrower than both.

    A cut that is as wide as those on both sides of it never helps: products may meet at the neighbour
    from whose side fewer seeds come. So there remain the narrowest and the steps that lead down to it,
    each at most half as wide as the one before, and no more than 32 in all.

    Args:
        predecessors: of each node, in a topological order. What leads into a source does not count.
        sizes: the number of elements of each node.
        sources: the nodes that are given, in any order.
        sinks: the nodes that are wanted. One may be a source too: it is in every cut then.

    Example:
        >>> # 0: x, 1: W @ x, 2: tanh, 3: V @ tanh
        >>> find_cuts([[], [0], [1], [2]], [600, 8, 8, 600], sources=[0], sinks=[3])
        [Cut(nodes=(0,), size=600), Cut(nodes=(1,), size=8), Cut(nodes=(3,), size=600)]
    """
    paths = _paths(predecessors, sources, sinks)
    first = _cut(sizes, paths.keys() & set(sources))
    last = _cut(sizes, paths.keys() & set(sinks))
    chain, order = [first], list(paths)
    for single in [*_singles(paths, sizes, first, last), last]:
        between = _narrowest_between(paths, order, sizes, chain[-1], single)
        chain += [single] if between is None else [between, single]
    step = 2
    while len(kept := _valley(chain, step)) > _MOST:
        step *= 2
    return kept


def segments(cuts: Sequence[Cut], predecessors: Predecessors) -> list[list[int]]:
    """Of each two consecutive cuts, what leads from the one to the other, in topological order.

    Whatever the cut at the end needs and the cut at the start has not got, that end included. Each node
    on a path is in one segment, but for the sources, which are in none.

    Example:
        >>> predecessors = [[], [0], [1], [2]]
        >>> segments(find_cuts(predecessors, [600, 8, 8, 600], [0], [3]), predecessors)
        [[1], [2, 3]]
    """
    paths = _paths(predecessors, cuts[0].nodes, cuts[-1].nodes)
    needed_by = dict.fromkeys(paths, len(cuts) - 1)
    for number in reversed(range(len(cuts))):
        needed_by.update(dict.fromkeys(cuts[number].nodes, number))
    found: list[list[int]] = [[] for _ in cuts]
    for node in reversed(paths):
        for before in paths[node]:
            needed_by[before] = min(needed_by[before], needed_by[node])
        found[needed_by[node]].append(node)
    return [nodes[::-1] for nodes in found[1:]]


def _paths(predecessors: Predecessors, sources: Collection[int], sinks: Collection[int]) -> Paths:
    """The predecessors of each node on a path from a source to a sink, as far as they are on one."""
    starts, wanted = set(sources), set(sinks)
    reached = set(starts)
    for node, before in enumerate(predecessors):
        if not reached.isdisjoint(before):
            reached.add(node)
    for node in reversed(range(len(predecessors))):
        if node in wanted and node not in starts:
            wanted.update(predecessors[node])
    alive = reached & wanted
    return {
        node: [] if node in starts else [b for b in dict.fromkeys(predecessors[node]) if b in alive]
        for node in sorted(alive)
    }


def _cut(sizes: Sequence[int], nodes: Iterable[int]) -> Cut:
    ordered = tuple(sorted(nodes))
    return Cut(ordered, sum(sizes[node] for node in ordered))


def _valley(chain: Sequence[Cut], step: int) -> list[Cut]:
    """The ends, the narrowest (an end, if none is narrower), and the steps down to it on both sides."""
    last = len(chain) - 1
    bottom = min([0, last, *range(1, last)], key=lambda at: chain[at].size)
    down = _steps(chain[: bottom + 1], step)
    up = _steps(chain[bottom:][::-1], step)
    return down + up[::-1][1:]


def _steps(chain: Sequence[Cut], step: int) -> list[Cut]:
    """The first, the last, which is the narrowest, and those that are much narrower than all before."""
    kept = [chain[0]]
    for cut in chain[1:-1]:
        if step * cut.size <= kept[-1].size:
            kept.append(cut)
    if len(kept) > 1 and kept[-1].size < step * chain[-1].size:
        kept.pop()
    return [*kept, *chain[1:][-1:]]


def _singles(paths: Paths, sizes: Sequence[int], first: Cut, last: Cut) -> list[Cut]:
    """The nodes that every path runs through: no edge leads past them, in whatever order."""
    furthest_reader = {before: node for node in paths for before in paths[node]}
    furthest_reader.update(dict.fromkeys(last.nodes, len(sizes)))
    found, furthest = [], max(first.nodes, default=0)
    for node in paths:
        if furthest <= node and (node,) not in (first.nodes, last.nodes):
            found.append(Cut((node,), sizes[node]))
        furthest = max(furthest, furthest_reader[node])
    return found


def _narrowest_between(
    paths: Paths, order: Sequence[int], sizes: Sequence[int], start: Cut, end: Cut
) -> Cut | None:
    """The narrowest cut between two, if it is narrower than both."""
    nodes = order[bisect_left(order, min(start.nodes, default=0)) :]
    nodes = nodes[: bisect_left(nodes, max(end.nodes, default=0) + 1)]
    if len(nodes) <= 2:
        return None
    readers: dict[int, list[int]] = {node: [] for node in (_SOURCE, *nodes)}
    for node in nodes:
        for before in (_SOURCE,) if node in start.nodes else paths[node]:
            readers[before].append(node)
    for node in end.nodes:
        readers[node].append(_SINK)
    best = min(start, end, _narrowest_so_far(readers, nodes, sizes), key=lambda cut: cut.size)
    effort = _EFFORT * len(nodes) // len(order)
    best = _minimum(readers, nodes, sizes, best.size, effort) or best
    return None if best in (start, end) else best


def _narrowest_so_far(readers: Readers, nodes: Sequence[int], sizes: Sequence[int]) -> Cut:
    """The narrowest of the cuts where the nodes up to one of them are done, in the order they have."""
    last_reader = {
        node: len(sizes) if _SINK in readers[node] else max(readers[node]) for node in nodes
    }
    read_last: defaultdict[int, list[int]] = defaultdict(list)
    for node, reader in last_reader.items():
        read_last[reader].append(node)
    given = set(readers[_SOURCE])
    size = sum(sizes[node] for node in given)
    least, place = size, nodes[0] - 1
    for node in nodes:
        size += (node not in given) * sizes[node] - sum(sizes[done] for done in read_last[node])
        if size < least:
            least, place = size, node
    return _cut(sizes, [v for v in nodes if (v <= place or v in given) and last_reader[v] > place])


def _minimum(
    readers: Readers, nodes: Sequence[int], sizes: Sequence[int], limit: int, effort: int
) -> Cut | None:
    """The narrowest cut of all, if it is below the limit.

    None too where finding it takes too long; nothing is lost then but the time it would have saved.
    """
    narrow = [node for node in nodes if sizes[node] < limit]
    side = _sides(readers, narrow)
    if side[_SOURCE] == side[_SINK]:
        return None
    network = _Network()
    for node in narrow:
        # Done, but still read: the node is cut. Done, and so are all that read it: it is not.
        network.add(side[node], _read(node), sizes[node])
        for reader in {side[reader] for reader in readers[node]}:
            network.add(_read(node), reader, _ENDLESS)
            network.add(reader, side[node], _ENDLESS)  # what is read is done
    done = network.saturate(side[_SOURCE], side[_SINK], limit, effort)
    if done is None:
        return None
    return _cut(sizes, [v for v in narrow if side[v] in done and _read(v) not in done])


def _read(node: int) -> int:
    """The vertex of the network that stands for a node whose readers are all done."""
    return -3 - node


def _sides(readers: Readers, narrow: Iterable[int]) -> dict[int, int]:
    """A name for each set of nodes that are done all or none: the readers of a wide node, and itself."""
    parent = {node: node for node in (*readers, _SINK)}

    def name(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for node in readers.keys() - set(narrow):
        for reader in readers[node]:
            parent[name(reader)] = name(node)
    return {node: name(node) for node in parent}


class _Network:
    """Edges with room for a flow; edge ``e ^ 1`` is edge e backwards."""

    def __init__(self) -> None:
        self.edges: defaultdict[int, list[int]] = defaultdict(list)
        self.heads: list[int] = []
        self.rooms: list[int] = []
        self.looked = 0

    def add(self, tail: int, head: int, room: int) -> None:
        for at, to, free in ((tail, head, room), (head, tail, 0)):
            self.edges[at].append(len(self.heads))
            self.heads.append(to)
            self.rooms.append(free)

    def saturate(self, source: int, sink: int, limit: int, effort: int) -> Collection[int] | None:
        """What the source still reaches at the greatest flow; None if that is not below the limit."""
        flow = 0
        while sink in (levels := self._levels(source, sink)):
            for amount in self._augment(levels, source, sink):
                flow += amount
                if flow >= limit or self.looked > effort:
                    return None
        return levels

    def _levels(self, source: int, sink: int) -> dict[int, int]:
        levels, queue = {source: 0}, [source]
        for at in queue:
            if at == sink:
                break
            self.looked += len(self.edges[at])
            for edge in self.edges[at]:
                head = self.heads[edge]
                if self.rooms[edge] and head not in levels:
                    levels[head] = levels[at] + 1
                    queue.append(head)
        return levels

    def _augment(self, levels: dict[int, int], source: int, sink: int) -> Iterator[int]:
        """Flows along shortest paths, until there are none: each edge fails to lead on only once."""
        untried = {at: list(self.edges[at]) for at in levels}
        path: list[int] = []
        at = source
        while at != source or untried[source]:
            if at == sink:
                amount = min(self.rooms[edge] for edge in path)
                for edge in path:
                    self.rooms[edge] -= amount
                    self.rooms[edge ^ 1] += amount
                yield amount
                path, at = [], source
            elif untried[at]:
                self.looked += 1
                edge = untried[at][-1]
                head = self.heads[edge]
                if self.rooms[edge] and levels.get(head) == levels[at] + 1:
                    path.append(edge)
                    at = head
                else:
                    untried[at].pop()
            else:
                at = self.heads[path.pop() ^ 1]
                untried[at].pop()
