"""What operations cost, counted: integers in, a number out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from tests.sparse import DETECTS
from torchjac.planning.plans.costs import Cost, cost_of, estimated_time

COUNTS = st.integers(0, 10**12)
COSTS = st.builds(Cost, COUNTS, COUNTS, COUNTS)

needs_traces = pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1")


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_more_work_never_takes_less_time(flops, nbytes, operations, more):
    time = estimated_time(flops, nbytes, operations)
    assert estimated_time(flops + more, nbytes, operations) >= time
    assert estimated_time(flops, nbytes + more, operations) >= time
    assert estimated_time(flops, nbytes, operations + more) >= time


@given(COSTS, COSTS)
def test_costs_add_up(one, other):
    assert (one + other).time == one.time + other.time
    assert one + Cost(0, 0, 0) == one


@given(st.integers(1, 64))
def test_a_call_costs_more_than_a_small_tensor(elements):
    """So that of ways through small tensors the one with fewer operations is the cheaper."""
    assert estimated_time(2 * elements, 8 * elements, 1) < estimated_time(0, 0, 2)


def test_a_large_product_costs_more_than_any_number_of_calls_in_a_derivative():
    assert estimated_time(2 * 1024**3, 0, 1) > estimated_time(0, 0, 1000)


def counted(func, *shapes):
    args = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
    return cost_of(make_fx(func, tracing_mode="fake")(*args).graph.nodes)


@needs_traces
@pytest.mark.parametrize(
    ("func", "shapes", "flops", "elements", "operations"),
    [
        (lambda x: x.sin(), [(10,)], 0, 10 + 10, 1),
        (lambda x: x + x, [(10,)], 0, 10 + 10, 1),
        (lambda x, y: x + y, [(10,), (10,)], 0, 10 + 10 + 10, 1),
        (lambda x: x.sum(), [(10,)], 0, 10 + 1, 1),
        (lambda x, y: x @ y, [(3, 4), (4, 5)], 2 * 3 * 4 * 5, 12 + 20 + 15, 1),
        (lambda x, y: torch.bmm(x, y), [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5, 24 + 40 + 30, 1),
        (lambda x, y, z: torch.addmm(x, y, z), [(5,), (3, 4), (4, 5)], 120, 5 + 12 + 20 + 15, 1),
        (lambda x: x.t(), [(3, 4)], 0, 0, 1),
        (lambda x: x.view(-1).sin(), [(3, 4)], 0, 12 + 12, 2),
        (lambda x: x.max(0), [(3, 4)], 0, 12 + 4 + 4, None),
        (lambda x: x.expand(100, 10).sin(), [(10,)], 0, 1000 + 1000, 2),
        (lambda x: x.sin().cos(), [(10,)], 0, 40, 2),
    ],
    ids=[
        *("sin", "twice", "add", "sum", "mm", "bmm", "addmm", "view", "view, sin", "max"),
        *("expand", "chain"),
    ],
)
def test_what_is_counted(func, shapes, flops, elements, operations):
    cost = counted(func, *shapes)
    assert cost.flops == flops
    assert cost.nbytes == 8 * elements
    assert operations is None or cost.operations == operations


@needs_traces
def test_a_convolution_costs_more_than_a_product_with_as_many_multiplications():
    convolution = counted(torch.conv2d, (1, 2, 8, 8), (4, 2, 3, 3))
    product = counted(torch.mm, (4, 2 * 9), (2 * 9, 6 * 6))
    assert convolution.flops > product.flops


@needs_traces
def test_entries_that_are_written_into_zeros_cost_themselves():
    def func(x, at):
        return torch.zeros(10_000, dtype=torch.float64).index_copy(0, at.long(), x)

    few, many = counted(func, (10,), (10,)), counted(func, (1000,), (1000,))
    assert few.nbytes < many.nbytes
    zeros = 8 * 10_000
    assert few.nbytes < 2 * zeros
