"""Simplified graphs give the same results, whatever the function, in memory of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from torch import Tensor

import torchjac
from tests.evaluation.graphs import (
    TRACES,
    X,
    assert_equal,
    assert_same,
    flat,
    ops,
    results,
    simplified,
    traced,
)
from torchjac.foundations.pytree import map_tree
from torchjac.testing import strategies

pytestmark = [
    pytest.mark.skipif(not TRACES, reason="needs torch 2.4"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


# --- whatever the function -----------------------------------------------------------------------

MAKERS = [
    lambda f, n: torchjac.jac(f, n, mode="reverse", check="never"),
    lambda f, n: torchjac.jac(f, n, mode="forward", check="never"),
]
HESSIANS = [
    lambda f, n, mode=mode: torchjac.hessian(f, n, mode=mode, check="never")
    for mode in ("forward-over-reverse", "reverse-over-reverse")
]


def check(
    maker: Callable[..., Any], program: Any, args: Sequence[Any], functional: bool = True
) -> None:
    derivative = maker(program, tuple(range(len(args))))
    function, leaves = flat(derivative, args)
    if functional:
        function = torch.func.functionalize(function, remove="mutations")
    try:
        graph = traced(function, *leaves)
    except Exception as error:
        if isinstance(error, AssertionError):
            raise
        reject()
    outputs = results(graph, *leaves)
    # PyTorch's forward mode may return a zero of the meta device.
    assume(not any(leaf.is_meta for leaf in outputs))
    assume(all(leaf.isfinite().all() for leaf in outputs))
    assert_equal(graph, *leaves)


@given(strategies.programs_with_arguments(strided=True), st.sampled_from(MAKERS), st.booleans())
def test_jacobians_stay_the_same(case: Any, maker: Any, functional: bool) -> None:
    check(maker, *case, functional)


@given(strategies.programs_with_arguments(scalar=True), st.sampled_from(HESSIANS))
def test_hessians_stay_the_same(case: Any, maker: Any) -> None:
    check(maker, *case)


@given(strategies.programs_with_arguments(max_arguments=1), st.sampled_from(["forward", "reverse"]))
def test_batched_jacobians_stay_the_same(case: Any, mode: str) -> None:
    program, (tree,) = case
    stacked = map_tree(lambda leaf: torch.stack([leaf, leaf + 1 / 8, leaf - 1]), tree)
    check(lambda f, _: torchjac.batched_jac(f, mode=mode, check="never"), program, (stacked,))


# --- memory and effects ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x],
        lambda x: [x.detach().view(-1)],
        lambda x: [x.T, x[0]],
        lambda x: [x.clone(), x.clone()],
        lambda x: [x.sin(), x.sin()],
        lambda x: [x.sin().expand(4, 2, 3)],
        lambda x: [(y := x.sin()), y[0], y.T],
        lambda x: [torch.zeros_like(x), torch.zeros_like(x)],
        lambda x: [torch.ones(1, dtype=x.dtype).expand(3, 3)],
        lambda x: [x.sin().unfold(1, 2, 1)],
        lambda x: [X, X.view(-1), x],
    ],
)
def test_outputs_have_memory_of_their_own(function: Any) -> None:
    assert_same(function, X.clone())


def test_captured_tensors_are_read_in_every_run() -> None:
    weight = torch.zeros(3, dtype=torch.float64)
    smaller = simplified(traced(lambda x: [(x + weight) * weight.clone()], X))
    weight.fill_(2.0)
    torch.testing.assert_close(results(smaller, X)[0], (X + 2) * 2)


def test_random_numbers_are_drawn_as_often() -> None:
    def function(x: Tensor) -> list[Tensor]:
        torch.rand_like(x)
        first, second = torch.rand_like(x), torch.rand_like(x)
        return [first - second, torch.nn.functional.dropout(x, 0.5)]

    graph = traced(function, X)
    smaller = simplified(graph)
    torch.manual_seed(0)
    expected = results(graph, X)
    torch.manual_seed(0)
    got = results(smaller, X)
    assert expected[0].abs().min() > 0
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_changes_in_place_are_left_alone() -> None:
    def function(x: Tensor) -> list[Tensor]:
        y = x.clone()
        before = y + 0.0
        y.view(-1).add_(1.0)
        zero = torch.zeros_like(x)
        also = zero * x
        zero[0] = 1.0
        return [before, y + 0.0, y.clone(), also, zero * x]

    smaller = assert_same(function, X)
    assert "add_" in ops(smaller)


def test_strides_that_are_relied_on_stay() -> None:
    assert_same(lambda x: [torch.as_strided(x.T.clone() * 1.0, (3,), (2,)), x.T.clone()], X)


def test_what_is_expanded_is_copied_where_no_view_spans_it() -> None:
    def function(x: Tensor) -> list[Tensor]:
        spread = x[None].expand(4, 1, 2, 3).transpose(0, 1).clone()
        return [spread.view(1, 8, 3)]

    assert_same(function, X[None])


def test_what_is_changed_in_place_may_start_as_seeds() -> None:
    def function(x: Tensor) -> list[Tensor]:
        seeds = torch.eye(2, dtype=x.dtype)[:, :, None].expand(2, 2, 3) * x
        changed = seeds.clone()
        changed.view(2, 6)[0] += 1.0
        return [changed, seeds * 2]

    assert_same(function, X)


def test_equal_operations_are_done_once() -> None:
    smaller = assert_same(lambda x: [x.sin() * x.sin() + x.pow(2) - x.pow(2.0)], X)
    assert ops(smaller).count("sin") == 1


def test_numbers_of_other_types_are_other_numbers() -> None:
    integers = torch.arange(4)
    smaller = assert_same(lambda x: [x * 2, x * 2.0, x * True], integers)
    assert [leaf.dtype for leaf in results(smaller, integers)][1] == torch.float32
