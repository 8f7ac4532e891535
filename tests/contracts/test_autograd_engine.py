"""Plain autograd below its public face: torchjac/evaluation/engines.py and graphs.py rely on this."""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

functorch = torch._C._functorch
run_backward = torch.autograd.Variable._execution_engine.run_backward

# torchjac/evaluation/engines.py: Graph.multiply


def backward(values, cotangents, primals, *, retain=False, create=False):
    return run_backward(values, cotangents, retain, create, primals, True, accumulate_grad=False)


def test_run_backward_returns_what_grad_returns_and_leaves_no_gradient_behind():
    x = torch.randn(3, requires_grad=True)
    u = torch.randn(3)
    (pulled,) = backward((x.sin(),), (u,), (x,))
    torch.testing.assert_close(pulled, u * x.detach().cos())
    assert x.grad is None


def test_run_backward_gives_none_for_a_primal_that_was_not_used():
    x, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    pulled = backward((x * 2,), (torch.ones(2),), (x, unused))
    assert pulled[1] is None


def test_run_backward_accepts_a_primal_as_its_own_output():
    x = torch.ones(2, requires_grad=True)
    torch.testing.assert_close(backward((x,), (torch.arange(2.0),), (x,))[0], torch.arange(2.0))


def test_run_backward_sums_over_several_outputs():
    x = torch.ones((), requires_grad=True)
    pulled = backward((x * 2, x * 3), (torch.tensor(1.0), torch.tensor(10.0)), (x,))
    torch.testing.assert_close(pulled[0], torch.tensor(32.0))


def test_run_backward_retains_the_graph_only_when_told():
    x = torch.ones(2, requires_grad=True)
    y = x.sin()
    backward((y,), (torch.ones(2),), (x,), retain=True)
    backward((y,), (torch.ones(2),), (x,))
    with pytest.raises(RuntimeError, match="second time"):
        backward((y,), (torch.ones(2),), (x,))


def test_run_backward_creates_a_graph_when_told():
    x = torch.ones(2, requires_grad=True)
    kept, dropped = (
        backward((x.sin(),), (torch.ones(2),), (x,), create=create)[0] for create in (True, False)
    )
    assert kept.requires_grad
    assert not dropped.requires_grad


def test_run_backward_takes_batched_cotangents_over_a_plain_graph():
    x = torch.randn(3, requires_grad=True)
    y = x.sin()
    torch.func.vmap(torch.neg)(torch.zeros(1))  # loads the decompositions
    level = functorch._vmap_increment_nesting(3, "same")
    try:
        rows = functorch._add_batch_dim(torch.eye(3), 0, level)
        (pulled,) = backward((y,), (rows,), (x,))
        jacobian = functorch._remove_batch_dim(pulled, level, 3, 0)
    finally:
        functorch._vmap_decrement_nesting()
    torch.testing.assert_close(jacobian, x.detach().cos().diag())


def test_a_leaf_made_by_detach_shares_no_flag_with_what_it_was_made_from():
    x = torch.ones(2)
    assert x.detach().requires_grad_().requires_grad
    assert not x.requires_grad


# torchjac/evaluation/graphs.py


def test_only_the_node_that_accumulates_into_a_leaf_has_a_variable():
    x = torch.ones(2, requires_grad=True)
    node = (x * 2).grad_fn
    assert not hasattr(node, "variable")
    ((parent, _),) = ((p, i) for p, i in node.next_functions if p is not None)
    assert parent.variable is x


def test_nodes_of_one_graph_are_the_same_objects_on_every_walk():
    x = torch.ones(2, requires_grad=True)
    middle = x.sin()
    left, right = middle * 2, middle * 3
    seen = {left.grad_fn.next_functions[0][0], right.grad_fn.next_functions[0][0]}
    assert seen == {middle.grad_fn}


def test_a_prehook_of_a_node_runs_before_it_and_can_be_removed():
    x = torch.ones(2, requires_grad=True)
    y = x.sin()
    seen = []
    handle = y.grad_fn.register_prehook(lambda _: seen.append("sin"))
    torch.autograd.grad(y, x, torch.ones(2), retain_graph=True)
    handle.remove()
    torch.autograd.grad(y, x, torch.ones(2))
    assert seen == ["sin"]


def test_input_metadata_tells_the_shape_and_dtype_of_a_result():
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    node = x.sin().grad_fn
    if not hasattr(node, "_input_metadata"):
        pytest.skip("this version of PyTorch does not tell")
    (metadata,) = node._input_metadata
    assert tuple(metadata.shape) == (2, 3)
    assert metadata.dtype is torch.float64
    assert metadata.dtype.itemsize == 8


# torchjac/evaluation/graphs.py: _leaves


def test_the_nodes_that_accumulate_into_a_leaf_are_of_one_class_and_no_others_have_a_variable():
    x = torch.ones(2, requires_grad=True)
    product = (x * 2).grad_fn
    ((leaf, _), _) = product.next_functions
    assert type(leaf) is torch._C._functions.AccumulateGrad
    assert leaf.variable is x
    assert not hasattr(product, "variable")


# torchjac/structure/detection/questions.py: asks_in_vain


@pytest.mark.parametrize("op", ["scatter_reduce", "index_reduce"])
@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
def test_the_node_whose_formula_asks_for_a_value_is_the_current_one(op):
    asked = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                asked.append(torch._C._current_autograd_node().name())
            return func(*args, **(kwargs or {}))

    x = torch.ones(3, requires_grad=True)
    at = torch.tensor([0, 1, 1])
    products = getattr(torch.ones(2), op)(0, at, x, "prod")
    with Watch():
        (grad,) = torch.autograd.grad(products.sum(), x, create_graph=True)
        torch.autograd.grad(grad.sum(), x)
    assert set(asked) == {f"{''.join(map(str.capitalize, op.split('_')))}Backward0"}
    assert torch._C._current_autograd_node() is None


# torchjac/planning/fallback.py: is_of_a_backward


def test_what_a_backward_raises_went_through_the_apply_of_its_node_and_a_refusal_did_not():
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("mine")

    apply = torch.autograd.function.BackwardCFunction.apply.__code__
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="mine") as caught:
        torch.autograd.grad(Raises.apply(x).sum(), x)
    codes = [frame.f_code for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert codes.index(apply) < codes.index(Raises.backward.__code__)
    y = x.exp()
    z = y * y
    y.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
        torch.autograd.grad(z.sum(), x)
    assert apply not in [f.f_code for f, _ in traceback.walk_tb(caught.value.__traceback__)]
