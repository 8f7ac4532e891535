"""What a plan decides, pinned as counts: passes, chunks, evaluations; and how it says so."""

import logging

import pytest
import torch
from torch import nn

import torchjac
from tests.sparse import DETECTS, arrow, point, rosenbrock, tridiagonal
from torchjac.evaluation.programs.program import Program
from torchjac.planning.plans import design

pytestmark = pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1")

LOG = logging.getLogger("evaluations")


@pytest.fixture
def evaluations(caplog):
    """The evaluations so far. A log is no state that a plan would have to watch."""
    caplog.set_level(logging.INFO, logger=LOG.name)
    return lambda: sum(record.name == LOG.name for record in caplog.records)


def logged(func):
    def run(x):
        LOG.info("evaluated")
        return func(x)

    return run


def wide(x):
    """Twelve inputs, five outputs, dense."""
    return torch.linspace(-1, 1, 60).double().reshape(5, 12) @ x.sin()


def tall(x):
    """Three inputs, eight outputs, dense."""
    return torch.linspace(-1, 1, 24).double().reshape(8, 3) @ x.sin()


def branches(x):
    return x.sin() if x.sum() > 0 else x.cos()


# Evaluations


@pytest.mark.parametrize(
    ("transform", "most"),
    [
        (lambda f: torchjac.jac(f), 7),
        (lambda f: torchjac.jac(f, mode="forward"), 7),
        (lambda f: torchjac.jac(f, sparsity="detect"), 7),
        (lambda f: torchjac.jac(f, check="never"), 6),
        (lambda f: torchjac.hessian(lambda x: f(x).sum()), 12),
        (lambda f: torchjac.batched_jac(lambda x: f(x.T).T, per_sample=False), 7),
    ],
    ids=["jac", "forward", "detect", "never", "hessian", "batched"],
)
def test_planning_takes_few_evaluations_and_a_call_none(evaluations, transform, most):
    x = torch.randn(3, 12).double()
    plan = transform(logged(torch.sin)).plan(x)
    assert 1 < evaluations() <= most
    before = evaluations()
    for given in (x, 2 * x, x.clone().requires_grad_()):
        plan(given)
    assert evaluations() == before


@pytest.mark.parametrize("mode", ["auto", "reverse"])
def test_without_a_trace_planning_takes_two_evaluations_and_a_call_one(evaluations, mode):
    plan = torchjac.jac(logged(branches), mode=mode).plan(point(4))
    before = evaluations()
    assert before == 2
    for number in (1, 2, 3):
        plan(number * point(4))
        assert evaluations() == before + number


def test_verifying_evaluates_and_leaves_nothing_behind(evaluations):
    plan = torchjac.jac(logged(torch.sin)).plan(point(4))
    before = evaluations()
    assert plan.verify(point(4))
    assert evaluations() > before
    before = evaluations()
    plan(point(4))
    assert evaluations() == before


# Choices


@pytest.mark.parametrize(
    ("func", "size", "options", "mode", "passes"),
    [
        (wide, 12, {}, "reverse", 5),
        (tall, 3, {}, "forward", 3),
        (wide, 12, {"mode": "forward"}, "forward", 12),
        (tall, 3, {"mode": "reverse"}, "reverse", 8),
        (tridiagonal, 50, {"sparsity": "detect"}, None, 3),
        (tridiagonal, 50, {"sparsity": "detect", "mode": "forward"}, "forward", 3),
        (tridiagonal, 50, {"sparsity": "detect", "mode": "reverse"}, "reverse", 3),
        (arrow, 400, {"sparsity": "detect"}, "forward and reverse", 3),
        (lambda x: x.square().sum(), 50, {}, "reverse", 1),
        (lambda x: x * torch.ones(50).double(), 1, {}, "forward", 1),
        (lambda x: x[:0], 3, {}, None, 0),
    ],
    ids=[
        *("wide", "tall", "wide forward", "tall reverse", "band", "band forward", "band reverse"),
        *("arrow", "gradient", "tangent", "no output"),
    ],
)
def test_mode_and_passes(func, size, options, mode, passes):
    plan = torchjac.jac(func, **options).plan(point(size))
    assert mode is None or plan.mode == mode
    assert passes is None or plan.passes == passes
    expected = torch.zeros(0, 3).double() if passes == 0 else torch.func.jacrev(func)(point(size))
    torch.testing.assert_close(plan(point(size)), expected)


@pytest.mark.parametrize(
    ("func", "size", "options", "passes"),
    [
        (rosenbrock, 40, {"sparsity": "detect"}, 3),
        (lambda x: x.sin().sum(), 40, {"sparsity": "detect"}, 1),
        (lambda x: (x.sin().sum()) ** 2, 4, {}, 4),
        (lambda x: (x.sin().sum()) ** 2, 4, {"mode": "forward-over-reverse"}, 4),
    ],
    ids=["tridiagonal", "diagonal", "dense", "forward"],
)
def test_passes_of_a_hessian(func, size, options, passes):
    plan = torchjac.hessian(func, **options).plan(point(size))
    assert plan.passes == passes
    torch.testing.assert_close(plan(point(size)), torch.func.hessian(func)(point(size)))


def test_forward_mode_inside_is_left_to_the_derivative_itself():
    transform = torchjac.hessian(rosenbrock, mode="reverse-over-forward")
    plan = transform.plan(point(5))
    assert "by sizes alone: the mode asks for forward mode inside" in str(plan)
    torch.testing.assert_close(plan(point(5)), transform(point(5)))


def test_a_pattern_is_used_unasked_where_it_saves_half_of_the_passes():
    plan = torchjac.jac(tridiagonal).plan(point(300))
    assert plan.pattern.nnz == 3 * 300 - 2
    assert plan.passes == 3 == plan.coloring.num_colors


def test_a_dense_pattern_is_found_and_not_coloured():
    plan = torchjac.jac(wide).plan(point(12))
    assert plan.pattern.nnz == 60
    assert plan.coloring is None


def test_a_pattern_that_hangs_on_captured_values_is_not_used_unasked():
    mask = torch.eye(30).double()
    func = lambda x: mask @ x.sin()  # noqa: E731
    plan = torchjac.jac(func).plan(point(30))
    assert plan.coloring is None
    mask.fill_(1)
    torch.testing.assert_close(plan(point(30)), torch.func.jacrev(func)(point(30)))


def test_a_pattern_that_hung_on_captured_values_is_never_used_for_others():
    mask = torch.eye(30).double()
    func = lambda x: mask @ x.sin()  # noqa: E731
    plan = torchjac.jac(func, sparsity="detect").plan(point(30))
    mask.fill_(1)
    try:
        got = plan(point(30))
    except torchjac.errors.TorchjacError:
        return
    torch.testing.assert_close(got, torch.func.jacrev(func)(point(30)))


@pytest.mark.parametrize(
    ("chunk_size", "size", "said"),
    [
        ("auto", 5, "5 passes, at once"),
        (None, 5, "5 passes, at once"),
        (100, 5, "5 passes, at once"),
        (2, 2, "5 passes, in 3 chunks of 2"),
        (1, 1, "5 passes, in 5 chunks of 1"),
    ],
)
def test_chunks(chunk_size, size, said):
    plan = torchjac.jac(wide, mode="reverse", chunk_size=chunk_size).plan(point(12))
    assert plan.chunk_size == size
    assert said in str(plan)


def test_more_chunks_than_are_written_out_are_left_to_the_derivative_itself():
    plan = torchjac.jac(lambda x: x.cumsum(0).sin(), chunk_size=1).plan(point(40))
    assert "by sizes alone: it takes 40 chunks" in str(plan)
    assert "40 passes, in 40 chunks of 1" in str(plan)
    assert plan.chunk_size == 1
    torch.testing.assert_close(
        plan(point(40)), torch.func.jacrev(lambda x: x.cumsum(0).sin())(point(40))
    )


def test_a_trace_that_does_not_run_is_left_to_the_derivative_itself():
    net, x = (
        nn.LSTM(3, 4),
        torch.randn(5, 3),
    )  # single precision: oneDNN, which keeps less without a graph

    def func(x):
        return net(x)[0]

    plan = torchjac.jac(func).plan(x)
    torch.testing.assert_close(plan(x), torchjac.jac(func, mode="reverse", chunk_size=1)(x))


def test_why_a_trace_did_not_run_is_said(monkeypatch):
    def refused(self, *tensors):
        raise RuntimeError("no kernel\nwith a long story")

    monkeypatch.setattr(Program, "__call__", refused)
    plan = torchjac.jac(wide).plan(point(12))
    assert "by sizes alone: what was traced does not run: no kernel\n" in str(plan)
    torch.testing.assert_close(plan(point(12)), torch.func.jacrev(wide)(point(12)))


@pytest.mark.parametrize(
    ("reverse", "forward", "passes", "reason"),
    [
        (100, 100, 5, "the cheapest, counted"),
        (100, 81, 5, "the fewest passes of those that are about the cheapest, counted"),
        (100, 79, 12, "the cheapest, counted"),
    ],
)
def test_of_costs_that_are_close_the_one_with_the_fewest_passes_is_taken(
    reverse, forward, passes, reason, monkeypatch
):
    costs = {"reverse": reverse, "forward": forward}
    monkeypatch.setattr(design, "_counted", lambda candidate: costs[candidate.way.direction])
    plan = torchjac.jac(wide).plan(point(12))
    assert plan.passes == passes
    assert f"chosen\n  {plan.mode} mode, {reason}\n" in str(plan)


def test_the_fastest_of_what_was_measured_is_chosen():
    plan = torchjac.jac(wide).plan(point(12), tune=True)
    measured = [one for one in plan._design.considered if one.seconds is not None]
    assert len(measured) >= 2
    fastest = min(one.seconds for one in measured)
    assert plan._design.chosen.seconds <= 1.25 * fastest
    assert plan._design.chosen in plan._design.considered
    assert "measured" in str(plan).split("chosen\n")[1]
    torch.testing.assert_close(plan(point(12)), torch.func.jacrev(wide)(point(12)))


def test_tuning_what_cannot_be_traced_is_no_error():
    plan = torchjac.jac(branches).plan(point(4), tune=True)
    torch.testing.assert_close(plan(point(4)), torch.func.jacrev(torch.sin)(point(4)))


# What is said


def test_everything_that_was_considered_is_said():
    said = str(torchjac.jac(tridiagonal, sparsity="detect").plan(point(40)))
    for part in [
        "Plan: Jacobian of tridiagonal by 40 elements",
        "argument 0: (40,) torch.float64 cpu",
        "pattern   40 × 40 with 118 nonzeros (7.38%), all connected",
        "forward mode, 3 column colours",
        "reverse mode, 3 row colours",
        "the cheapest, counted",
        "3 passes, at once",
        "at the peak",
    ]:
        assert part in said


def test_the_chosen_way_is_marked_once():
    plan = torchjac.jac(wide).plan(point(12))
    (marked,) = [line for line in str(plan).splitlines() if "▶" in line]
    assert "reverse mode" in marked
    assert repr(plan) == "<Plan of jac(wide): reverse mode, 5 passes>"


def test_what_zeros_leave_of_the_passes_is_said():
    said = str(torchjac.jac(lambda x: x.sin() * x).plan(point(30)))
    assert "30 passes, at once\n  about 3% of that is left: the zeros of the seeds" in said
    assert "is left" not in str(torchjac.jac(wide).plan(point(12)))


def test_independent_parts_are_counted():
    said = str(torchjac.jac(torch.sin, sparsity="detect").plan(point(40)))
    assert "40 independent parts" in said


@pytest.mark.parametrize(
    ("transform", "what"),
    [
        (torchjac.jac(wide), "Jacobian of wide by 12 elements"),
        (torchjac.hessian(rosenbrock), "Hessian of rosenbrock by 12 elements"),
        (torchjac.jac(nn.Linear(12, 3).double()), "Jacobian of Linear by 12 elements"),
        (torchjac.batched_jac(wide), "per-sample Jacobians of wide by 24 elements"),
    ],
)
def test_the_title(transform, what):
    x = torch.stack([point(12)] * 2) if "per-sample" in what else point(12)
    assert str(transform.plan(x)).startswith(f"Plan: {what}\n")
