"""Graphs as plans trace them, and what a simplified one has to keep of them."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchjac.evaluation.programs.simplify import simplify
from torchjac.foundations.pytree import flatten, unflatten

TRACES = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 4)

X = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3)


def traced(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """The graph of ``function``, as plans trace it; the function returns a flat list."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        fakes = [
            torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=t.device)
            for t in tensors
        ]
        graph = make_fx(function, tracing_mode="fake")(*fakes)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = mode.from_tensor(getattr(graph, node.target), static_shapes=True)
    return graph


def simplified(graph: Any) -> Any:
    smaller = copy.deepcopy(graph)
    # A deep copy has parameters of its own; captured tensors are to be shared.
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            setattr(smaller, node.target, getattr(graph, node.target))
    simplify(smaller)
    smaller.graph.lint()
    return smaller


def ops(graph: Any) -> list[str]:
    """The names of the operations, in order."""
    return [
        node.target._schema.name.removeprefix("aten::")
        for node in graph.graph.nodes
        if node.op == "call_function" and hasattr(node.target, "_schema")
    ]


def results(graph: Any, *tensors: Tensor) -> list[Tensor]:
    with torch.no_grad():
        leaves, _ = flatten(graph(*tensors))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def assert_own_memory(outputs: Sequence[Tensor], *others: Tensor) -> None:
    places = [t.untyped_storage().data_ptr() for t in (*outputs, *others) if t.numel()]
    assert len(set(places)) == len(places)
    for output in outputs:
        assert 0 not in strides(output)


def assert_same(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Compare the graph with the simplified one; return the latter."""
    return assert_equal(traced(function, *tensors), *tensors)


def assert_equal(graph: Any, *tensors: Tensor) -> Any:
    smaller = simplified(graph)
    expected, got = results(graph, *tensors), results(smaller, *tensors)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    captured = [getattr(graph, n.target) for n in graph.graph.nodes if n.op == "get_attr"]
    distinct = {id(t): t for t in (*tensors, *captured)}.values()
    assert_own_memory(got, *distinct)
    # For a few operations PyTorch itself says the wrong strides.
    if not misdescribed(graph, *tensors):
        assert not misdescribed(smaller, *tensors)
    return smaller


def strides(tensor: Tensor) -> list[int]:
    """Those that mean something."""
    sides = zip(tensor.stride(), tensor.shape, strict=True)
    return [stride for stride, side in sides if side > 1] if tensor.numel() > 1 else []


def misdescribed(graph: Any, *tensors: Tensor) -> list[str]:
    """The operations whose results are not what their nodes say."""
    found = []

    class Checked(torch.fx.Interpreter):
        def run_node(self, node: Any) -> Any:
            result, said = super().run_node(node), node.meta.get("val")
            if isinstance(result, Tensor) and node.op == "call_function":
                kinds = [(t.dtype, t.shape, strides(t)) for t in (result, said)]
                if kinds[0] != kinds[1]:
                    found.append(node.format_node())
            return result

    with torch.no_grad():
        Checked(graph).run(*tensors)
    return found


def flat(derivative: Callable[..., Any], args: Sequence[Any]) -> tuple[Any, list[Tensor]]:
    """The derivative as a function from a list of tensors to a list of tensors."""
    leaves, structure = flatten(args)

    def function(*leaves: Tensor) -> list[Tensor]:
        return [
            leaf
            for leaf in flatten(derivative(*unflatten(leaves, structure)))[0]
            if isinstance(leaf, Tensor)
        ]

    return function, leaves
