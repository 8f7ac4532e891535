"""What `planning.contractions.estimates` asks the layers of vmap, and `laplacian_trace` the tracer."""

import pytest
import torch
from torch.func import grad, vmap

functorch = torch._C._functorch


def test_a_layer_of_vmap_tells_its_size_and_its_randomness() -> None:
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        layer = functorch.peek_interpreter_stack()
        assert layer.key() == functorch.TransformType.Vmap
        pointer = functorch.CVmapInterpreterPtr(layer)
        different = pointer.randomness() == functorch.RandomnessType.Different
        seen.append((pointer.batchSize(), different))
        return x

    vmap(look)(torch.zeros(3))
    vmap(look, randomness="different")(torch.zeros(4))
    assert seen == [(3, False), (4, True)]


def test_a_wrapped_tensor_is_told_from_a_plain_one() -> None:
    wrapped = []

    def look(x: torch.Tensor) -> torch.Tensor:
        wrapped.append(functorch.is_functorch_wrapped_tensor(x))
        return x.sum()

    grad(look)(torch.zeros(3))
    vmap(look)(torch.zeros(3))
    look(torch.zeros(3))
    assert wrapped == [True, True, False]


@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="traces need torch 2.1")
def test_operations_are_decomposed_within_a_trace() -> None:
    from torch.fx.experimental.proxy_tensor import decompose, make_fx

    aten = torch.ops.aten

    def sine(x: torch.Tensor) -> torch.Tensor:
        return (x + 1).cos()

    def func(x: torch.Tensor) -> torch.Tensor:
        with decompose({aten.sin.default: sine, aten.exp.default: lambda x: NotImplemented}):
            return x.sin().exp()

    graph = make_fx(func, tracing_mode="fake")(torch.zeros(3))
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert targets == [aten.add.Tensor, aten.cos.default, aten.exp.default]


@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="traces need torch 2.1")
def test_elementwise_operations_say_so() -> None:
    aten = torch.ops.aten
    assert all(torch.Tag.pointwise in op.tags for op in (aten.tanh.default, aten.div.Tensor))
    assert not any(torch.Tag.pointwise in op.tags for op in (aten.mm.default, aten.cumsum.default))
