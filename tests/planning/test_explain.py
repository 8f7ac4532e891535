"""The whole text of printed plans, so that a change of wording shows in a diff.

What depends on the version of PyTorch, or on the machine, is replaced: costs, times, operations and bytes.
"""

import dataclasses
import itertools
import types
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac
from tests.sparse import DETECTS, arrow, point
from torchjac.planning.plans.costs import Cost

pytestmark = pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1")


def printed(plan: Any, costs: Sequence[tuple[int, ...]], seconds: Sequence[float] = ()) -> str:
    """The text of a plan, had what it considered these costs (and been measured to take such times)."""
    design = plan._design
    considered = [
        dataclasses.replace(candidate, cost=cost and Cost(*cost), seconds=taken)
        for candidate, cost, taken in itertools.zip_longest(design.considered, costs, seconds)
    ]
    chosen = considered[[one is design.chosen for one in design.considered].index(True)]
    reason = "the fastest, measured" if seconds else "the cheapest, counted"
    design = dataclasses.replace(design, considered=considered, chosen=chosen, reason=reason)
    graph = plan._program.graph
    program = types.SimpleNamespace(num_operations=12, peak_bytes=123_456, graph=graph)
    return str(dataclasses.replace(plan, _design=design, _program=program))


def wide(x: Tensor, scale: Any) -> Tensor:
    """Twelve inputs, five outputs, dense."""
    return scale * torch.linspace(-1, 1, 60).double().reshape(5, 12) @ x.sin()


DENSE = """\
Plan: Jacobian of wide by 12 elements
  argument 0: (12,) torch.float64 cpu
  keyword 'scale': 2.0
found
  pattern   5 × 12 with 60 nonzeros (100.00%), all connected
considered
     way           passes  flops  bytes  operations  estimated  measured
  ▶  reverse mode       5      0   2.5k           4    8.05 µs
     forward mode      12   1.2M    48k          12      37 µs
chosen
  reverse mode, the cheapest, counted
  at 0.22 of the cost of the next best
runs
  5 passes, at once
  as a graph of 12 operations, operation by operation; about 123kB at the peak"""


def test_a_dense_plan() -> None:
    plan = torchjac.jac(wide).plan(point(12), scale=2.0)
    assert printed(plan, [(0, 2_500, 4), (1_200_000, 48_000, 12)]) == DENSE


SPARSE = """\
Plan: Jacobian of <lambda> by 40 elements
  argument 0: (40,) torch.float32 cpu
found
  pattern   80 × 40 with 80 nonzeros (2.50%), 40 independent parts
            ⠑⢄⠀⠀⠀⠀⠀⠀
            ⠀⠀⠑⢄⠀⠀⠀⠀
            ⠀⠀⠀⠀⠑⢄⠀⠀
            ⠀⠀⠀⠀⠀⠀⠑⢄
            ⠑⢄⠀⠀⠀⠀⠀⠀
            ⠀⠀⠑⢄⠀⠀⠀⠀
            ⠀⠀⠀⠀⠑⢄⠀⠀
            ⠀⠀⠀⠀⠀⠀⠑⢄
considered
     way                            passes  flops  bytes  operations  estimated  measured
  ▶  forward mode, 1 column colour       1      0    500           3    6.01 µs
chosen
  forward mode, 1 column colour, the cheapest, counted
runs
  1 pass, at once
  as a graph of 12 operations, operation by operation; about 123kB at the peak"""


def test_a_sparse_plan_of_many_parts() -> None:
    transform = torchjac.jac(lambda x: (x.exp(), x * x), sparsity="detect", mode="forward")
    plan = transform.plan(point(40).float())
    assert printed(plan, [(0, 500, 3)]) == SPARSE


BOTH = """\
Plan: Jacobian of arrow by 400 elements
  argument 0: (400,) torch.float64 cpu
found
  pattern   400 × 400 with 1,198 nonzeros (0.75%), all connected
            ⡟⢍⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉
            ⡇⠀⠑⢄⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀
            ⡇⠀⠀⠀⠑⢄⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀
            ⡇⠀⠀⠀⠀⠀⠑⢄⠀⠀⠀⠀⠀⠀⠀⠀
            ⡇⠀⠀⠀⠀⠀⠀⠀⠑⢄⠀⠀⠀⠀⠀⠀
            ⡇⠀⠀⠀⠀⠀⠀⠀⠀⠀⠑⢄⠀⠀⠀⠀
            ⡇⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠑⢄⠀⠀
            ⡇⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠑⢄
considered
     way                                                 passes  flops  bytes  operations  estimated  measured
  ▶  forward and reverse mode, 3 row and column colours       3      0    80k          40    81.6 µs
     forward mode, 400 column colours                       400      0     3M          30     120 µs
     reverse mode, 400 row colours                          400      0  9.87M          30     257 µs
chosen
  forward and reverse mode, 3 row and column colours, the cheapest, counted
  at 0.68 of the cost of the next best
runs
  3 passes (1 + 2), each at once
  as a graph of 12 operations, compiled; about 123kB at the peak"""


def test_a_plan_by_both_directions_that_was_compiled() -> None:
    plan = torchjac.jac(arrow, sparsity="detect").plan(point(400))
    plan = dataclasses.replace(plan, _compiled=True)
    costs = [(0, 80_000, 40), (0, 3_000_000, 30), (0, 9_870_000, 30)]
    assert printed(plan, costs) == BOTH


WAIST = """\
Plan: Jacobian of Sequential by 64 elements
  argument 0: (64,) torch.float32 cpu
found
  pattern   64 × 64 with 4,096 nonzeros (100.00%), all connected
  waist     4 elements (64 → 32 → 4 → 32 → 64)
considered
     way                                                    passes  flops  bytes  operations  estimated  measured
     reverse mode                                               64     1M   200k           9      32 µs   1.25 ms
     forward mode                                               64     1M   200k          10      34 µs    1.5 ms
  ▶  through a waist of 4: J[64×4] against · J[4×64] along       8  65.5k    50k          14    29.7 µs    420 µs
chosen
  through a waist of 4: J[64×4] against · J[4×64] along, the fastest, measured
  at 0.93 of the cost of the next best
runs
  8 passes (4 + 4), each at once
  as a graph of 12 operations, operation by operation; about 123kB at the peak"""  # noqa: E501


def test_a_plan_through_a_waist_that_was_tuned() -> None:
    sizes = (64, 32, 4, 32, 64)
    layers = [nn.Sequential(nn.Linear(n, m), nn.Tanh()) for n, m in itertools.pairwise(sizes)]
    plan = torchjac.jac(nn.Sequential(*layers)).plan(torch.zeros(64))
    costs = [(1_000_000, 200_000, 9), (1_000_000, 200_000, 10), (65_536, 50_000, 14)]
    assert printed(plan, costs, [1.25e-3, 1.5e-3, 420e-6]) == WAIST


CHUNKS = """\
Plan: per-sample Jacobians of wide by 36 elements
  argument 0: (3, 12) torch.float64 cpu
  keyword 'scale': 1.0
found
  nothing that saves passes
considered
     way           passes  flops  bytes  operations  estimated  measured
  ▶  reverse mode       5      0    100           1       2 µs
     forward mode      12
  not forward mode: it takes 9 chunks
chosen
  reverse mode, the cheapest, counted
runs
  5 passes, in 3 chunks of 2
  as a graph of 12 operations, operation by operation; about 123kB at the peak"""


def test_a_plan_in_chunks_and_a_way_that_was_refused() -> None:
    plan = torchjac.batched_jac(wide, chunk_size=2).plan(torch.stack([point(12)] * 3), scale=1.0)
    refused = [
        one if one is plan._design.chosen else dataclasses.replace(one, refusal="it takes 9 chunks")
        for one in plan._design.considered
    ]
    plan = dataclasses.replace(plan, _design=dataclasses.replace(plan._design, considered=refused))
    assert printed(plan, [(0, 100, 1), None]) == CHUNKS


BY_SIZES = """\
Plan: Hessian of <lambda> by 4 elements
  argument 0: (4,) torch.float64 cpu
found
  nothing that saves passes
considered
     way                        passes  flops  bytes  operations  estimated  measured
  ▶  reverse-over-reverse mode       4
chosen
  reverse-over-reverse mode, by sizes alone: it looks at values (aten._local_scalar_dense.default)
runs
  4 passes, at once
  through the function itself, as the transform does without a plan"""


def test_a_plan_by_sizes() -> None:
    plan = torchjac.hessian(lambda x: (x.sin() if x.sum() > 0 else x).sum()).plan(point(4))
    assert str(plan) == BY_SIZES
