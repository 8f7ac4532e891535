"""What a program says it holds at most: views hold what they are of, places are written into."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import torchjac
from tests.sparse import DETECTS
from torchjac.evaluation.programs.program import Program
from torchjac.evaluation.programs.tracing import trace

pytestmark = pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1")

X = torch.linspace(-1, 1, 1024)


@pytest.mark.parametrize(
    ("function", "tensors"),
    [
        (lambda x: (x.sin().cos(),), 2),
        (lambda x: ((y := x.sin().view(32, 32)).exp().cos() * y,), 3),
        (lambda x: (x.sin().view(32, 32).T.reshape(-1),), 2),
        (lambda x: (torch.add(*x.sin().chunk(2)),), 1.5),
    ],
    ids=["one after another", "a view that is kept", "a copy", "parts"],
)
def test_memory_is_held_until_the_last_view_of_it_is_read(function, tensors):
    assert Program(trace(function, [X])).peak_bytes == tensors * 4 * X.numel()


@pytest.mark.parametrize(
    ("func", "size"),
    [
        (lambda x: x.sin() * x, 512),
        (lambda x: x[1:] * x[:-1] ** 2, 512),
        (lambda x: x.softmax(0), 256),
        (lambda x: x.cumsum(0).sin(), 256),
        (lambda x: (x.view(16, 32).sin() @ X[:640].view(32, 20)).T.reshape(-1) ** 2, 512),
    ],
    ids=["elementwise", "bands", "softmax", "dense", "a copy between products"],
)
def test_the_peak_of_a_plan_is_what_is_allocated(func, size):
    plan, x = torchjac.jac(func).plan(X[:size]), X[:size].clone()
    held = most = 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = plan(x)
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert kept.shape[-1] == size
    assert plan._program.peak_bytes == pytest.approx(most, rel=0.05)
