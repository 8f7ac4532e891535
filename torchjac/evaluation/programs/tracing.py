"""A function on tensors as a graph of ATen operations. All that is private in PyTorch about it is here.

The trace runs on fake tensors, so nothing that depends on values can be written into the graph: a
function that looks at them is refused. What the function captured stays a tensor of its own in the
graph (a ``get_attr`` node), so that changes in place are seen by every later run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from torchjac.evaluation.surroundings import exclusively, without_transforms

__all__ = ["UntraceableError", "as_functional", "captured_tensors", "draws_random_numbers", "trace"]

TensorFunction: TypeAlias = Callable[..., Any]

# They update what they are given without saying so in their schema, where they are told to train.
_UPDATES_UNSEEN = {
    "aten::native_batch_norm": 5,
    "aten::cudnn_batch_norm": 5,
    "aten::miopen_batch_norm": 5,
}
# What PyTorch says where a tensor without values is asked for its memory.
_NO_VALUES = ("data pointer", "data_ptr", ".numpy() is not supported", "unallocated storage")


class UntraceableError(Exception):
    """The function cannot be written down as a graph; the message says why, as a clause."""


def trace(function: TensorFunction, tensors: Sequence[Tensor]) -> GraphModule:
    """Write down what ``function`` does to tensors like ``tensors``.

    Args:
        function: takes as many tensors and returns a tree of tensors and None.
        tensors: their shapes, strides, dtypes and devices matter, their values do not.

    Returns:
        A graph without operations that change anything in place.

    Raises:
        UntraceableError: the function looks at values, leaves PyTorch, or changes what it captured.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        # Fresh ones, so that two arguments never share their memory.
        fakes = [
            torch.empty_strided(t.size(), _stride(t), dtype=t.dtype, device=t.device)
            for t in tensors
        ]
    with exclusively(), without_transforms(), torch.no_grad():
        try:
            graph = make_fx(function, tracing_mode="fake")(*fakes)
        except Exception as error:
            raise UntraceableError(_reason(error)) from error
    _complete(graph, mode)
    _refuse_changes(graph)
    return graph


def _stride(tensor: Tensor) -> tuple[int, ...]:
    # Elements that share memory cannot be written apart, which in-place code may do.
    return (
        torch.empty(tensor.shape, device="meta").stride()
        if 0 in tensor.stride()
        else tensor.stride()
    )


def _complete(graph: GraphModule, mode: Any) -> None:
    """Give the captured tensors of a graph the fake values that all other nodes have."""
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = mode.from_tensor(getattr(graph, node.target), static_shapes=True)


def _reason(error: Exception) -> str:
    from torch._subclasses import fake_tensor

    if isinstance(
        error,
        (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException),
    ):
        return f"it looks at values ({error.func})"
    text = str(error).strip().splitlines()
    line = text[0] if text else ""
    if any(said in str(error) for said in _NO_VALUES):
        return f"it takes values out of PyTorch ({line[:120]})"
    if type(error).__name__ in ("GuardOnDataDependentSymNode", "UserError"):
        return f"it looks at values ({line[:120]})"
    return f"{type(error).__name__}: {line[:160]}"


def captured_tensors(graph: GraphModule) -> dict[str, Tensor]:
    """The tensors that a graph holds, by the names of its attributes."""
    names = dict.fromkeys(node.target for node in graph.graph.nodes if node.op == "get_attr")
    return {name: getattr(graph, name) for name in names}


def draws_random_numbers(graph: GraphModule) -> bool:
    """Whether two runs of a graph can differ."""
    return any(
        torch.Tag.nondeterministic_seeded in node.target.tags
        for node in graph.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    )


def _schema(node: Node) -> Any:
    return node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None


def _changed_by(node: Node) -> list[Node]:
    """The arguments that an operation changes."""
    schema = _schema(node)
    if node.op != "call_function" or schema is None:
        return []
    at = _UPDATES_UNSEEN.get(schema.name)
    if at is not None and len(node.args) > at and node.args[at]:
        return [statistic for statistic in node.args[3:5] if isinstance(statistic, Node)]
    if not schema.is_mutable:
        return []
    given = [
        node.args[k] if k < len(node.args) else node.kwargs.get(argument.name)
        for k, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [argument for argument in given if isinstance(argument, Node)]


def _whose_memory(node: Node) -> Node:
    """The node that made the memory which ``node`` is a view of."""
    schema = _schema(node)
    if schema is None or not node.args or not isinstance(node.args[0], Node):
        return node
    if schema.returns and schema.returns[0].alias_info is not None:
        return _whose_memory(node.args[0])
    return node


def _refuse_changes(graph: GraphModule) -> None:
    """Refuse a function whose run has a lasting effect beside its result."""
    for node in graph.graph.nodes:
        for changed in _changed_by(node):
            if _whose_memory(changed).op == "get_attr":
                raise UntraceableError(f"it changes a tensor that it captured ({node.target})")


def as_functional(graph: GraphModule) -> GraphModule:
    """The same graph without operations in place; itself, if it has none."""
    if not any(_changed_by(node) for node in graph.graph.nodes):
        return graph
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]

    def functional(*tensors: Tensor) -> Any:
        return torch.func.functionalize(graph.forward, remove="mutations")(*tensors)

    return trace(functional, inputs)
