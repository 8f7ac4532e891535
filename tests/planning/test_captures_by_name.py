"""What a function reaches by name, and may change itself: variables, globals, modules, classes."""

import functools
import types

import pytest
import torch

from tests.planning import captured
from tests.planning.captured import Scaled, alpha, closing_over, settings
from torchjac.planning.captured.captures import Captures


class Kind(type):
    @property
    def scale(cls):
        return cls.hidden


class OfKind(metaclass=Kind):
    hidden = 2.0


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
    monkeypatch.setattr(captured, "alpha", 3.0)  # the one that Scaled names
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
