"""Questions to PyTorch's global state: torchjac/evaluation/surroundings.py and planning/look.py."""

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

SINCE_2_1 = hasattr(torch, "compiler")


class Log(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.shapes.append(tuple(result.shape))
        return result


# torchjac/evaluation/surroundings.py: compiling, has_values, ordinary_mode, is_out_of_memory


def test_the_compiler_can_be_asked_whether_it_is_tracing():
    if not SINCE_2_1:
        pytest.skip("torch.compiler came with torch 2.1; before, torch.func cannot be compiled")
    assert torch.compiler.is_compiling() is False


def test_the_dispatch_stack_counts_modes_and_not_transforms():
    count = torch._C._len_torch_dispatch_stack
    seen = []
    torch.func.grad(lambda x: (seen.append(count()), x)[1])(torch.ones(()))
    with Log():
        seen.append(count())
    assert [*seen, count()] == [0, 1, 0]


def test_a_fake_tensor_names_its_mode():
    assert hasattr(FakeTensorMode().from_tensor(torch.ones(2)), "fake_mode")
    assert not hasattr(torch.ones(2), "fake_mode")


def test_grad_mode_can_be_set_without_a_context():
    # torchjac/evaluation/engines.py: record
    try:
        torch._C._set_grad_enabled(False)
        assert not torch.is_grad_enabled()
    finally:
        torch._C._set_grad_enabled(True)
    assert torch.is_grad_enabled()


def test_grad_mode_alone_does_not_record_within_inference_mode():
    x = torch.ones(2)
    with torch.inference_mode(), torch.enable_grad():
        assert torch.is_inference_mode_enabled()
    with torch.inference_mode(), torch.inference_mode(False), torch.enable_grad():
        assert x.detach().requires_grad_().sin().requires_grad


def test_a_tensor_of_inference_mode_cannot_be_saved_but_a_copy_can():
    with torch.inference_mode():
        made = torch.ones(2)
        with torch.inference_mode(False):
            copy = made.clone()
    assert made.is_inference()
    assert not copy.is_inference()
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        weight * made
    assert (weight * copy).requires_grad


def test_running_out_of_memory_is_a_runtime_error():
    assert issubclass(torch.cuda.OutOfMemoryError, RuntimeError)


def test_a_cpu_that_runs_out_of_memory_says_so():
    with pytest.raises(RuntimeError, match="allocate memory"):
        torch.empty(2**60, dtype=torch.int8)


def test_setting_the_state_back_repeats_a_draw():
    before = torch.get_rng_state()
    first = torch.rand(3)
    torch.set_rng_state(before)
    assert torch.equal(torch.rand(3), first)


# torchjac/planning/look.py


def test_a_dispatch_mode_sees_the_ops_of_plain_code():
    with Log() as log:
        torch.ones(2, 3).sum(0)
    assert log.shapes == [(2, 3), (3,)]


def test_a_dispatch_mode_sees_the_ops_within_vmap_with_their_whole_batch():
    x = torch.ones(4, 3)
    with Log() as log:
        torch.func.vmap(lambda row: row.sin())(x)
    assert (4, 3) in log.shapes


# torchjac/transforms/jac.py: like_func


def test_wraps_without_updates_takes_no_attributes_from_a_module():
    module = torch.nn.Linear(2, 2)
    module.__name__ = "linear"

    @functools.wraps(module, updated=())
    def wrapper():
        pass

    assert wrapper.__name__ == "linear"
    assert wrapper.__wrapped__ is module
    assert not hasattr(wrapper, "_parameters")


def test_the_level_of_forward_mode_is_told():
    """evaluation/surroundings.py: `carry_tangents` asks it before it looks at tensors."""
    assert torch.autograd.forward_ad._current_level == -1
    with torch.autograd.forward_ad.dual_level():
        assert torch.autograd.forward_ad._current_level == 0


# torchjac/evaluation/surroundings.py: without_transforms, without_modes, inside_vmap


def test_the_stack_says_which_transforms_there_are():
    if not SINCE_2_1:
        pytest.skip("torch 2.0 shows the innermost transform alone")
    functorch, seen = torch._C._functorch, []

    def func(x):
        vmap = functorch.TransformType.Vmap
        seen.append([layer.key() == vmap for layer in functorch.get_interpreter_stack()])
        return x.sum()

    torch.func.vmap(torch.func.grad(func))(torch.ones(2, 3))
    assert seen == [[True, False]]
    assert not functorch.get_interpreter_stack()


def test_dispatch_modes_can_be_stepped_out_of():
    if not SINCE_2_1:
        pytest.skip("only what detects patterns needs it, and that came with torch 2.1")
    with FakeTensorMode(), torch.utils._python_dispatch._disable_current_modes():
        assert torch._C._len_torch_dispatch_stack() == 0
        assert torch.ones(2).tolist() == [1, 1]


def test_the_layers_of_transforms_can_be_taken_off_and_put_back():
    functorch, seen = torch._C._functorch, []

    def func(x):
        layers = []
        while functorch.peek_interpreter_stack() is not None:
            layers.append(functorch.pop_dynamic_layer_stack())
        seen.append((len(layers), torch.ones(2).numpy().tolist()))
        while layers:
            functorch.push_dynamic_layer_stack(layers.pop())
        return (x * torch.ones(())).sin()

    x = torch.ones(3)
    got = torch.func.vmap(torch.func.grad(func))(x)
    torch.testing.assert_close(got, x.cos())
    assert seen == [(2, [1.0, 1.0])]


# torchjac/structure/blocks.py


def test_a_tensor_tells_whether_a_transform_has_wrapped_it():
    is_wrapped, seen = torch._C._functorch.is_functorch_wrapped_tensor, []
    torch.func.vmap(lambda x: (seen.append(is_wrapped(x)), x)[1])(torch.ones(2))
    torch.func.grad(lambda x: (seen.append(is_wrapped(x)), x)[1])(torch.ones(()))
    assert [*seen, is_wrapped(torch.ones(2))] == [True, True, False]
