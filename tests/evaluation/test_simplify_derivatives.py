"""What is left of simplified derivatives: a bound on the operations of every workload."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac
from benchmarks import workloads
from tests.evaluation.graphs import TRACES, assert_same, flat, ops, simplified, traced

pytestmark = [
    pytest.mark.skipif(not TRACES, reason="needs torch 2.4"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


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
