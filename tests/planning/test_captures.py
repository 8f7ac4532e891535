import collections
import contextlib
import dataclasses
import enum
import functools
import logging
import math
import operator
import os
import pathlib
import random
import threading
import time
import types
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import torchjac
from torchjac.planning.captured.captures import Captures

alpha = 2.0
table = {"weights": [1.0, 2.0]}
settings = types.ModuleType("settings")
settings.alpha, settings.other = 2.0, 2.0


def closing_over(value):
    return lambda x: value


def lazy_linear():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # before torch 2.1 lazy modules said that they were new
        return nn.LazyLinear(2)


def mlp():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))


@dataclasses.dataclass
class Config:
    scale: float = 2.0
    offset: torch.Tensor = None


class Kind(type):
    @property
    def scale(cls):
        return cls.hidden


class OfKind(metaclass=Kind):
    hidden = 2.0


class Worker(threading.Thread):
    pass


def importing_a_pool():
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor


def without_modes():
    return torch._C.DisableTorchFunction()


class Slotted:
    __slots__ = ("__hidden", "scale")

    def __init__(self):
        self.scale, self.__hidden = 2.0, [1.0]

    def hide(self):
        self.__hidden[0] = 2.0


class Scaled:
    factor = 2.0

    def __init__(self):
        self.calls, self.inner = 0, Config()

    def __call__(self, x):
        return self.scale(x) * self.half

    def scale(self, x):
        return x * self.factor * alpha * self.inner.scale

    @property
    def half(self):
        return settings.alpha / 2


class Net(nn.Module):
    gain = 1.0

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.register_buffer("shift", torch.zeros(2))
        self.rate = 0.5

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) * self.rate * self.gain
        return x + self.shift


# What is no change


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


# What is, and how it is said


def replaced(container, key, value):
    return lambda: operator.setitem(container, key, value)


def assigned(holder, name, value):
    return lambda: setattr(holder, name, value)


def changes():
    """The function, what changes something that it reaches, and how that is said."""
    with_list, with_dict, with_set = [1, [2]], {"a": {"b": 1}}, {1}
    yield (
        "item",
        closing_over(with_list),
        replaced(with_list[1], 0, 3),
        "value[1][0] was 2 and is 3 now",
    )
    yield "longer", closing_over(with_list), lambda: with_list.append(1), "value[2] is new"
    yield "key", closing_over(with_dict), replaced(with_dict["a"], "b", 2), "value['a']['b'] was 1"
    yield "new key", closing_over(with_dict), replaced(with_dict, "c", 2), "value['c'] is new"
    yield "no key", closing_over(with_dict), with_dict.clear, "value['a'] is gone"
    yield "set", closing_over(with_set), lambda: with_set.add(2), "value[1] is new"
    empty = []
    yield "first item", closing_over(empty), lambda: empty.append(1), "value[0] is new"
    order = {"a": 1, "b": 2}
    reorder = lambda: order.update(a=order.pop("a"))  # noqa: E731
    yield "order", closing_over(order), reorder, "value['a'] and others changed places"
    config, slotted = Config(), Slotted()
    yield (
        "attribute",
        closing_over(config),
        assigned(config, "scale", 3.0),
        ("value.scale was 2.0 and is 3.0 now"),
    )
    yield (
        "tensor",
        closing_over(config),
        assigned(config, "offset", torch.ones(1)),
        ("value.offset was None and is tensor now"),
    )
    yield (
        "dict",
        closing_over(config),
        assigned(config, "__dict__", {}),
        "the dict of value is another",
    )
    yield "slot", closing_over(slotted), assigned(slotted, "scale", 3.0), "value.scale was 2.0"
    yield "private", closing_over(slotted), slotted.hide, "value._Slotted__hidden[0] was 1.0"
    swapped = Config()
    yield (
        "class",
        closing_over(swapped),
        assigned(swapped, "__class__", Scaled),
        ("the class of value was Config and is Scaled now"),
    )
    keyword = functools.partial(torch.add, alpha=2.0)
    yield (
        "partial",
        keyword,
        replaced(keyword.keywords, "alpha", 3.0),
        ("partial.keywords['alpha'] was 2.0 and is 3.0 now"),
    )
    bound = Scaled()
    yield (
        "self",
        bound.scale,
        assigned(bound.inner, "scale", 3.0),
        "scale.__self__.inner.scale was 2.0",
    )
    yield "counter", bound, assigned(bound, "calls", 1), "Scaled.calls was 0 and is 1 now"

    def with_defaults(x, scale=2.0, *, shift=(1, 2)):
        return x

    yield (
        "default",
        with_defaults,
        assigned(with_defaults, "__defaults__", (3.0,)),
        ("the defaults of with_defaults was (2.0) and is (3.0) now"),
    )
    yield (
        "keyword",
        with_defaults,
        replaced(with_defaults.__kwdefaults__, "shift", (1, 3)),
        ("with_defaults.__kwdefaults__['shift'] was (1, 2) and is (1, 3) now"),
    )
    other = (lambda x: -x).__code__
    yield "code", (f := lambda x: x), assigned(f, "__code__", other), "the code of <lambda>"
    inner = lambda x: x  # noqa: E731
    yield "inner", closing_over(inner), assigned(inner, "__code__", other), "the code of value"
    yield (
        "function attribute",
        closing_over(inner),
        assigned(inner, "scale", 1),
        "value.scale is new",
    )
    yield (
        "cached",
        functools.lru_cache(closing_over(order)),
        replaced(order, "b", 5),
        "value['b'] was",
    )
    yield (
        "wrapped",
        torch.no_grad()(closing_over(order)),
        replaced(order, "b", 6),
        "value['b'] was",
    )
    yield (
        "transformed",
        torchjac.jac(closing_over(order)),
        replaced(order, "b", 7),
        "value['b'] was",
    )
    method = order.get
    yield "built-in", method, replaced(order, "b", 8), "get.__self__['b'] was"


def module_changes():
    def case(name, change, said, make=Net):
        module = make()
        return name, module, functools.partial(change, module), said

    yield case("eval", Net.eval, "Net.training was True and is False now")
    yield case("inner eval", lambda m: m.layers[1].eval(), "Net.layers.1.training was True")
    yield case("float", assign("rate", 1.0), "Net.rate was 0.5 and is 1.0 now")
    yield case("new", assign("extra", 1.0), "Net.extra is new")
    yield case("buffer", assign("shift", torch.ones(2)), "Net.shift is another tensor now")
    yield case("forward", assign("forward", abs), "Net.forward is new")
    yield case(
        "class", assign("__class__", nn.Module), "the class of Net was Net and is Module now"
    )
    parameter = nn.Parameter(torch.ones(2, 2))
    yield case(
        "parameter", at("0", assign("weight", parameter)), "Sequential.0.weight is another", mlp
    )
    yield case(
        "removed",
        at("0", assign("bias", None)),
        "Sequential.0.bias was tensor and is None now",
        mlp,
    )
    yield case("p", at("2", assign("p", 0.1)), "Sequential.2.p was 0.5 and is 0.1 now", mlp)
    yield case(
        "submodule", assign("1", nn.ReLU()), "Sequential.1 was BatchNorm1d and is ReLU now", mlp
    )
    yield case("same kind", assign("0", nn.Linear(2, 2)), "Sequential.0 is another Linear now", mlp)
    yield case("appended", lambda m: m.append(nn.ReLU()), "Sequential.3 is new", mlp)
    hook = lambda *_: None  # noqa: E731
    yield case(
        "hook", lambda m: m[0].register_forward_hook(hook), "Sequential.0._forward_hooks[", mlp
    )
    yield case("pre-hook", lambda m: m.register_forward_pre_hook(hook), "Net._forward_pre_hooks[")
    yield case(
        "backward hook",
        lambda m: m.register_full_backward_hook(hook),
        "Net._is_full_backward_hook was",
    )
    yield case("half", lambda m: parametrize.register_parametrization(m[0], "weight", nn.Identity()),
               "the class of Sequential.0 was Linear and is ParametrizedLinear now", mlp)  # fmt: skip
    yield case("lazy", lambda m: m(torch.ones(1, 2)), "the class of LazyLinear", lazy_linear)


def assign(name, value):
    return lambda module: setattr(module, name, value)


def at(name, change):
    return lambda module: change(module.get_submodule(name))


CHANGES = [*changes(), *module_changes()]


@pytest.mark.parametrize(
    ("func", "change"), [case[1:3] for case in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_rebinding_is_a_change(func, change, request):
    said = next(case[3] for case in CHANGES if case[1] is func and case[2] is change)
    captures = Captures.of(func)
    assert captures.changed() is None
    change()
    told = captures.changed()
    assert told is not None
    assert said in told
    assert captures.changed() == told


def test_hooks_for_all_modules_count():
    captures = Captures.of(nn.Linear(2, 2))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    with contextlib.closing(types.SimpleNamespace(close=handle.remove)):
        assert "_global_forward_hooks[" in captures.changed()
    assert captures.changed() is None


def test_variables_of_closures():
    scale, weight = 2.0, torch.ones(2)

    def func(x):
        return x * scale * weight

    captures = Captures.of(func)
    scale = 3.0
    assert captures.changed() == "the closure variable 'scale' of func was 2.0 and is 3.0 now"
    captures = Captures.of(func)
    weight = torch.ones(2)
    assert captures.changed() == "the closure variable 'weight' of func is another tensor now"


@pytest.mark.parametrize(
    "func",
    [
        lambda x: x * alpha,
        lambda x: [alpha for _ in range(2)],
        lambda x: lambda: alpha,
        Scaled(),
        Scaled().scale,
        closing_over(Scaled()),
        functools.partial(Scaled.scale, Scaled()),
        lambda x: Scaled().scale(x),
    ],
)
def test_globals_wherever_they_are_named(func, monkeypatch):
    captures = Captures.of(func)
    monkeypatch.setitem(globals(), "alpha", 3.0)
    assert captures.changed() == "the global variable 'alpha' was 2.0 and is 3.0 now"


def test_only_globals_that_are_named(monkeypatch):
    captures = Captures.of(lambda x: x.alpha)
    monkeypatch.setitem(globals(), "alpha", 3.0)
    assert captures.changed() is None


@pytest.mark.parametrize(
    "func",
    [lambda x: settings.alpha, lambda x: getattr(settings, "alpha", x), Scaled()],
    ids=["attribute", "getattr", "property"],
)
def test_attributes_of_python_modules_where_they_are_mentioned(func, monkeypatch):
    captures = Captures.of(func)
    monkeypatch.setattr(settings, "other", 3.0)
    assert captures.changed() is None
    monkeypatch.setattr(settings, "alpha", 3.0)
    assert captures.changed() == "settings.alpha was 2.0 and is 3.0 now"


def test_classes(monkeypatch):
    captures = Captures.of(closing_over(Scaled()))
    assert captures.changed() is None
    monkeypatch.setattr(Scaled, "factor", 3.0)
    assert captures.changed() == "Scaled.factor was 2.0 and is 3.0 now"
    captures = Captures.of(Scaled())
    monkeypatch.setattr(Scaled, "scale", lambda self, x: x)
    assert captures.changed() == "Scaled.scale was scale and is <lambda> now"


def test_the_class_of_a_class(monkeypatch):
    captures = Captures.of(lambda x: x * OfKind.scale)
    assert captures.changed() is None
    monkeypatch.setattr(OfKind, "hidden", 3.0)
    assert captures.changed() == "OfKind.hidden was 2.0 and is 3.0 now"


def test_attributes_of_tensors():
    held = torch.ones(2)
    held.scale = 2.0
    captures = Captures.of(closing_over([held]))
    assert captures.changed() is None
    held.scale = 3.0
    assert captures.changed() == "value[0].scale was 2.0 and is 3.0 now"


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * alpha


def test_autograd_functions_reach_what_their_backward_names(monkeypatch):
    captures = Captures.of(lambda x: Sine.apply(x))
    monkeypatch.setitem(globals(), "alpha", 3.0)
    assert "'alpha'" in captures.changed()


# Functions that change what they captured


def test_what_a_function_changes_itself_shows_after_it_ran():
    counter, log, cache, count = Scaled(), [], {}, 0

    def counts(x):
        counter.calls += 1
        return x

    def logs(x):
        log.append(1)
        return x

    def caches(x):
        cache[len(cache)] = x
        return x

    def rebinds(x):
        nonlocal count
        count += 1
        return x

    def remembers(x):
        global last
        last = x
        return x

    def has_attribute(x):
        has_attribute.calls = 1
        return x

    for func, name in [
        (counts, "counter.calls"),
        (logs, "log[0]"),
        (caches, "cache[0]"),
        (rebinds, "'count' of rebinds"),
        (remembers, "'last' is new"),
        (has_attribute, "has_attribute.calls is new"),
    ]:
        captures = Captures.of(func)
        func(torch.ones(1))
        assert name in captures.changed()
    globals().pop("last")


def test_attributes_made_at_first_use_are_expected_when_looked_at_again():
    class Lazy:
        @functools.cached_property
        def table(self):
            return torch.ones(2)

    lazy = Lazy()
    func = lambda x: x * lazy.table  # noqa: E731
    captures = Captures.of(func)
    func(torch.ones(2))
    assert captures.changed() == "lazy.table is new"
    captures = Captures.of(func)
    func(torch.ones(2))
    assert captures.changed() is None
    assert captures.tensors == (lazy.table,)


# How far it goes


def test_circles_are_walked_once():
    circle, config = [], Config()
    circle.append(circle)
    config.offset = config

    def func(x):
        return func, circle, config

    assert Captures.of(func).changed() is None


def test_tensors_are_found_once_wherever_they_are():
    tensor = torch.ones(2)
    module = nn.Linear(1, 1)
    func = functools.partial(closing_over([tensor, {"a": (tensor,)}]), module)
    found = Captures.of(func).tensors
    assert [id(t) for t in found].count(id(tensor)) == 1
    assert {id(t) for t in found} == {id(tensor), *map(id, module.parameters())}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (list(range(2000)), "value, which has 2000 items"),
        (random.random, "value.__self__, whose type Random hides what it holds"),
        (iter([1]), "value, whose type list_iterator hides what it holds"),
        (torch.Generator(), "value, whose type Generator hides what it holds"),
        (lambda: eval("alpha"), "value, which calls eval"),
        (lambda: threading.Thread(), "threading, with which work goes to other threads"),
        (lambda: Worker(), "Worker, with which work goes to other threads"),
        (importing_a_pool, "concurrent.futures, with which work goes to other threads"),
        (without_modes, "value, which calls DisableTorchFunction"),
        (lambda: os.environ["A"], "os, which tells of the world outside"),
        (time.time, "value, which tells of the world outside"),
        (lambda: pathlib.Path("a").read_text(), "pathlib, which tells of the world outside"),
        (lambda: open("a").read(), "value, which calls open"),  # noqa: SIM115
        (lambda: random.random(), "random, which tells of the world outside"),
    ],
    ids=[
        *("long", "random", "iterator", "generator", "eval", "thread", "worker", "pool"),
        *("past the modes", "environment", "time", "path", "file", "global random"),
    ],
)
def test_what_cannot_be_followed_is_said(held, said):
    captures = Captures.of(closing_over(held))
    assert not captures.is_sure
    assert captures.unsure_of == said
    assert captures.changed() is None


@pytest.mark.parametrize(
    "held",
    [
        *(logging.getLogger("a"), lambda: logging.getLogger("a").info("b"), nn.DataParallel(mlp())),
        pathlib.PurePosixPath("a"),
    ],
    ids=["logger", "logs", "module", "path"],
)
def test_what_is_only_held_or_inside_a_library_is_no_doubt(held):
    captures = Captures.of(closing_over(held))
    assert captures.is_sure, captures.unsure_of


def test_variables_that_are_not_assigned():
    def func(x):
        return later

    captures = Captures.of(func)
    assert captures.changed() is None
    later = 1
    assert captures.changed() == "the closure variable 'later' of func is new"
    cell = types.CellType(1)
    func = types.FunctionType(func.__code__, globals(), closure=(cell,))
    captures = Captures.of(func)
    del cell.cell_contents
    assert captures.changed() == "the closure variable 'later' of func is gone"


class OwnNames:
    """An object that calls an attribute as modules call theirs."""

    _buffers = None

    def __init__(self):
        self._buffers = 0


def test_names_of_modules_in_other_objects():
    held = OwnNames()
    captures = Captures.of(closing_over(held))
    held._buffers = 1
    assert captures.changed() == "value._buffers was 0 and is 1 now"


@pytest.mark.parametrize(
    ("func", "bindings"),
    [
        (torch.sin, 0),
        (lambda x: x.sin(), 1),  # the code
        (lambda x: torch.sin(x), 2),  # and the name torch
        (closing_over(torch.ones(2)), 2),
        (closing_over({"a": 1, "b": [1, 2]}), 6),
        (lambda x: math.sqrt(len(x)), 2),
    ],
)
def test_how_many_bindings_are_compared(func, bindings):
    assert len(Captures.of(func)) == bindings


def test_a_layer_adds_few_bindings():
    once, twice = nn.Tanh(), nn.Sequential(nn.Tanh(), nn.Tanh())
    one, same, two = map(
        len, map(Captures.of, (nn.Sequential(once), nn.Sequential(once, once), twice))
    )
    assert same - one == 1
    assert two - one <= 20


# Random trees

# Where PyTorch 2.4 has compiled anything, the processor has no subnormal numbers any more.
FLOATS = st.floats(allow_subnormal=False)
LEAVES = st.one_of(st.integers(), FLOATS, st.text(max_size=3), st.booleans(), st.none())
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.builds(Config, inner),
        st.builds(lambda held: types.SimpleNamespace(held=held), inner),
    ),
    max_leaves=12,
)


def slots_of(tree):
    """Every place in a tree that can be assigned to, as a function that does."""
    if isinstance(tree, (list, dict)):
        for key, value in enumerate(tree) if isinstance(tree, list) else tree.items():
            yield functools.partial(operator.setitem, tree, key)
            yield from slots_of(value)
    elif isinstance(tree, tuple):
        for value in tree:
            yield from slots_of(value)
    elif hasattr(tree, "__dict__"):
        for name, value in vars(tree).items():
            yield functools.partial(setattr, tree, name)
            yield from slots_of(value)


@given(TREES, st.data())
def test_one_replaced_leaf_in_a_random_tree_is_a_change(tree, data):
    captures = Captures.of(closing_over([tree]))
    assert captures.changed() is None
    slots = list(slots_of([tree]))[1:]
    if slots:
        data.draw(st.sampled_from(slots))(torch.ones(1))
        assert captures.changed() is not None
