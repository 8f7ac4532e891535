"""What a signature tells of transforms, modules, classes and records that a function reaches."""

import dataclasses
import functools
import gc
import types
import weakref

import pytest
import torch

import torchjac
from tests.planning.described import same
from torchjac.planning.search import Search
from torchjac.planning.signature import of_arguments, of_function


def around_all(options):
    return [
        torchjac.jac(torch.sin, **options),
        torchjac.hessian(torch.sin, **options),
        torchjac.batched_jac(torch.sin, **options),
        torchjac.laplacian(torch.sin, **options),
        torchjac.jac_diag(torch.sin, **options),
        torchjac.divergence(torch.sin, **options),
        torchjac.jac_blocks(torch.sin, **options),
    ]


def test_transforms_are_their_options_and_their_function():
    made = around_all({})
    described = [of_function(transform)[0] for transform in made]
    assert described == [of_function(transform)[0] for transform in around_all({})]
    others = [of_function(transform)[0] for transform in around_all({"chunk_size": 1})]
    assert len({*described, *others}) == 2 * len(made)
    # All that is known of one is known: its own functions are not looked into.
    assert all(len(repr(key)) < 1000 for key in described)


def test_a_function_that_wraps_a_transform_is_no_transform():
    def wrapping(held):
        @functools.wraps(torchjac.jac(torch.sin))
        def func(x):
            return held(x)

        return func

    assert same(wrapping(torch.sin), wrapping(torch.sin))
    assert not same(wrapping(torch.sin), wrapping(torch.cos))


def over(*held):
    return lambda x: (x, held)[0]


def repeated(first):
    a, b = [1.0], [5.0]
    return over(a, b, a if first else b)


class Words(str):
    """A text that may hold more."""

    __slots__ = ("more",)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (repeated(True), repeated(False)),
        (functools.partial(torch.add, input=1), functools.partial(torch.add, other=1)),
        (over({"a": 2}), over({"b": 2})),
        (over({1: None}), over({2: None})),
        (over({1: 2.0}), over({"1": 2.0})),
        (over(torch.ones(1, requires_grad=True)), over(torch.ones(2, requires_grad=True))),
    ],
    ids=["which of two", "keywords", "keys", "keys of nothing", "types of keys", "shapes"],
)
def test_what_a_pattern_depends_on_is_told_apart(one, other):
    described = [of_function(func, Search(values=True))[0] for func in (one, other)]
    assert described[0] != described[1]


def with_act(act):
    module = torch.nn.Identity()
    module.act = act
    return module


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.__setitem__(1, torch.nn.ReLU()),
        lambda net: net.append(torch.nn.Tanh()),
        lambda net: net[1].register_forward_hook(lambda *_: None),
        lambda net: net[1].register_forward_pre_hook(lambda *_: None),
        lambda net: setattr(net[0], "act", torch.cos),
        lambda net: setattr(net[0], "kind", types.SimpleNamespace),
        lambda net: setattr(net[1], "forward", torch.sin),
    ],
)
def test_what_a_module_does_now_counts(change):
    net = torch.nn.Sequential(with_act(torch.sin), torch.nn.Tanh())
    before, _ = of_function(net)
    assert before == of_function(net)[0]
    change(net)
    assert before != of_function(net)[0]


def test_a_text_that_may_hold_more_leaves_doubts():
    search = Search(values=True)
    of_function(over(Words("a")), search)
    assert not search.is_sure


def test_what_else_is_written_on_a_transform_leaves_doubts():
    transform = torchjac.jac(torch.sin)
    for sure in (True, False):
        search = Search(values=True)
        of_function(transform, search)
        assert search.is_sure is sure
        transform.shift = 1


def test_a_wrapper_in_a_namespace_without_a_name():
    space = {"wraps": functools.wraps, "held": torchjac.jac(torch.sin)}
    exec("@wraps(held)\ndef func(x): return held(x) * 2", space)
    torch.testing.assert_close(torchjac.jac(space["func"])(torch.zeros(2)), torch.zeros(2, 2, 2))


def test_classes_of_the_language_are_described():
    of_function(over(types.FunctionType, type, torch.Tensor, torch.ops.aten.sin, property))


def test_no_class_is_kept_alive():
    def differentiated():
        weight = torch.rand(3)

        class Layer:
            def act(self, x):
                return x * weight

        layer = Layer()
        torchjac.jac(lambda x: layer.act(x))(torch.rand(3))
        return weakref.ref(weight)

    ref = differentiated()
    gc.collect()
    assert ref() is None


def test_a_module_in_a_container_of_an_object_is_reached():
    class Trainer:
        def __init__(self):
            self.nets = {"g": torch.nn.BatchNorm1d(3).eval()}

    trainer = Trainer()

    def func(x):
        return trainer.nets["g"](x)

    before = of_function(func)
    trainer.nets["g"].train()
    assert of_function(func) != before
    assert before[1]


def test_a_new_object_without_functions_is_no_new_signature():
    class Point:
        def __init__(self, x):
            self.x = x

    assert of_arguments((torch.ones(2), Point(1.0)), {}) == of_arguments(
        (torch.ones(2), Point(2.0)), {}
    )


@dataclasses.dataclass(frozen=True)
class Frozen:
    factor: float
    func: object = torch.sin


@dataclasses.dataclass(frozen=True)
class WithMethod:
    factor: float

    def scaled(self, x):
        return x * self.factor


@dataclasses.dataclass
class Thawed:
    factor: float


@pytest.mark.parametrize(
    ("record", "sure"), [(Frozen(2.0), True), (WithMethod(2.0), False), (Thawed(2.0), False)]
)
def test_records_are_told_by_their_fields(record, sure):
    def func(x):
        return x * record.factor

    search = Search(values=True)
    described, _ = of_function(func, search)
    assert search.is_sure is sure
    if sure:
        record = dataclasses.replace(record, factor=3.0)
        assert of_function(func, Search(values=True))[0] != described
