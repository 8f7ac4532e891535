"""A traced graph, made smaller: what it computes stays, what it does for nothing goes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from torchjac.evaluation.programs.blocks import blocks
from torchjac.evaluation.programs.noops import noop
from torchjac.evaluation.programs.propagation import diagonal
from torchjac.evaluation.programs.rewriting import Rewriter, is_random, named, same_layout
from torchjac.evaluation.programs.zeros import uniform

__all__ = ["return_own_memory", "simplify"]

aten = torch.ops.aten

# In place, but of nothing but the shape: the same as the operation that returns a view.
_SHAPED_IN_PLACE = frozenset(["squeeze_", "unsqueeze_", "transpose_", "t_"])
# Views by what they do, though not by their schema.
_SECRET_VIEWS = frozenset(["aten::_unsafe_view", "aten::_reshape_alias"])


def simplify(graph: GraphModule) -> None:
    """Rewrite ``graph`` in place to compute the same from the same inputs with less.

    What it returns is memory of its own: no output shares it with an input, with a tensor that the
    graph captured, or with another output. Captured tensors are read anew in every run. Operations
    that change something in place, and what shares memory with it, are left as they are.

    Args:
        graph: ATen operations on tensors of fixed shapes, as `make_fx` traces them, every node with
            its fake value in ``meta["val"]``.
    """
    new = _Simplification(graph).run()
    new._codegen = graph.graph._codegen
    graph.graph = new  # also compiles its code


class _Simplification:
    """One walk over the nodes, each written into a new graph as what it comes to."""

    def __init__(self, graph: GraphModule) -> None:
        self._module, self._nodes = graph, list(graph.graph.nodes)
        self._shaped = _only_shaped(self._nodes)
        self._opaque = _opaque(self._nodes, self._shaped)
        self._write = Rewriter(Graph(), [uniform, blocks, diagonal, noop])
        self._env: dict[Node, Any] = {}
        self._captured: dict[int, Node] = {}

    def run(self) -> Graph:
        new = self._write.graph
        for node in self._nodes:
            if node.op == "call_function":
                self._env[node] = self._call(node)
            elif node.op == "output":
                mapped = map_arg(node.args[0], self._env.__getitem__)
                new.output(map_aggregate(mapped, self._write.node))
                return_own_memory(new)
            else:
                self._env[node] = self._source(node)
        _remove_dead(new)
        return new

    def _source(self, node: Node) -> Node:
        """A placeholder, or a captured tensor; the same tensor has one node under any name."""
        if node.op != "get_attr":
            return self._write.graph.node_copy(node)
        key = id(operator.attrgetter(str(node.target))(self._module))
        if key not in self._captured:
            self._captured[key] = self._write.graph.node_copy(node)
        return self._captured[key]

    def _call(self, node: Node) -> Any:
        target = node.target
        if target is operator.getitem:
            values, index = node.args
            return self._write.item(self._env[values], index)  # type: ignore[arg-type, index]
        if node in self._opaque or not isinstance(target, OpOverload):
            return self._write.graph.node_copy(node, self._as_it_was)
        if node in self._shaped:
            target = _out_of_place(target)
        args, kwargs = map_arg((node.args, node.kwargs), self._env.__getitem__)
        fits = all(map(self._has_old_layout, node.all_input_nodes))
        like = node.meta.get("val") if fits else None
        return self._write.apply(target, named(target, args, kwargs), like)

    def _has_old_layout(self, old: Node) -> bool:
        new = self._env[old]
        return isinstance(new, list) or same_layout(old.meta.get("val"), self._write.like(new))

    def _as_it_was(self, old: Node) -> Any:
        """A value for an operation that is not understood, which may depend on strides."""
        new, like = self._write.node(self._env[old]), old.meta.get("val")
        if not isinstance(like, Tensor) or same_layout(like, self._write.like(new)):
            return new
        if like.is_contiguous():
            return _contiguous(self._write, new)
        shape, strides = list(like.shape), list(like.stride())
        empty = self._write.raw(aten.new_empty_strided.default, new, shape, strides)
        return self._write.raw(aten.copy.default, empty, new)


def _contiguous(write: Rewriter, node: Node) -> Node:
    return write.raw(aten.clone.default, node, memory_format=torch.contiguous_format)


# --- memory ----------------------------------------------------------------------------------------


def _whose_memory(node: Node) -> Node:
    """The node that made the memory which ``node`` is a view of."""
    while node.op == "call_function":
        base = _base(node)
        if base is None:
            break
        node = base
    return node


def _base(node: Node) -> Node | None:
    """What an operation returns a view of, if it does."""
    if node.target is operator.getitem:
        return node.args[0]  # type: ignore[return-value]
    if not isinstance(node.target, OpOverload):
        return None
    schema = node.target._schema
    for formal, argument in zip(schema.arguments, node.args, strict=False):
        shares = formal.alias_info is not None or schema.name in _SECRET_VIEWS
        if shares and isinstance(argument, Node):
            return argument
    return None


def _only_shaped(nodes: Sequence[Node]) -> set[Node]:
    """Operations in place that change the shape of a tensor which nobody sees afterwards."""
    order = {node: at for at, node in enumerate(nodes)}
    found = set()
    for node in nodes:
        if _name(node) in _SHAPED_IN_PLACE and isinstance(node.args[0], Node):
            others = [user for user in node.args[0].users if user is not node]
            if all(order[user] < order[node] for user in others):
                found.add(node)
    return found


def _name(node: Node) -> str:
    target = node.target
    return target._schema.name.partition("::")[2] if isinstance(target, OpOverload) else ""


def _opaque(nodes: Sequence[Node], shaped: set[Node]) -> set[Node]:
    """Operations on memory that is changed in place, or that is addressed by strides."""
    touched = set()
    for node in nodes:
        if node in shaped or not isinstance(node.target, OpOverload):
            continue
        if node.target._schema.is_mutable or _name(node).startswith("as_strided"):
            touched |= set(map(_whose_memory, node.all_input_nodes))
    if not touched:
        return set()
    return {
        node
        for node in nodes
        if not touched.isdisjoint(map(_whose_memory, [node, *node.all_input_nodes]))
    }


def return_own_memory(graph: Graph) -> None:
    """Copy outputs that share memory with a source, with one another, or within: they may be written into."""
    *_, output = graph.nodes
    taken: set[Node] = set()

    def owned(node: Node) -> Node:
        like = node.meta.get("val")
        if not isinstance(like, Tensor):
            return node
        owner = _whose_memory(node)
        if owner.op == "call_function" and owner not in taken and not _overlaps(like):
            taken.add(owner)
            return node
        contiguous: Any = {"memory_format": torch.contiguous_format}
        with graph.inserting_before(output):
            new = graph.call_function(aten.clone.default, (node,), contiguous)
        new.meta["val"] = aten.clone.default(like, **contiguous)
        return new

    output.args = (map_arg(output.args[0], owned),)


def _overlaps(like: Tensor) -> bool:
    """Whether elements share their memory, so that they outnumber the places there are."""
    reach = sum((side - 1) * stride for side, stride in zip(like.shape, like.stride(), strict=True))
    return like.numel() > reach + 1


def _out_of_place(target: OpOverload) -> OpOverload:
    packet = getattr(aten, target._schema.name.partition("::")[2].rstrip("_"))
    overload: OpOverload = getattr(packet, target._overloadname)
    return overload


def _remove_dead(graph: Graph) -> None:
    for node in reversed(graph.nodes):
        if not node.users and (node.op == "get_attr" or _is_pure(node)):
            graph.erase_node(node)


def _is_pure(node: Node) -> bool:
    """Whether an operation does nothing beside its result."""
    if node.op != "call_function" or node.target is operator.getitem:
        return node.op == "call_function"
    if not isinstance(node.target, OpOverload) or is_random(node.target):
        return False
    schema = node.target._schema
    known = schema.name.startswith(("aten::", "prims::"))
    return known and bool(schema.returns) and not schema.is_mutable
