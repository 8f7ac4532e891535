"""What is no change of what a function captures: a run, a write into a tensor, an equal number."""

import collections
import enum
import functools
import math
import operator
import types

import pytest
import torch
from torch import nn

from tests.planning.captured import Config, Net, Scaled, Slotted, closing_over, mlp, settings
from torchjac.planning.captured.captures import Captures


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "held",
    [
        *(
            None,
            2.0,
            math.nan,
            "max",
            torch.Size([2]),
            torch.float32,
            torch.device("cpu"),
            Colour.RED,
        ),
        *(torch.ones(2), torch.sin, torch.ops.aten.sin.default, math.sin, slice(0, 2), ...),
        *([1.0, [torch.ones(2)]], {"a": (1, {2})}, {1, 2}, frozenset({1}), collections.deque([1])),
        *(Config(), Slotted(), Scaled(), Scaled, Net(), mlp(), nn.LSTM(2, 2), settings),
        *(functools.partial(torch.add, alpha=2.0), [1].count, Scaled().scale, object()),
        *(
            collections.defaultdict(list, a=[1]),
            types.SimpleNamespace(a=1),
            types.MappingProxyType({}),
        ),
        functools.lru_cache(closing_over),
    ],
    ids=lambda held: type(held).__name__,
)
def test_nothing_changes_by_itself(held):
    captures = Captures.of(closing_over(held))
    assert captures.changed() is None
    assert captures.is_sure, captures.unsure_of


def test_nothing_changes_when_a_module_runs():
    for module in (Net(), mlp(), nn.LSTM(2, 2), nn.MultiheadAttention(2, 1)):
        captures = Captures.of(module)
        module(*[torch.ones(3, 2)] * (3 if isinstance(module, nn.MultiheadAttention) else 1))
        assert captures.changed() is None


def test_a_write_into_a_tensor_is_no_change_but_a_new_version():
    module = mlp()
    captures = Captures.of(module)
    before = captures.versions()
    with torch.no_grad():
        module[0].weight.mul_(2)
    module[0].weight.requires_grad_(False)
    assert captures.changed() is None
    assert sum(map(operator.ne, before, captures.versions())) == 1


def test_inference_tensors_have_no_version():
    with torch.inference_mode():
        held = torch.ones(2)
    assert Captures.of(closing_over(held)).versions() == (0,)


@pytest.mark.parametrize(
    "equal",
    [
        *(lambda: float("2.5"), lambda: int("1234"), lambda: "".join("abc"), lambda: float("nan")),
        *(lambda: tuple([float("2.5")] * 2), lambda: torch.device("cpu"), lambda: complex("2j")),
    ],
)
def test_an_equal_constant_is_no_change_and_is_expected_from_then_on(equal):
    held = {"a": equal(), "b": Config(equal())}
    captures = Captures.of(closing_over(held))
    for _ in range(2):
        held["a"], held["b"].scale = equal(), equal()
        assert captures.changed() is None
    held["a"] = "other"
    assert captures.changed()


@pytest.mark.parametrize(("before", "now"), [(2, 2.0), (1, True), (0.0, -0.0), ([1], [1])])
def test_what_is_merely_equal_is_a_change(before, now):
    held = [before]
    captures = Captures.of(closing_over(held))
    held[0] = now
    assert captures.changed()


def test_what_others_write_into_modules_and_classes_is_no_change(monkeypatch):
    python_module, cls = types.ModuleType("someone"), type("Owner", (), {})
    captures = Captures.of(lambda x: (python_module, cls(), getattr(cls, "scale", 1)))
    python_module.other = cls.other = 1
    python_module.scale = types.ModuleType("someone.scale")  # a part of it was imported
    assert captures.changed() is None
    monkeypatch.setattr(Captures, "_compare", lambda self: "compared")
    assert captures.changed() is None
    python_module.another = 1
    assert captures.changed() == "compared"
