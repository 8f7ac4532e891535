"""What a graph computes from torchjac's own constants alone, computed once.

The seeds of a colouring are the same at every call, and so is all that linear operations make of them
before they meet a value: the Jacobian of the linear part of a function is constant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from torchjac.evaluation.programs.gathers import ENTRIES, entries_first
from torchjac.evaluation.programs.simplify import return_own_memory
from torchjac.evaluation.programs.tracing import captured_tensors

__all__ = ["fold", "folded_for_compiler"]

_FOLDED = "_folded_"

# Small ones that are no results are left: scalar code knows their zeros, which a tensor that is read hides.
_LEAST_ELEMENTS, _MOST_BYTES = 1024, 1 << 25


def fold(graph: GraphModule, is_constant: Callable[[Tensor], bool]) -> None:
    """Compute what depends on nothing but the captured tensors that ``is_constant`` says never change."""
    known = _known(graph, is_constant)
    entries_first(graph, known)
    known = {node: value for node, value in known.items() if node in set(graph.graph.nodes)}
    for number, node in enumerate(_borders(known)):
        name = f"{_FOLDED}{number}"
        graph.register_buffer(name, known[node].detach(), persistent=False)
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
            constant.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(constant)
    return_own_memory(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def folded_for_compiler(graph: GraphModule) -> GraphModule:
    """A graph that was folded as one for a compiler, which fuses operations: shorter ones are worth it."""
    again = GraphModule(graph, copy.deepcopy(graph.graph))
    names = [name for name in captured_tensors(graph) if name.startswith((ENTRIES, _FOLDED))]
    own = {id(getattr(graph, name)) for name in names}
    entries_first(again, _known(again, lambda tensor: id(tensor) in own), calls=False)
    return again


def _known(graph: GraphModule, is_constant: Callable[[Tensor], bool]) -> dict[Node, Any]:
    known: dict[Node, Any] = {}
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                tensor = getattr(graph, node.target)
                if is_constant(tensor):
                    known[node] = tensor
            elif node.op == "call_function" and _is_fixed(node, known):
                args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
    return known


def _is_fixed(node: Node, known: dict[Node, Any]) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.numel() * value.element_size() > _MOST_BYTES:
        return False
    return all(used in known for used in node.all_input_nodes)


def _borders(known: dict[Node, Any]) -> list[Node]:
    """The known results that others need, and that took something to make."""
    return [
        node
        for node, value in known.items()
        if node.op == "call_function"
        and node.all_input_nodes
        and any(user not in known for user in node.users)
        and (value.numel() >= _LEAST_ELEMENTS or any(user.op == "output" for user in node.users))
    ]
