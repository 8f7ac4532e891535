"""Entries first: what is read off the products is computed there alone.

NOTE [Entries first]
The entries of a sparse Jacobian are read off its products with the seeds of the colours, by indices that
are fixed. An elementwise operation before that commutes with it, and a view, a roll or the placing of a
part among zeros maps the indices to others:

    (c * u).roll(1)[i]   =   c.roll(1)[i] * u.roll(1)[i]   =   c[i - 1] * u[i - 1]

So the indices move up to where the operands come from. The seeds end there, as constants of one number
for each entry, and what is left at a call is what a person would have written by hand: for each entry a
formula of the values that it depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

__all__ = ["entries_first"]

aten = torch.ops.aten

Places: TypeAlias = Tensor
"""Positions in a flattened tensor: of each entry, where it is."""

_MOVES = frozenset(
    f"aten::{name}"
    for name in (
        *("alias", "clone", "expand", "flip", "permute", "reshape", "roll", "select", "slice"),
        *("squeeze", "t", "transpose", "unsqueeze", "view", "_unsafe_view", "detach"),
    )
)
# These put a part among zeros.
_PLACES = frozenset(["aten::select_backward", "aten::slice_backward", "aten::diag_embed"])
# What it takes to read an element through an index, in elements read in order.
_GATHER = 4


def entries_first(graph: GraphModule, known: dict[Node, Any]) -> None:
    """Move reading by fixed indices before the elementwise operations of a graph, where that is less.

    Args:
        graph: changed in place.
        known: the nodes whose results never change, and these.
    """
    for node in list(graph.graph.nodes):
        if node.target is not aten.index_select.default or node in known:
            continue
        source, dim, places = node.args
        if places not in known or source.meta["val"].dim() != 1 or dim != 0:
            continue
        rewriting = _Rewriting(graph, known, node)
        found = rewriting.at(source, known[places].long())
        if rewriting.cost < _GATHER * len(known[places]) + _cost_before(source, known):
            node.replace_all_uses_with(rewriting.as_node(found))
        graph.graph.eliminate_dead_code()
    graph.recompile()


def _cost_before(source: Node, known: dict[Node, Any]) -> int:
    """The elements that operations make which nothing but ``source`` needs."""
    doomed = {source}
    for node in reversed(list(source.graph.nodes)):
        if (
            node.op == "call_function"
            and node not in doomed
            and node.users
            and doomed.issuperset(node.users)
        ):
            doomed.add(node)
    return sum(_size(node) for node in doomed if node not in known and not _is_view(node))


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def _size(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0


class _Rewriting:
    """One reading of entries, moved up from ``before``."""

    def __init__(self, graph: GraphModule, known: dict[Node, Any], before: Node) -> None:
        self._graph, self._known, self._before = graph, known, before
        self._done: dict[tuple[Node, int], Any] = {}
        self._kept: dict[bytes, Places] = {}
        self._moved: dict[tuple[Node, int], Places] = {}
        self.cost = 0
        """Elements that are made, and read through indices."""

    def at(self, node: Node, places: Places) -> Node | Tensor:
        """The elements of a tensor at some places: a new node, or numbers that are known."""
        # The same places come about in several ways.
        places = self._kept.setdefault(places.numpy().tobytes(), places)
        key = (node, id(places))
        if key not in self._done:
            self._done[key] = self._at(node, places)
        return self._done[key]  # type: ignore[no-any-return]

    def _at(self, node: Node, places: Places) -> Node | Tensor:
        if node in self._known:
            numbers: Tensor = self._known[node].reshape(-1)[places]
            return numbers
        name = _name(node)
        if name in _MOVES and node.meta["val"].dtype == _source(node).meta["val"].dtype:
            return self.at(_source(node), self._through(node, places))
        if name in _PLACES or (name == "aten::add" and _joins_parts(node)):
            parted = self._parted(node, places)
            if parted is not None:
                return parted
        if _is_elementwise(node) and _GATHER * _size(node) > len(places):
            return self._elementwise(node, places)
        flat = node if node.meta["val"].dim() == 1 else self._new(aten.reshape.default, node, [-1])
        return self._new(aten.index_select.default, flat, 0, self.as_node(places.int()))

    def _through(self, node: Node, places: Places) -> Places:
        """Where in its source a view has its elements."""
        key = (node, id(places))
        if key not in self._moved:
            self._moved[key] = _map(node).reshape(-1)[places]
        return self._moved[key]

    def _elementwise(self, node: Node, places: Places) -> Node | Tensor:
        shape = node.meta["val"].shape

        def operand(argument: Node) -> Any:
            like = argument.meta["val"]
            if like.numel() == 1:
                return (
                    argument if like.dim() == 0 else self._new(aten.reshape.default, argument, [1])
                )
            if like.shape == shape:
                return self.at(argument, places)
            key = (argument, id(places))
            if key not in self._moved:
                spread = torch.arange(like.numel(), device="cpu").view(like.shape).expand(shape)
                self._moved[key] = spread.reshape(-1)[places]
            return self.at(argument, self._moved[key])

        args, kwargs = map_arg((node.args, node.kwargs), operand)
        args = tuple(self.as_node(a) if isinstance(a, Tensor) else a for a in args)
        self.cost += len(places)
        made = self._new(node.target, *args, **kwargs)
        if made.meta["val"].dim() == 1 and _size(made) == len(places):
            return made
        return self._new(aten.expand.default, made, [len(places)])

    def _parted(self, node: Node, places: Places) -> Node | Tensor | None:
        """The entries of a sum of parts among zeros, each from the one part that it lies in."""
        terms = _terms(node)
        maps = [
            _map(term).reshape(-1)[places] if _name(term) in _PLACES else places for term in terms
        ]
        whose = torch.full_like(places, len(terms))
        for number, where in enumerate(maps):
            if bool(((where >= 0) & (whose < len(terms))).any()):
                return None  # two parts overlap
            whose[where >= 0] = number
        if bool((whose.diff() >= 0).all()) or bool((whose.diff() <= 0).all()):
            order = None
        else:
            order = whose.argsort(stable=True)
        parts: list[Node | Tensor] = []
        for number in dict.fromkeys(whose.tolist() if order is None else whose[order].tolist()):
            at = (whose == number).nonzero().reshape(-1)
            if number == len(terms):
                like = node.meta["val"]
                parts.append(torch.zeros(len(at), dtype=like.dtype, device=like.device))
            else:
                term = terms[number]
                source = _source(term) if _name(term) in _PLACES else term
                parts.append(self.at(source, maps[number][at]))
        return self._joined(parts, order)

    def _joined(self, parts: list[Node | Tensor], order: Tensor | None) -> Node | Tensor:
        whole = parts[0]
        if len(parts) > 1:
            whole = self._new(aten.cat.default, [self.as_node(part) for part in parts])
            self.cost += _size(whole)
        if order is None:
            return whole
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device="cpu")
        self.cost += _GATHER * len(order)
        return self._new(
            aten.index_select.default, self.as_node(whole), 0, self.as_node(back.int())
        )

    def as_node(self, value: Node | Tensor) -> Node:
        """A node for numbers that are known."""
        if isinstance(value, Node):
            return value
        # Counted by the buffers, which only become more; the nodes become fewer as well.
        name = f"_entries_{len(self._graph._buffers)}"
        self._graph.register_buffer(name, value, persistent=False)
        with self._graph.graph.inserting_before(self._before):
            node = self._graph.graph.get_attr(name)
        node.meta["val"] = value.to("meta") if self._fake is None else self._fake(value)
        self._known[node] = value
        return node

    @property
    def _fake(self) -> Callable[[Tensor], Tensor] | None:
        mode = getattr(self._before.meta["val"], "fake_mode", None)
        return None if mode is None else mode.from_tensor

    def _new(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        with self._graph.graph.inserting_before(self._before):
            node = self._graph.graph.call_function(target, args, kwargs)
        values, options = map_arg((args, kwargs), lambda n: n.meta["val"])
        node.meta["val"] = target(*values, **options)
        return node


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name)


def _source(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _is_elementwise(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    tags = target.tags
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def _joins_parts(node: Node) -> bool:
    return any(_name(term) in _PLACES for term in _terms(node))


def _terms(node: Node) -> list[Node]:
    """What a sum adds up, sums of parts among zeros included."""
    if _name(node) != "aten::add" or node.kwargs or len(node.all_input_nodes) != 2:
        return [node]
    if any(
        argument.meta["val"].shape != node.meta["val"].shape for argument in node.all_input_nodes
    ):
        return [node]
    return [term for argument in node.all_input_nodes for term in _terms(argument)]


def _map(node: Node) -> Tensor:
    """For every element that a move makes, the position it comes from; -1 where there is a zero."""
    source = _source(node)
    like = source.meta["val"]
    numbers = torch.arange(1, like.numel() + 1, device="cpu").view(like.shape)
    target: Any = aten.reshape.default if _name(node) in _RESHAPES else node.target
    moved: Tensor = target(
        numbers, *node.args[1:], **{k: v for k, v in node.kwargs.items() if k != "memory_format"}
    )
    return moved - 1


_RESHAPES = frozenset(["aten::view", "aten::_unsafe_view"])
