"""Simplified graphs: the same results from fewer operations, in memory of their own."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from torch import Tensor

import torchjac
from torchjac.evaluation.programs.simplify import simplify
from torchjac.foundations.pytree import flatten, map_tree, unflatten
from torchjac.testing import strategies

aten = torch.ops.aten

TRACES = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 4)
pytestmark = [
    pytest.mark.skipif(not TRACES, reason="needs torch 2.4"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


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
    graph = traced(function, *tensors)
    smaller = simplified(graph)
    expected, got = results(graph, *tensors), results(smaller, *tensors)
    assume(all(leaf.isfinite().all() for leaf in expected))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    captured = [getattr(graph, n.target) for n in graph.graph.nodes if n.op == "get_attr"]
    distinct = {id(t): t for t in (*tensors, *captured)}.values()
    assert_own_memory(got, *distinct)
    # Every node says what it is.
    assert_meta(smaller, *tensors)
    return smaller


def strides(tensor: Tensor) -> list[int]:
    sides = zip(tensor.stride(), tensor.shape, strict=True)
    return [stride for stride, side in sides if side > 1] if tensor.numel() > 1 else []


def assert_meta(graph: Any, *tensors: Tensor) -> None:
    """What the nodes say of their shapes and strides is true."""

    class Checked(torch.fx.Interpreter):
        def run_node(self, node: Any) -> Any:
            result, said = super().run_node(node), node.meta.get("val")
            if isinstance(result, Tensor) and node.op == "call_function":
                assert result.dtype == said.dtype, node.format_node()
                assert result.shape == said.shape, node.format_node()
                # The strides of sides of length 1 mean nothing; of this operation, PyTorch's own
                # fakes are wrong for an argument with gaps.
                if "same_feature_meta" not in node.name:
                    assert strides(result) == strides(said), node.format_node()
            return result

    with torch.no_grad():
        Checked(graph).run(*tensors)


# --- whatever the function -----------------------------------------------------------------------

MAKERS = [
    lambda f, n: torchjac.jac(f, n, mode="reverse", check="never"),
    lambda f, n: torchjac.jac(f, n, mode="forward", check="never"),
]
HESSIANS = [
    lambda f, n, mode=mode: torchjac.hessian(f, n, mode=mode, check="never")
    for mode in ("forward-over-reverse", "reverse-over-reverse")
]


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


def check(maker: Callable[..., Any], program: Any, args: Sequence[Any]) -> None:
    derivative = maker(program, tuple(range(len(args))))
    function, leaves = flat(derivative, args)
    try:
        traced(function, *leaves)
    except Exception as error:
        if isinstance(error, AssertionError):
            raise
        reject()
    assert_same(function, *leaves)


@given(strategies.programs_with_arguments(strided=True), st.sampled_from(MAKERS))
def test_jacobians_stay_the_same(case: Any, maker: Any) -> None:
    check(maker, *case)


@given(strategies.programs_with_arguments(scalar=True), st.sampled_from(HESSIANS))
def test_hessians_stay_the_same(case: Any, maker: Any) -> None:
    check(maker, *case)


@given(strategies.programs_with_arguments(max_arguments=1), st.sampled_from(["forward", "reverse"]))
def test_batched_jacobians_stay_the_same(case: Any, mode: str) -> None:
    program, (tree,) = case
    stacked = map_tree(lambda leaf: torch.stack([leaf, leaf + 1 / 8, leaf - 1]), tree)
    check(lambda f, _: torchjac.batched_jac(f, mode=mode, check="never"), program, (stacked,))
