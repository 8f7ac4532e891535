"""A derivative that is run as a graph: what it holds, what it takes, and how it is called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from torchjac.evaluation.programs.tracing import captured_tensors, draws_random_numbers
from torchjac.evaluation.surroundings import defaults

__all__ = ["Program"]

aten = torch.ops.aten


class Program:
    """A graph of ATen operations, with the tensors that it captured, run with no transform around it.

    Args:
        graph: from tensors to a tuple of tensors.
        run: what runs it, given the tensors and then the captured ones; by default its operations one
            by one.
    """

    def __init__(
        self, graph: GraphModule, run: Callable[..., Sequence[Tensor]] | None = None
    ) -> None:
        self.graph = graph
        held = captured_tensors(graph)
        self.captured = tuple(held.values())
        self.is_random = draws_random_numbers(graph)
        self._kinds = [(t, t.shape, _stride(t), t.dtype, t.device) for t in self.captured]
        self.defaults = defaults()
        """They are written into the graph wherever the function left something to them."""
        self._run = run or lifted(graph, held)

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Run it without recording a graph of its own."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._run(*tensors, *self.captured)
        return self._run(*tensors, *self.captured)

    def fits(self) -> bool:
        """Whether the captured tensors are still of the kinds that the graph was traced with."""
        return all(
            t.shape == shape
            and t.dtype is dtype
            and t.device == device
            and (stride is None or t.stride() == stride)
            for t, shape, stride, dtype, device in self._kinds
        )

    @property
    def requires_grad(self) -> bool:
        """Whether a captured tensor can be differentiated by."""
        return any(t.requires_grad for t in self.captured)

    @property
    def num_operations(self) -> int:
        """How many operations one run takes."""
        return sum(node.op == "call_function" for node in self.graph.graph.nodes)

    @property
    def peak_bytes(self) -> int:
        """What one run holds at most, estimated: all memory from where it is made to its last use."""
        nodes = list(self.graph.graph.nodes)
        owners: dict[Any, Any] = {}  # by whom the memory was made that a node's result is in
        last: dict[Any, Any] = {}
        for node in nodes:
            owners[node] = node if (into := _lies_in(node)) is None else owners[into]
            for used in node.all_input_nodes:
                last[owners[used]] = node
        dies: dict[Any, list[Any]] = {}
        for owner, node in last.items():
            dies.setdefault(node, []).append(owner)
        held = most = 0
        for node in nodes:
            held += new_bytes(node) if owners[node] is node else 0
            most = max(most, held)
            held -= sum(new_bytes(owner) for owner in dies.get(node, ()))
        return most


def _stride(tensor: Tensor) -> tuple[int, ...] | None:
    return tensor.stride() if tensor.layout is torch.strided else None


def _lies_in(node: Any) -> Any:
    """Which operand's memory a result takes no more than, if there is one."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    return node.args[0] if _is_view(node) or _writes_into_fresh(node) else None


def _is_view(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.target is aten._unsafe_view.default:
        return True  # without a schema one of several results is taken
    # A reshape is written where no view is possible.
    return (
        any(r.alias_info is not None for r in schema.returns)
        and node.target is not aten.reshape.default
    )


def new_bytes(node: Any) -> int:
    """The memory that an operation takes for its results; none for views."""
    if node.op != "call_function" or _is_view(node):
        return 0
    value = node.meta.get("val")
    results = value if isinstance(value, (tuple, list)) else (value,)
    return sum(t.numel() * t.element_size() for t in results if isinstance(t, Tensor))


def lifted(graph: GraphModule, held: dict[str, Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The graph as a function that takes the captured tensors as its last arguments.

    A module's attribute costs half a microsecond at every access, an argument nothing.
    """
    nodes: Any = copy.deepcopy(graph.graph)
    last = [node for node in nodes.nodes if node.op == "placeholder"]
    taken: dict[str, Any] = {}
    at = last[-1] if last else nodes._root
    for name in held:
        with nodes.inserting_after(at):
            at = taken[name] = nodes.placeholder(f"captured_{len(taken)}")
    for node in list(nodes.nodes):
        if node.op == "get_attr":
            node.replace_all_uses_with(taken[node.target])
            nodes.erase_node(node)
    _write_into_fresh(nodes)
    run = GraphModule(torch.nn.Module(), nodes)
    return run.forward


_MAKERS = {aten.zeros.default, aten.new_zeros.default, aten.full.default, aten.new_full.default}
_WRITERS = {
    aten.index_copy.default: aten.index_copy_.default,
    aten.index_put.default: aten.index_put_.default,
    aten.index_add.default: aten.index_add_.default,
    aten.index_fill.int_Scalar: aten.index_fill_.int_Scalar,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter_add.default: aten.scatter_add_.default,
}


def _write_into_fresh(nodes: Any) -> None:
    """Write into zeros that were made for that and that nobody else reads, instead of into a copy."""
    for node in nodes.nodes:
        if _writes_into_fresh(node):
            node.target = _WRITERS[node.target]


def _writes_into_fresh(node: Any) -> bool:
    if node.target not in _WRITERS:
        return False
    into: Any = node.args[0]
    return into.target in _MAKERS and len(into.users) == 1 and into not in node.args[1:]
