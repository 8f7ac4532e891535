"""How far captures are followed, what cannot be followed, and how few bindings are compared."""

import functools
import logging
import math
import os
import pathlib
import random
import threading
import time

import numpy
import pytest
import torch
from scipy.interpolate import CubicSpline
from scipy.sparse import csr_array
from torch import nn

from tests.planning.captured import Config, closing_over, mlp
from torchjac.planning.captured.captures import Captures


class Worker(threading.Thread):
    pass


def importing_a_pool():
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor


def without_modes():
    return torch._C.DisableTorchFunction()


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


@pytest.mark.parametrize("held", [csr_array(numpy.eye(2)), CubicSpline([0, 1], [0, 1])])
def test_objects_of_scipy_hide_their_arrays(held):
    # Of some of its classes not even the module is a text.
    assert "whose type ndarray hides" in Captures.of(closing_over(held)).unsure_of


@pytest.mark.parametrize(
    ("func", "bindings"),
    [
        (torch.sin, 0),
        (lambda x: x.sin(), 1),  # the code
        (lambda x: torch.sin(x), 2),  # and the name torch
        (closing_over(torch.ones(2)), 2),
        (closing_over({"a": 1, "b": [1, 2]}), 6),
        (lambda x: math.sqrt(len(x)), 3),  # len may be one of its own some day
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
