"""Entries of a sparse Jacobian computed alone, those that never change being constants."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

import torchjac
from tests.evaluation.graphs import TRACES, results, traced
from torchjac.evaluation.programs import gathers
from torchjac.evaluation.programs.compiled import _reads_own_places_alone, _run_apart
from torchjac.evaluation.programs.folding import _known, fold, folded_for_compiler
from torchjac.evaluation.programs.partly_known import PartlyKnown
from torchjac.evaluation.programs.tracing import captured_tensors
from torchjac.foundations.pytree import flatten

pytestmark = pytest.mark.skipif(not TRACES, reason="needs torch 2.4")

DOUBLE = torch.float64
SIDES = (3, 4)
CONSTANT = torch.tensor([[0, 2, 0, -1], [1, 0, 0, 3], [0, 0, 0.5, 0]], dtype=DOUBLE)
SEEDS = torch.eye(12, dtype=DOUBLE)[[0, 3, 5]].reshape(3, *SIDES) + torch.eye(3, 4, dtype=DOUBLE)


def placed(part: Tensor, at: int) -> Tensor:
    return torch.ops.aten.select_backward(part, (part.shape[0], *SIDES), 1, at)


# Of a stack of products and the argument, what a derivative makes of a stack of products.
STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scaled": lambda s, x: s * CONSTANT,
    "negative": lambda s, x: -s,
    "multiplied": lambda s, x: s * x,
    "squared": lambda s, x: s * (x * x + 1),
    "moved": lambda s, x: s.roll(1, 2) + s.roll(-1, 1),
    "flipped": lambda s, x: s.flip(1),
    "turned": lambda s, x: s.reshape(-1, 4, 3).transpose(1, 2),
    "added to": lambda s, x: s + x * CONSTANT,
    "halved": lambda s, x: s / 2 + s * 0.25,
    "divided": lambda s, x: s / (x * x + 1),
    "parts": lambda s, x: placed(s[:, 1] * x[1], 0) + placed(s[:, 0] * 2, 2),
    "overlapping": lambda s, x: placed(s[:, 1] * x[1], 0) + placed(s[:, 0] * 2, 0),
    "backward": lambda s, x: torch.ops.aten.tanh_backward(s, x),
    "rounded": lambda s, x: s.float().double() * x,
}


def derivative(steps: Sequence[str], places: Sequence[int]) -> Callable[[Tensor], list[Tensor]]:
    at = torch.tensor(places)

    def entries(x: Tensor) -> list[Tensor]:
        products = SEEDS
        for step in steps:
            products = STEPS[step](products, x)
        return [products.reshape(-1).index_select(0, at)]

    return entries


def folded(function: Callable[[Tensor], list[Tensor]], x: Tensor) -> GraphModule:
    graph: GraphModule = traced(function, x)
    fold(graph, lambda _: True)
    graph.graph.lint()
    return graph


ARGUMENTS = [
    torch.linspace(-2, 3, 12, dtype=DOUBLE).reshape(SIDES),
    torch.full(SIDES, 0.7).double(),
]
INFINITE = ARGUMENTS[0].clone()
INFINITE[0, 0], INFINITE[1, 2] = math.inf, math.nan
CASES = (
    st.lists(st.sampled_from(list(STEPS)), max_size=6),
    st.lists(st.integers(0, 35), min_size=1, max_size=40),
)


@pytest.fixture(params=[None, 1], ids=["as it is", "cut into runs"])
def cheap_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors are treated like large ones, and cut wherever places do not follow one another."""
    if request.param is not None:
        monkeypatch.setattr(gathers, "_CALL", 0)
        monkeypatch.setattr(gathers, "_SHORTEST", request.param)


@pytest.mark.usefixtures("cheap_calls")
@given(*CASES)
@example(["multiplied", "parts"], list(range(36)))
@example(["scaled", "added to", "moved", "squared"], list(range(36)))
@example(["moved", "parts"], [2])  # a row of x is broadcast, and is a view
@example(["parts", "multiplied", "overlapping", "negative"], list(range(36)))
def test_entries_stay_the_same(steps: list[str], places: list[int]) -> None:
    function = derivative(steps, places)
    graph = folded(function, ARGUMENTS[0])
    again = folded_for_compiler(graph)
    again.graph.lint()
    for x in (*ARGUMENTS, INFINITE):
        (expected,), (got,), (anew,) = function(x), results(graph, x), results(again, x)
        finite = expected.isfinite()
        torch.testing.assert_close(got[finite], expected[finite], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(anew[finite], expected[finite], rtol=1e-12, atol=1e-12)
        # What is no number may have become one: a known zero times infinity.
        assert (x is INFINITE) or bool(finite.all())


def test_one_column_beside_products_of_two_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathers, "_GATHER", 1)
    monkeypatch.setattr(gathers, "_CALL", 0)
    backwards = torch.arange(5, -1, -1)
    narrow, wide, at = torch.rand(3, 4), torch.rand(3, 5), torch.cat([backwards, backwards + 12])

    def function(x: Tensor) -> list[Tensor]:
        column = x[:3, :1]
        both = torch.cat([(narrow * column).reshape(-1), (wide * column).reshape(-1)])
        return [both.index_select(0, at)]

    x = torch.rand(SIDES)
    graph = folded(function, x)
    torch.testing.assert_close(results(graph, x), function(x))


class Values(Interpreter):
    """The value of every node."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[Node, Tensor] = {}

    def run_node(self, node: Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.found[node] = value
        return value


@given(*CASES)
def test_what_is_known_is_so_for_every_argument(steps: list[str], places: list[int]) -> None:
    graph = traced(derivative(steps, places), ARGUMENTS[0])
    partly = PartlyKnown(_known(graph, lambda _: True))
    for x in ARGUMENTS:
        values = Values(graph)
        values.run(x)
        for node, value in values.found.items():
            found = partly.of(node)
            if found is not None:
                assert found.numbers.dtype == value.dtype
                assert found.where.shape == value.shape
                torch.testing.assert_close(value[found.where], found.numbers[found.where])


def test_products_with_zeros_of_the_graph_are_known() -> None:
    graph = traced(lambda x: [x.exp(), CONSTANT * x + 1, x * CONSTANT * 2], ARGUMENTS[0])
    partly = PartlyKnown(_known(graph, lambda _: True))
    exponential, affine, scaled = map(partly.of, list(graph.graph.nodes)[-1].args[0])
    assert exponential is None
    assert affine is not None
    assert scaled is not None
    assert torch.equal(affine.where, CONSTANT == 0)
    assert affine.numbers[affine.where].tolist() == [1.0] * 7
    assert torch.equal(scaled.where, CONSTANT == 0)


def test_operations_of_which_nothing_is_known() -> None:
    def function(x: Tensor) -> list[Tensor]:
        whole = (x.round().long() + 9) * CONSTANT.long()
        mantissa, exponent = torch.frexp(x * CONSTANT)
        return [CONSTANT.long() // (whole + 1), mantissa * x, exponent + 1, whole]

    graph = traced(function, ARGUMENTS[0])
    partly = PartlyKnown(_known(graph, lambda _: True))
    assert [partly.of(node) for node in list(graph.graph.nodes)[-1].args[0]] == [None] * 4


def brusselator(state: Tensor) -> Tensor:
    side = math.isqrt(state.numel() // 2)
    u, v = state.reshape(2, side, side)

    def laplacian(w: Tensor) -> Tensor:
        return w.roll(1, 0) + w.roll(-1, 0) + w.roll(1, 1) + w.roll(-1, 1) - 4 * w

    reaction = u * u * v
    return torch.stack(
        [1 + reaction - 4.4 * u + 7 * laplacian(u), 3.4 * u - reaction + 7 * laplacian(v)]
    ).reshape(-1)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_plan_computes_what_changes_alone(mode: Any) -> None:
    # Of 12 entries for a cell 8 couple neighbours, and 4 are of the reaction.
    cells = 16 * 16
    x = torch.rand(2 * cells, dtype=DOUBLE)
    transform = torchjac.jac(brusselator, mode=mode, sparsity="detect", layout=torch.sparse_coo)
    plan = transform.plan(x)
    torch.testing.assert_close(plan(x).to_dense(), transform(x).to_dense())
    *inner, last = made(plan._program.graph)
    assert last.target is torch.ops.aten.scatter.src
    assert last.meta["val"].numel() == 12 * cells
    assert max(node.meta["val"].numel() for node in inner) == 4 * cells
    # Constants are not touched by what is infinite elsewhere.
    x[0] = math.inf
    assert int((~plan(x).values().isfinite()).sum()) <= 4


def made(graph: GraphModule) -> list[Node]:
    """The operations that make a tensor."""
    return [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor)
    ]


def diffusion(x: Tensor) -> Tensor:
    flux = (1 + x[1:] ** 2 + x[:-1] ** 2) * (x[1:] - x[:-1])
    return torch.cat([flux[:1], flux[1:] - flux[:-1], -flux[-1:]])


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_overlapping_parts_are_added_up_where_both_live(mode: Any) -> None:
    # Large enough for elements to count for more than calls.
    x = torch.rand(100_000, dtype=DOUBLE)
    transform = torchjac.jac(diffusion, mode=mode, sparsity="detect", layout=torch.sparse_coo)
    plan = transform.plan(x)
    expected = transform(x)
    torch.testing.assert_close(plan(x).values(), expected.values())
    # Diagonals come as they lie in memory: nothing is gathered before they are put into their places.
    *inner, whole, last = made(plan._program.graph)
    assert [node.target for node in (whole, last)] == [
        torch.ops.aten.cat.default,
        torch.ops.aten.index_select.default,
    ]
    assert max(node.meta["val"].numel() for node in inner) <= len(x)
    gathered = [node for node in inner if node.target is torch.ops.aten.index_select.default]
    assert max([node.meta["val"].numel() for node in gathered], default=0) <= 2  # at the ends


def planned(
    function: Callable[[Tensor], Tensor], x: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """What a plan that was made at zeros says at ``x``, and what the transform does."""
    transform = torchjac.jac(function, sparsity="detect", layout=torch.sparse_coo, **options)
    plan = transform.plan(torch.zeros_like(x))
    assert plan._program is not None, plan
    return plan(x), transform(x)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.strided])
def test_a_small_jacobian_that_never_changes_is_a_copy(layout: torch.layout) -> None:
    x = torch.linspace(-1, 1, 6, dtype=DOUBLE)
    plan = torchjac.jac(torch.diff, sparsity="detect", layout=layout).plan(x)
    assert [node.target for node in made(plan._program.graph)] == [torch.ops.aten.clone.default]
    first, second = plan(x).to_dense(), plan(x + 1).to_dense()
    assert torch.equal(first, second)
    first.zero_()
    assert second.any()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x.roll(1) * x.detach(),
        lambda x, w: x[1:] * x.detach()[:-1],
        lambda x, w: x.roll(1) * w,
        lambda x, w: x.roll(1) * 3 + x.exp() * (torch.arange(12) < 0),
        lambda x, w: (x * w, x.roll(1) * w),
        lambda x, w: x * x.detach().sum(),
    ],
    ids=["argument", "view of it", "captured", "constants", "the same twice", "one number"],
)
def test_results_are_memory_of_their_own(function: Any) -> None:
    x = torch.linspace(-1, 1, 12, dtype=DOUBLE)
    w = torch.linspace(2, 3, 12, dtype=DOUBLE)
    before = x.clone(), w.clone()
    options: dict[str, Any] = {"sparsity": "detect", "layout": torch.sparse_coo, "mode": "reverse"}
    transform = torchjac.jac(lambda x: function(x, w), **options)
    plan = transform.plan(x)
    assert plan._program is not None
    expected, _ = flatten(transform(x))
    for _ in range(2):
        results, _ = flatten(plan(x))
        for result, right in zip(results, expected, strict=True):
            torch.testing.assert_close(result, right)
            result._values().fill_(7.0)
    assert torch.equal(x, before[0])
    assert torch.equal(w, before[1])


def masked(x: Tensor) -> Tensor:
    inner = torch.cat([torch.ones(3, dtype=torch.bool), x[3:] > 0.5])
    return torch.where(inner, x * x.roll(1), x.roll(2) * 3)


def joined_mask(x: Tensor) -> Tensor:
    return torch.cat([torch.ones(3, dtype=torch.bool), x[3:] > 0.5]) * x * x.roll(1) + x.roll(2)


def counted(x: Tensor) -> Tensor:
    numbers = torch.cat([torch.arange(6), x[6:].long()])
    return (numbers * torch.arange(12))[:6] * x[:6] * x[1:7] * (numbers[6:] * 2 + 1)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("function", [masked, joined_mask, counted])
def test_masks_and_integers_beside_the_products(function: Any, mode: Any) -> None:
    got, expected = planned(function, torch.linspace(-3, 3, 12, dtype=DOUBLE), mode=mode)
    torch.testing.assert_close(got.to_dense(), expected.to_dense())


SCALE, WEIGHTS = torch.tensor(1.3, dtype=DOUBLE), torch.tensor([1, 2, 3, 2, 1])


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([(x[:1] * 3).sin(), x[1:] + x[:-1]]) * x.detach().flip(0),
        lambda x: torch.cat([x[:1].sin(), x[1:] * x[:-1]]) * WEIGHTS.flip(0),
        lambda x: (x - x.roll(1)) * SCALE,
        lambda x: torch.diff(x) * WEIGHTS[:4],
        lambda x: x.roll(1) * WEIGHTS + x,
        lambda x: x.roll(1) * (WEIGHTS.float() / 3) + x * x,
        lambda x: (x.roll(1).float() * 1.5).double() * x,
    ],
    ids=[
        *("a view beside products", "a captured view", "one number", "integers", "integers and 1"),
        *("single precision", "single precision in between"),
    ],
)
def test_what_is_beside_the_products(function: Any, mode: Any) -> None:
    x = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4], dtype=DOUBLE)
    got, expected = planned(function, x, mode=mode)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.to_dense(), expected.to_dense(), rtol=1e-12, atol=1e-12)


def deep(x: Tensor) -> Tensor:
    y = x.roll(1) * x
    for _ in range(300):
        y = torch.sin(y) * 1.01
    return y


def stepped(x: Tensor) -> Tensor:
    for _ in range(100):
        x = x + 0.01 * torch.sin(x)
    return x


def turned(x: Tensor) -> Tensor:
    y = x * x
    for _ in range(600):
        y = y.roll(1)
    return y


@pytest.mark.parametrize("function", [deep, stepped, turned])
def test_graphs_deeper_than_the_stack(function: Any) -> None:
    got, expected = planned(function, torch.linspace(-1, 1, 50, dtype=DOUBLE), mode="reverse")
    torch.testing.assert_close(got.to_dense(), expected.to_dense())


def test_a_rewriting_that_costs_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made, new = [], gathers._Rewriting._new

    def counted(self: Any, *args: Any) -> Node:
        made.append(args)
        return new(self, *args)

    monkeypatch.setattr(gathers._Rewriting, "_new", counted)

    def spreading(x: Tensor) -> Tensor:
        # Each level is read at twice as many places as the one above.
        c = x.detach()
        for level in range(12):
            c = torch.sin(c + c.roll(2**level + 1))
        return torch.cat([x[:5] * c[:5] * x[1:6], x[5:] * c[5:] + x[:-5]])

    got, expected = planned(spreading, torch.linspace(-1, 1, 3000, dtype=DOUBLE), mode="reverse")
    torch.testing.assert_close(got.coalesce().values(), expected.coalesce().values())
    assert len(made) < 400


def test_own_places_are_not_checked_and_those_of_others_are() -> None:
    x, at = ARGUMENTS[0], torch.arange(3)
    own = folded(derivative(["added to", "moved", "multiplied"], [5, 1, 7, 30]), x)
    assert _reads_own_places_alone(own, lifted(own, x))
    functions: list[Callable[[Tensor], list[Tensor]]] = [
        lambda x: [x[at]],
        lambda x: [x[x.argmax(1)]],
        lambda x: [x.index_select(0, at), x.max(1).indices],
    ]
    for function in functions:
        graph = traced(function, x)
        assert not _reads_own_places_alone(graph, lifted(graph, x))


def lifted(graph: GraphModule, x: Tensor) -> GraphModule:
    """The graph as a function of what it captured too, as it is compiled."""
    captured = captured_tensors(graph).values()
    found: GraphModule = traced(functools.partial(_run_apart, graph), x, *captured)
    return found
