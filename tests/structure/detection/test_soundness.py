"""A detected pattern lacks no entry, whatever the program, its arguments and the way to its derivative."""

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.structure.detection import maps
from torchjac.foundations.pytree import flatten, unflatten
from torchjac.structure.detection import linear_pattern
from torchjac.testing import strategies

POINTS = 3


def flat(program, args):
    """A program on trees as a function of tensors."""
    tensors, structure = flatten(args)

    def func(*values):
        outputs, _ = flatten(program(*unflatten(list(values), structure)))
        return tuple(leaf for leaf in outputs if isinstance(leaf, Tensor))

    return func, tensors


def assert_nothing_is_missing(function, points, seeds, rows):
    detected = linear_pattern(function, points[0], seeds)
    found = maps.dense(detected, rows)
    for primals in points:
        missing = maps.truth(function, primals, seeds, rows) & ~found
        assert not missing.any(), np.argwhere(missing)
    assert not detected.unknown


@pytest.mark.parametrize("way", maps.JACOBIANS)
@given(case=strategies.programs_with_arguments())
def test_of_a_jacobian(way, case):
    program, args = case
    func, primals = flat(program, args)
    outputs = maps.leaves(func(*primals))
    seeds = primals if way == "forward" else outputs
    rows = [side.numel() for side in (outputs if way == "forward" else primals)]
    points = [primals, *(maps.random_like(primals, seed) for seed in range(POINTS))]
    assert_nothing_is_missing(maps.JACOBIANS[way](func), points, seeds, rows)


@pytest.mark.parametrize("way", maps.HESSIANS)
@given(program=strategies.scalar_programs(order=2))
def test_of_a_hessian(way, program):
    func, primals = flat(program, program.example_args)
    scalar = lambda *xs: func(*xs)[0]  # noqa: E731
    if not scalar(*[x.clone().requires_grad_() for x in primals]).requires_grad:
        return
    points = [primals, *(maps.random_like(primals, seed) for seed in range(POINTS))]
    rows = [primal.numel() for primal in primals]
    if way == "plain":
        scalar = _reaching_all(scalar)
    assert_nothing_is_missing(maps.HESSIANS[way](scalar), points, primals, rows)


def _reaching_all(func):
    """The same function, with every argument in its graph; `torch.autograd.grad` asks for that."""
    return lambda *xs: func(*xs) + sum((0 * x).sum() for x in xs)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_several_seeds(order):
    """Columns are counted over the seeds in their order."""

    def function(primals, seeds):
        return [seeds[order[0]] * primals[0], None, seeds[order[1]][:1]]

    x = torch.zeros(2)
    detected = linear_pattern(function, [x], [x, x])
    expected = np.zeros((3, 4), bool)
    expected[[0, 1], [2 * order[0], 2 * order[0] + 1]] = True
    expected[2, 2 * order[1]] = True
    assert (detected.matrix.toarray() == expected).all()
    assert detected.blocks[1] is None
    assert [block.shape for block in detected.blocks if block is not None] == [(2, 4), (1, 4)]
