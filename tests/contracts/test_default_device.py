"""A default device is a mode, which `torchjac.evaluation.surroundings` tells from modes that do more."""

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def test_a_default_device_is_a_mode_of_that_device():
    """`surroundings._default_device`."""
    assert _get_current_function_mode_stack() == []
    assert torch._C._len_torch_function_stack() == 0
    with torch.device("meta"), torch.device("cpu"):
        outer, inner = _get_current_function_mode_stack()
        assert type(outer) is type(inner) is DeviceContext
        assert (outer.device.type, inner.device.type) == ("meta", "cpu")
        assert torch._C._len_torch_function_stack() == 2


def test_the_innermost_default_device_counts():
    """`surroundings._default_device`."""
    with torch.device("meta"), torch.device("cpu"):
        assert torch.empty(1).device.type == "cpu"


def test_setting_a_default_device_enters_such_a_mode():
    """`surroundings.defaults`."""
    torch.set_default_device("meta")
    try:
        (mode,) = _get_current_function_mode_stack()
        assert (type(mode), mode.device.type) == (DeviceContext, "meta")
    finally:
        torch.set_default_device(None)
    assert torch.empty(1).device.type == "cpu"


def test_a_program_of_operations_asks_no_default_device():
    """`planning.plans.plan.Plan.__call__` runs a graph under any."""
    with torch.device("meta"):
        made = torch.ops.aten.zeros.default([2], device=torch.device("cpu"))
    assert made.device.type == "cpu"


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_is_seen_whatever_the_device(enabled):
    """`surroundings.nothing_around`."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        assert torch._C._is_any_autocast_enabled() == enabled
