"""Entries first: what is read off the products is computed there alone.

NOTE [Entries first]
The entries of a sparse Jacobian are read off its products with the seeds of the colours, by indices that
are fixed. An elementwise operation before that commutes with it, and a view, a roll or the placing of a
part among zeros maps the indices to others:

    (c * u).roll(1)[i]   =   c.roll(1)[i] * u.roll(1)[i]   =   c[i - 1] * u[i - 1]

So the indices move up to where the operands come from. The seeds end there, as constants of one number
for each entry. Of a sum, seeds let few terms live at an entry: entries with the same terms are computed
together, each class by its own formula, and those with none are constants. What is left at a call is what a
person would have written by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from torchjac.evaluation.programs.elements import (
    is_elementwise,
    is_move,
    name_of,
    origins,
    source_of,
)
from torchjac.evaluation.programs.partly_known import PartlyKnown
from torchjac.evaluation.programs.terms import Term, is_sum, terms_of

__all__ = ["ENTRIES", "entries_first"]

aten = torch.ops.aten

Places: TypeAlias = Tensor
"""Positions in a flattened tensor: of each entry, where it is. On the CPU, wherever the tensor is."""
Elements: TypeAlias = Node | Tensor
"""A new node, or numbers that are known."""

ENTRIES = "_entries_"
"""What the tensors are called that say where entries are, and what is known of them."""

# What it takes to read an element through an index, and to call an operation, in elements read in order.
_GATHER, _CALL = 4, 4096
_MOST_CLASSES = 16
_DEEPEST = 60  # operations from an entry's formula to what it is of
_SHORTEST = 64  # of the runs that are computed apart, where calls cost nothing


def entries_first(graph: GraphModule, known: dict[Node, Any], *, calls: bool = True) -> None:
    """Move reading by fixed indices before the elementwise operations of a graph, where that is less.

    Args:
        graph: changed in place.
        known: the nodes whose results never change, and these.
        calls: whether operations are called one by one; a compiler fuses most.
    """
    partly, call = PartlyKnown(dict(known)), _CALL if calls else 0
    for node in list(graph.graph.nodes):
        if node.target is not aten.index_select.default or node in known:
            continue
        source, dim, places = node.args
        if places not in known or source.meta["val"].dim() != 1 or dim != 0:
            continue
        rewriting = _Rewriting(graph, known, partly, node, call)
        found = rewriting.found(source, known[places].long().cpu())
        if found is not None:
            node.replace_all_uses_with(rewriting.as_node(found))
        else:
            node.replace_input_with(places, rewriting.index(known[places], source))
        graph.graph.eliminate_dead_code()
    _forget_unread(graph)
    graph.recompile()


def _forget_unread(graph: GraphModule) -> None:
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name in graph._buffers if name.startswith(ENTRIES) and name not in read]:
        delattr(graph, name)


def _doomed(source: Node, known: dict[Node, Any]) -> set[Node]:
    """The operations that nothing but ``source`` needs, itself among them."""
    doomed = {source}
    for node in reversed(list(source.graph.nodes)):
        if node.op == "call_function" and node.users and doomed.issuperset(node.users):
            doomed.add(node)
    return {node for node in doomed if node.op == "call_function" and node not in known}


def _cost_of(nodes: Iterable[Node], call: int) -> int:
    return sum(call + _size(node) for node in nodes if not _is_view(node))


def _needed(results: Iterable[Node], among: set[Node]) -> set[Node]:
    """Those of some operations that are needed for the results."""
    needed, waiting = set(), [node for node in results if node in among]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += [operand for operand in node.all_input_nodes if operand in among]
    return needed


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def _size(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0


class _DearError(Exception):
    """It costs no less than what is there."""


class _Class(NamedTuple):
    """Entries that are sums of the same terms."""

    entries: Tensor
    terms: list[Term]


def _in_runs(entries: Tensor, terms: list[Term], shortest: int) -> Sequence[Tensor]:
    """Cut where places do not follow one another, if that is seldom: what lies between is read as a view."""
    breaks = torch.zeros(max(len(entries) - 1, 0), dtype=torch.bool, device="cpu")
    for node, places, _ in terms:
        # In one product of the stack, for it is multiplied with what all of them share.
        shape = node.meta["val"].shape
        product = (shape[1:] if len(shape) > 1 else shape).numel()
        breaks |= (places[entries] % product).diff() != 1
    cuts = breaks.nonzero().reshape(-1) + 1
    return entries.tensor_split(cuts) if len(cuts) * shortest <= len(entries) else [entries]


def _is_run(places: Places) -> bool:
    return bool((places.diff() == 1).all())


class _Rewriting:
    """One reading of entries, moved up from ``before``."""

    def __init__(
        self,
        graph: GraphModule,
        known: dict[Node, Any],
        partly: PartlyKnown,
        before: Node,
        call: int,
    ) -> None:
        self._graph, self._known, self._partly, self._before = graph, known, partly, before
        self._call, self._shortest = call, max(4 * call, _SHORTEST)
        self._done: dict[tuple[Node, int], Elements] = {}
        self._kept: dict[bytes, Places] = {}
        self._whole: dict[Node, Node] = {}
        self._cost = self._most = self._depth = 0
        self._is_within = False

    def found(self, source: Node, places: Places) -> Elements | None:
        """The elements of ``source`` at the places; None if that costs as much as before."""
        doomed = _doomed(source, self._known)
        self._most = self._call + _GATHER * len(places) + _cost_of(doomed, self._call)
        try:
            found = self.at(source, places)
            self._spend(_cost_of(_needed(self._whole, doomed), self._call))
        except _DearError:
            return None
        return found

    def _spend(self, cost: int) -> None:
        self._cost += cost
        if self._cost >= self._most:
            raise _DearError

    def at(self, node: Node, places: Places) -> Elements:
        """The elements of a tensor at some places."""
        # The same places come about in several ways.
        places = self._kept.setdefault(places.numpy().tobytes(), places)
        key = (node, id(places))
        if key not in self._done:
            self._depth += 1
            self._done[key] = self._at(node, places)
            self._depth -= 1
        return self._done[key]

    def _at(self, node: Node, places: Places) -> Elements:
        partly = self._partly.of(node)
        found = partly and partly.at(places)
        if found is not None and bool(found.where.all()):
            return found.numbers
        if self._depth > _DEEPEST:
            return self._read(self._flat(node), places)
        if is_move(node):
            return self.at(source_of(node), origins(node).reshape(-1)[places])
        if is_sum(node):
            summed = self._summed(node, places)
            if summed is not None:
                return summed
        # A run of most of a tensor is a view, which others may want as well.
        is_cheaper_whole = _is_run(places) and 2 * len(places) > _size(node)
        if is_elementwise(node) and not is_cheaper_whole and _GATHER * _size(node) > len(places):
            return self._elementwise(node, places)
        return self._read(self._flat(node), places)

    def _flat(self, node: Node) -> Node:
        """A tensor that stays, as a vector."""
        if node not in self._whole:
            flat = node.meta["val"].dim() == 1
            self._whole[node] = node if flat else self._new(aten.reshape.default, node, [-1])
        return self._whole[node]

    def _read(self, flat: Node, places: Places) -> Node:
        if not _is_run(places):
            self._spend(_GATHER * len(places))
            return self._new(aten.index_select.default, flat, 0, self.index(places, flat))
        if len(places) == _size(flat):
            return flat
        first = int(places[0]) if len(places) else 0
        return self._new(aten.slice.Tensor, flat, 0, first, first + len(places))

    def index(self, places: Places, flat: Node) -> Node:
        """The places as an index, narrow where that is wide enough: reading them takes time too."""
        fitting = places.int() if _size(flat) < 2**31 else places
        return self.as_node(fitting.to(flat.meta["val"].device))

    # --- elementwise operations ------------------------------------------------------------------

    def _elementwise(self, node: Node, places: Places) -> Elements:
        shape = node.meta["val"].shape

        def operand(argument: Node) -> Any:
            like = argument.meta["val"]
            if like.numel() == 1:
                return (
                    argument if like.dim() == 0 else self._new(aten.reshape.default, argument, [1])
                )
            if like.shape == shape:
                return self.at(argument, places)
            spread = torch.arange(like.numel(), device="cpu").view(like.shape).expand(shape)
            return self.at(argument, spread.reshape(-1)[places])

        was_within, self._is_within = self._is_within, True
        mapped: Any = map_arg((node.args, node.kwargs), operand)
        self._is_within = was_within
        args, kwargs = list(mapped[0]), mapped[1]
        if name_of(node) == "aten::mul":
            args.sort(key=lambda argument: isinstance(argument, Tensor))  # a constant comes last
            if isinstance(args[0], Node) and isinstance(args[1], Tensor):
                like = args[0].meta["val"]
                if like.dtype == node.meta["val"].dtype and like.numel() == len(places):
                    args[1] = self._operand(args[1])
                    if args[1] == 1:
                        return args[0]
        args = [self.as_node(a) if isinstance(a, Tensor) else a for a in args]
        made = self._new(node.target, *args, **kwargs)
        if made.meta["val"].dim() == 1 and _size(made) == len(places):
            return made
        return self._new(aten.expand.default, made, [len(places)])

    # --- sums ------------------------------------------------------------------------------------

    def _summed(self, node: Node, places: Places) -> Elements | None:
        """Entries of what is put together of terms, each of those that live there."""
        like = node.meta["val"]
        terms = terms_of(node, places, self._known)
        if len(terms) == 1 and terms[0].node is node:
            return None
        constants = torch.zeros(len(places), dtype=like.dtype, device=like.device)
        alive = torch.zeros(len(places), dtype=torch.int64, device="cpu")
        for number, term in enumerate(terms):
            numbers, lives = self._constant_part(term, like)
            constants = constants + numbers if term.sign > 0 else constants - numbers
            alive |= lives.long() << number
        classes = []
        for which in filter(None, alive.unique().tolist()):
            live = [term for number, term in enumerate(terms) if which >> number & 1]
            entries = (alive == which).nonzero().reshape(-1)
            classes += [_Class(run, live) for run in _in_runs(entries, live, self._shortest)]
        is_uniform = len(classes) == 1 and len(classes[0].entries) == len(places)
        # Within a product, say, it takes less to compute them all alike than to put them together again.
        if len(classes) > _MOST_CLASSES or (
            self._is_within and is_elementwise(node) and not is_uniform
        ):
            return None
        return self._joined([self._sum(one, constants) for one in classes], classes, constants)

    def _constant_part(self, term: Term, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of each entry, the number that a term adds if it never changes, and whether it does change."""
        inside, places = term.places >= 0, term.places.clamp(min=0)
        known = self._partly.of(term.node)
        if known is None:
            return torch.zeros((), dtype=like.dtype, device=like.device), inside
        where, numbers = known.at(places)
        is_constant = where & inside.to(where.device)
        return numbers.masked_fill(~is_constant, 0), inside & ~where.cpu()

    def _sum(self, one: _Class, constants: Tensor) -> Node:
        total: Node | None = None
        for term in one.terms:
            value = self.as_node(self.at(term.node, term.places[one.entries]))
            if total is not None:
                target = aten.add.Tensor if term.sign > 0 else aten.sub.Tensor
                total = self._new(target, total, value)
            else:
                total = value if term.sign > 0 else self._new(aten.neg.default, value)
        assert total is not None
        offset = constants[one.entries]
        if bool((offset == 0).all()):
            return total
        return self._new(aten.add.Tensor, total, self._operand(offset))

    def _joined(self, parts: list[Node], classes: list[_Class], constants: Tensor) -> Elements:
        """The classes in the order of the entries, those that are in none from constants."""
        if not parts:
            return constants
        whole, at = parts[0], torch.cat([one.entries for one in classes])
        if len(parts) > 1:
            whole = self._new(aten.cat.default, parts)
        if len(at) < len(constants):
            self._spend(_GATHER * len(at))
            template, places = self.as_node(constants), self.as_node(at.to(constants.device))
            return self._new(aten.scatter.src, template, 0, places, whole)
        return self._read(
            whole, torch.empty_like(at).scatter_(0, at, torch.arange(len(at), device="cpu"))
        )

    def _operand(self, value: Any) -> Any:
        """A number, where a constant is the same for all entries."""
        if not isinstance(value, Tensor):
            return value
        is_uniform = len(value) and bool((value == value[0]).all())
        return value[0].item() if is_uniform else self.as_node(value)

    # --- nodes -----------------------------------------------------------------------------------

    def as_node(self, value: Elements) -> Node:
        """A node for numbers that are known."""
        if isinstance(value, Node):
            return value
        names = (f"{ENTRIES}{number}" for number in itertools.count(len(self._graph._buffers)))
        name = next(name for name in names if not hasattr(self._graph, name))
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
        if not _is_view(node):
            self._spend(self._call + _size(node))
        return node
