"""Simplified graphs: the same results from fewer operations, in memory of their own."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from torch import Tensor, nn

import torchjac
from benchmarks import workloads
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


def check(
    maker: Callable[..., Any], program: Any, args: Sequence[Any], functional: bool = True
) -> None:
    derivative = maker(program, tuple(range(len(args))))
    function, leaves = flat(derivative, args)
    if functional:
        function = torch.func.functionalize(function, remove="mutations")
    try:
        graph = traced(function, *leaves)
    except Exception as error:
        if isinstance(error, AssertionError):
            raise
        reject()
    outputs = results(graph, *leaves)
    # PyTorch's forward mode may return a zero of the meta device.
    assume(not any(leaf.is_meta for leaf in outputs))
    assume(all(leaf.isfinite().all() for leaf in outputs))
    assert_equal(graph, *leaves)


@given(strategies.programs_with_arguments(strided=True), st.sampled_from(MAKERS), st.booleans())
def test_jacobians_stay_the_same(case: Any, maker: Any, functional: bool) -> None:
    check(maker, *case, functional)


@given(strategies.programs_with_arguments(scalar=True), st.sampled_from(HESSIANS))
def test_hessians_stay_the_same(case: Any, maker: Any) -> None:
    check(maker, *case)


@given(strategies.programs_with_arguments(max_arguments=1), st.sampled_from(["forward", "reverse"]))
def test_batched_jacobians_stay_the_same(case: Any, mode: str) -> None:
    program, (tree,) = case
    stacked = map_tree(lambda leaf: torch.stack([leaf, leaf + 1 / 8, leaf - 1]), tree)
    check(lambda f, _: torchjac.batched_jac(f, mode=mode, check="never"), program, (stacked,))


# --- memory and effects ----------------------------------------------------------------------------

X = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x],
        lambda x: [x.detach().view(-1)],
        lambda x: [x.T, x[0]],
        lambda x: [x.clone(), x.clone()],
        lambda x: [x.sin(), x.sin()],
        lambda x: [x.sin().expand(4, 2, 3)],
        lambda x: [(y := x.sin()), y[0], y.T],
        lambda x: [torch.zeros_like(x), torch.zeros_like(x)],
        lambda x: [torch.ones(1, dtype=x.dtype).expand(3, 3)],
        lambda x: [x.sin().unfold(1, 2, 1)],
        lambda x: [X, X.view(-1), x],
    ],
)
def test_outputs_have_memory_of_their_own(function: Any) -> None:
    assert_same(function, X.clone())


def test_captured_tensors_are_read_in_every_run() -> None:
    weight = torch.zeros(3, dtype=torch.float64)
    smaller = simplified(traced(lambda x: [(x + weight) * weight.clone()], X))
    weight.fill_(2.0)
    torch.testing.assert_close(results(smaller, X)[0], (X + 2) * 2)


def test_random_numbers_are_drawn_as_often() -> None:
    def function(x: Tensor) -> list[Tensor]:
        torch.rand_like(x)
        first, second = torch.rand_like(x), torch.rand_like(x)
        return [first - second, torch.nn.functional.dropout(x, 0.5)]

    graph = traced(function, X)
    smaller = simplified(graph)
    torch.manual_seed(0)
    expected = results(graph, X)
    torch.manual_seed(0)
    got = results(smaller, X)
    assert expected[0].abs().min() > 0
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_changes_in_place_are_left_alone() -> None:
    def function(x: Tensor) -> list[Tensor]:
        y = x.clone()
        before = y + 0.0
        y.view(-1).add_(1.0)
        zero = torch.zeros_like(x)
        also = zero * x
        zero[0] = 1.0
        return [before, y + 0.0, y.clone(), also, zero * x]

    smaller = assert_same(function, X)
    assert "add_" in ops(smaller)


def test_strides_that_are_relied_on_stay() -> None:
    assert_same(lambda x: [torch.as_strided(x.T.clone() * 1.0, (3,), (2,)), x.T.clone()], X)


def test_what_is_changed_in_place_may_start_as_seeds() -> None:
    def function(x: Tensor) -> list[Tensor]:
        seeds = torch.eye(2, dtype=x.dtype)[:, :, None].expand(2, 2, 3) * x
        changed = seeds.clone()
        changed.view(2, 6)[0] += 1.0
        return [changed, seeds * 2]

    assert_same(function, X)


def test_equal_operations_are_done_once() -> None:
    smaller = assert_same(lambda x: [x.sin() * x.sin() + x.pow(2) - x.pow(2.0)], X)
    assert ops(smaller).count("sin") == 1


def test_numbers_of_other_types_are_other_numbers() -> None:
    integers = torch.arange(4)
    smaller = assert_same(lambda x: [x * 2, x * 2.0, x * True], integers)
    assert [leaf.dtype for leaf in results(smaller, integers)][1] == torch.float32


# --- one rule each ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(6).view(3, 2).view(2, 3).sin(),
        lambda x: x.T.T.sin(),
        lambda x: x.unsqueeze(0).squeeze(0).sin(),
        lambda x: x.detach().clone().contiguous().sin(),
        lambda x: (-(-(x * 1 + 0) / 1)).sin().pow(1),
        lambda x: x.expand(2, 3)[:, :].sin(),
        lambda x: x.unsqueeze(1).sum(1).sin(),
        lambda x: (x + torch.zeros(3, dtype=torch.float64)).sin(),
        lambda x: (torch.zeros(3) + x).sin() * torch.ones(2, 1),
        lambda x: x.pow(0) * x.sin() + torch.zeros_like(x) * x.exp(),
        lambda x: x.sin() + x @ torch.zeros(3, 3, dtype=torch.float64),
        lambda x: torch.addmm(x.sin(), torch.zeros(2, 4).double(), torch.ones(4, 3).double()),
        lambda x: x.sin() + aten.tanh_backward(torch.zeros_like(x), x.cos()),
        lambda x: x.sin() + torch.where(x > 2, torch.zeros_like(x), 0.0),
        lambda x: torch.eye(2, dtype=torch.float64) @ x.sin(),
    ],
)
def test_nothing_is_done_for_nothing(function: Any) -> None:
    smaller = assert_same(lambda x: [function(x)], X)
    assert ops(smaller) in (["sin"], ["view", "sin", "view"])


def test_zeros_keep_shapes_and_dtypes() -> None:
    half, zero = torch.randn(3).half(), torch.zeros(2, 1, dtype=torch.float64)

    def function(x: Tensor) -> list[Tensor]:
        return [x + zero.new_zeros(2, 1), x * zero.new_zeros(2, 1), zero.new_zeros(2, 3) - x]

    for got, expected in zip(
        results(assert_same(function, half), half), function(half), strict=True
    ):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)


def test_a_zero_of_the_structure_is_exact() -> None:
    smaller = simplified(traced(lambda x: [x * torch.zeros_like(x)], X))
    assert results(smaller, X / 0)[0].eq(0).all()


Y = torch.randn(2, 3, dtype=torch.float64)
W = torch.randn(6, 4, dtype=torch.float64)


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: eye(6) @ W,
        lambda y: (eye(6) * y.view(6)) @ W,
        lambda y: W.T @ (eye(6) * y.view(6)),
        lambda y: aten.tanh_backward(eye(6).view(6, 2, 3), y).view(6, 6) @ W,
        lambda y: (eye(6).view(6, 1, 6) * y.view(1, 6)).view(6, 6) @ W,
        # Samples on the left of the core.
        lambda y: eye(3).view(3, 1, 3).expand(3, 2, 3).reshape(6, 3) @ W[:3],
        lambda y: (eye(3).view(3, 1, 3).expand(3, 2, 3) * y).reshape(6, 3) @ W[:3],
        # What is summed over is on the right of it.
        lambda y: ((eye(2)[:, :, None] * y).reshape(4, 3) @ W[:3]).view(2, 2, 4).sum(1),
        lambda y: (eye(2)[:, :, None] * y).sum((1, 2)),
        lambda y: (eye(2)[:, :, None] * y).sum(2).sum(1),
        lambda y: (eye(6).view(6, 2, 3) * y).permute(0, 1, 2).sum((1, 2)),
        lambda y: torch.bmm(eye(3).view(3, 1, 3).expand(3, 2, 3) * y, W[:3].expand(3, 3, 4)),
        lambda y: (eye(6) * y.view(6)).mv(W[:, 0]),
        lambda y: (eye(6) + eye(6) * y.view(6)).mT @ W,
        lambda y: torch.where(y.view(6) > 0, eye(6), 0.0) @ W,
        # Parts of the seeds.
        lambda y: eye(6)[:, 2:5] @ W[:3],
        lambda y: (eye(6).view(6, 2, 3)[:, 1] * y[0]) @ W[:3],
        lambda y: (eye(6).view(6, 2, 3).unbind(2)[0] * y[:, 0]).sum(1),
        lambda y: eye(6)[:, 3, None] * y[0],
        lambda y: (eye(6)[:, :3] * y[0] + eye(6)[:, 3:] * y[1]) @ W[:3],
        lambda y: (eye(6)[:, :3] - eye(6)[:, 3:] * y[1]) @ W[:3],
        lambda y: ((eye(6) * y.view(6))[1:4] + 1)[0],
        lambda y: (eye(6)[:4] * y.view(6)) @ W,
        lambda y: torch.slice_scatter(torch.zeros(8, 6).double(), eye(6) * y.view(6), 0, 1, 7) @ W,
        # In groups.
        lambda y: torch.slice_scatter(torch.zeros(5, 3).double(), y, 0, 1, 3).T.sum(0),
        lambda y: (
            (W[:3].T @ torch.slice_scatter(torch.zeros(5, 3).double(), y, 0, 1, 3).T).T * W[0]
        ),
        lambda y: torch.slice_scatter(torch.zeros(5, 3).double(), y, 0, 1, 3)[2:, 1:] * W[:3, :2],
        lambda y: torch.slice_scatter(torch.zeros(5, 3).double(), y, 0, 3, 5)[:2] + y,
        lambda y: torch.slice_scatter(torch.zeros(2, 3).double(), y[:, :1], 1, 1, 2) * y,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 1, 3).view(2, 6) @ W,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 2, 4).view(2, 6) @ W,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 2, 4).split(2, 1)[1] * 2,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 1, 3).sum(0) - y,
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 1, 3).exp(),
        lambda y: torch.slice_scatter(torch.zeros(4, 3).double(), y, 0, 0, 2).mT.reshape(3, 2, 2),
        # As they are.
        lambda y: eye(6) * y.view(6),
        lambda y: eye(3).view(3, 1, 3).expand(3, 2, 3) * y,
        lambda y: eye(6)[:, 1:4] * y[0],
        lambda y: (eye(2)[:, :, None] * y) / 3.0,
        lambda y: (eye(6) * y.view(6)).exp(),
        lambda y: eye(6) * W[:, :1],
        lambda y: eye(6).float() * 2,
        lambda y: torch.eye(6, 4, dtype=torch.float64) * W,
        lambda y: torch.eye(4, 6, dtype=torch.float64) * W.T,
        lambda y: torch.eye(1, dtype=torch.float64) * y,
        lambda y: torch.eye(0, dtype=torch.float64) @ W[:0],
    ],
)
def test_diagonals(function: Any) -> None:
    assert_same(lambda y: [function(y)], Y)


def test_nothing_leaves_the_diagonal() -> None:
    smaller = simplified(traced(lambda y: [eye(2)[:, :, None].expand(2, 2, 3) * y], Y))
    got = results(smaller, Y / 0)[0]
    assert got[0, 1].eq(0).all()
    assert got[0, 0].isinf().all()


# --- what is left of derivatives -----------------------------------------------------------------


def jacobian(build: Any, mode: Any, transform: Any = torchjac.jac, **options: Any) -> Any:
    func, (x, *others) = build()
    derivative = transform(func, mode=mode, check="never", **options)
    return traced(lambda x: [derivative(x, *others)], x)


def test_an_mlp_in_reverse_mode() -> None:
    """The first product of three is with the seeds, and is a scaled weight."""
    graph = jacobian(lambda: (workloads.tanh_mlp(5, 4, 3, 2), (torch.randn(5),)), "reverse")
    left = ops(simplified(graph))
    assert ops(graph).count("mm") == 3
    assert left.count("mm") == 2
    assert not {"eye", "clone", "detach", "_unsafe_view"} & set(left)


def test_an_mlp_with_a_last_tanh() -> None:
    model = nn.Sequential(workloads.tanh_mlp(5, 4, 3), nn.Tanh())
    left = ops(simplified(jacobian(lambda: (model, (torch.randn(5),)), "reverse")))
    assert left.count("mm") == 1
    assert "eye" not in left


def test_a_batch_of_mlps() -> None:
    graph = jacobian(
        lambda: (workloads.tanh_mlp(5, 4, 3, 2), (torch.randn(7, 5),)),
        "reverse",
        torchjac.batched_jac,
    )
    left = ops(simplified(graph))
    assert ops(graph).count("mm") == 6
    assert left.count("mm") == 2 + 2  # of the value's three the last is of no use
    assert "eye" not in left


def test_an_mlp_in_forward_mode() -> None:
    """One product a layer for the value and one for the tangents, but for the first."""
    graph = jacobian(lambda: (workloads.tanh_mlp(5, 4, 3, 2), (torch.randn(5),)), "forward")
    left = ops(simplified(graph))
    assert not {"_efficientzerotensor", "zeros", "eye", "alias", "squeeze_"} & set(left)
    assert left.count("mm") == 2 + 2  # of which the value's last is of no use


def test_every_result_has_its_own_seeds() -> None:
    """Each block of the Jacobian is computed from the seeds of its result alone."""
    weight = torch.randn(5, 4)

    def func(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(weight @ x) * y.sum(), x.sin()

    for mode in ("forward", "reverse"):
        derivative = torchjac.jac(func, (0, 1), mode=mode, check="never")
        function, leaves = flat(derivative, (torch.randn(4), torch.randn(3)))
        function = torch.func.functionalize(function, remove="mutations")
        left = ops(assert_same(function, *leaves))
        assert "mm" not in left
        assert not {"eye", "slice_scatter", "where", "constant_pad_nd"} & set(left)


# Upper bounds; a rule that stops working shows here.
COUNTS = {
    (workloads.tiny, "reverse"): 5,
    (workloads.tiny, "forward"): 6,
    (workloads.seven_joint_arm, "reverse"): 83,  # 82 on torch 2.13
    (workloads.seven_joint_arm, "forward"): 84,
    (workloads.mlp_square, "reverse"): 7,
    (workloads.mlp_square, "forward"): 10,
    (workloads.waist_autoencoder, "reverse"): 21,
    (workloads.waist_autoencoder, "forward"): 26,
    (workloads.elementwise, "reverse"): 12,
    (workloads.elementwise, "forward"): 12,
    (workloads.rbf_fit, "reverse"): 36,
    (workloads.rbf_fit, "forward"): 59,
    (workloads.very_tall, "reverse"): 7,
    (workloads.dot_product, "forward"): 1,
    (workloads.conv_classifier, "reverse"): 19,
}


@pytest.mark.parametrize(("build", "mode"), list(COUNTS))
def test_workloads_need_no_more_operations(build: Any, mode: str) -> None:
    left = simplified(jacobian(build, mode))
    assert sum(node.op == "call_function" for node in left.graph.nodes) <= COUNTS[build, mode]


@pytest.mark.parametrize(
    ("build", "transform", "mode", "most"),
    [
        (workloads.small_batch, torchjac.batched_jac, "reverse", 10),
        (workloads.small_batch, torchjac.batched_jac, "forward", 18),
        (workloads.mlp_hessian, torchjac.hessian, "reverse-over-reverse", 28),
        (workloads.mlp_hessian, torchjac.hessian, "forward-over-reverse", 31),
    ],
)
def test_other_transforms_need_no_more_operations(
    build: Any, transform: Any, mode: str, most: int
) -> None:
    left = simplified(jacobian(build, mode, transform))
    assert sum(node.op == "call_function" for node in left.graph.nodes) <= most
