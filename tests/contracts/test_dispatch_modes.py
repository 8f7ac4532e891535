"""Dispatch modes and fake tensors, which `torchjac.structure.detection` watches derivatives with."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 1):
    pytest.skip("older than what detection needs", allow_module_level=True)


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        assert all(type(arg) is FakeTensor for arg in args if isinstance(arg, torch.Tensor))
        return func(*args, **(kwargs or {}))


def watched(function):
    with FakeTensorMode() as fake, Watch() as watch:
        result = function(torch.empty(3))
    return result, watch.seen, fake


def test_ops_reach_a_mode_below_the_transforms():
    """`_Watch.__torch_dispatch__` sees the derivative's ops, on tensors without wrappers."""

    def by_forward(x):
        return torch.func.jvp(torch.tanh, (x,), (x,))[1]

    def by_reverse(x):
        return torch.func.vjp(torch.tanh, x)[1](x)[0]

    def by_autograd(x):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(leaf.tanh(), leaf, x)[0]

    assert "aten.tanh_backward.default" in watched(by_forward)[1]
    assert "aten.tanh_backward.default" in watched(by_reverse)[1]
    assert "aten.tanh_backward.default" in watched(by_autograd)[1]


def test_fake_views_share_a_storage_and_keep_their_strides():
    """`Storages` needs no rule for views."""

    def views(x):
        return x, x[1:], x.reshape(3, 1).t()

    base, part, turned = watched(views)[0]
    keys = {tensor.untyped_storage()._cdata for tensor in (base, part, turned)}
    assert len(keys) == 1
    assert (part.storage_offset(), part.stride(), turned.stride()) == (1, (1,), (1, 1))


def test_an_address_is_not_given_away_while_a_weak_reference_exists():
    """`storages._weak`."""
    storage = torch.zeros(3).untyped_storage()
    address, weak = storage._cdata, StorageWeakRef(storage)
    del storage
    assert weak.expired()
    others = [torch.zeros(3).untyped_storage() for _ in range(200)]
    assert address not in {other._cdata for other in others}


def test_a_fake_tensor_refuses_to_tell_values():
    """`trace._as_structure_error` knows these by what they say."""
    with FakeTensorMode():
        x = torch.empty(3)
        with pytest.raises(RuntimeError, match=r"\.numpy\(\) is not supported"):
            x.numpy()


def test_values_are_computed_where_modes_are_off():
    """`Interpreter.value`."""
    with FakeTensorMode(), _disable_current_modes():
        assert torch.arange(3).tolist() == [0, 1, 2]


def test_elementwise_ops_are_tagged():
    """`facts_of` takes the rule of elementwise ops from their tag."""
    aten = torch.ops.aten
    tagged = (aten.mul.Tensor, aten.sin.default, aten.tanh_backward.default, aten.add_.Tensor)
    for op in tagged:
        assert torch.Tag.pointwise in op.tags
    for op in (aten.sum.default, aten.cumsum.default, aten.mm.default, aten.roll.default):
        assert torch.Tag.pointwise not in op.tags


def test_the_tag_is_on_nothing_that_mixes_elements():
    """Every tagged op that can be called on a matrix alone gives element (i, j) from (i, j)."""
    x = torch.rand(2, 3, dtype=torch.float64) * 0.5 + 0.25
    names = [name for name in dir(torch.ops.aten) if not name.endswith("_")]
    tried = 0
    for name in names:
        packet = getattr(torch.ops.aten, name)
        op = getattr(packet, "default", None)
        if op is None or torch.Tag.pointwise not in op.tags or len(op._schema.arguments) != 1:
            continue
        try:
            value = op(x)
        except (RuntimeError, NotImplementedError):
            continue
        changed = x.clone()
        changed[0, 0] += 0.1
        same = (op(changed) == value) | (op(changed).isnan() & value.isnan())
        assert same.reshape(-1)[1:].all(), name
        tried += 1
    assert tried > 40
