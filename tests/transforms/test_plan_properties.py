"""Whatever the program, a plan gives what single backward passes give."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchjac
from tests.sparse import DETECTS
from tests.transforms.curves import LAYOUTS
from tests.trees import pairs
from torchjac.foundations.pytree import flatten, map_tree
from torchjac.testing import strategies
from torchjac.testing.programs import Program, TensorSpec

CHUNKS = st.sampled_from(["auto", None, 1, 2, 3])
MODES = st.sampled_from(["auto", "forward", "reverse"])
CLOSE = {"rtol": 1e-7, "atol": 1e-9, "equal_nan": True}
Drawn = tuple[Program, tuple[Any, ...]]

pytestmark = [
    pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]
# A plan takes several traces.
fewer = settings(max_examples=max(settings.default.max_examples * 3 // 5, 1))


def assert_same(got: Any, expected: Any) -> None:
    for one, other in pairs(got, expected):
        assert type(one) is Tensor
        torch.testing.assert_close(one, other, **CLOSE)


def looped(program: Any, argnums: Any = 0, **options: Any) -> Callable[..., Any]:
    """The Jacobian by single backward passes, with no plan."""
    return torchjac.jac(program, argnums, mode="reverse", chunk_size=1, check="never", **options)


# Random programs


@fewer
@given(st.data(), strategies.programs_with_arguments(other_outputs=True), MODES, CHUNKS)
def test_equals_single_backward_passes(
    data: st.DataObject, drawn: Drawn, mode: str, chunk_size: Any
) -> None:
    program, args = drawn
    outputs, _ = flatten(program(*args))
    assume(any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in outputs))
    argnums = data.draw(strategies.argnums(program))
    plan = torchjac.jac(program, argnums, mode=mode, chunk_size=chunk_size).plan(*args)
    others = data.draw(strategies.arguments(program, strided=True))
    for here in (args, others):
        assert_same(plan(*here), looped(program, argnums)(*here))


@fewer
@given(st.data(), strategies.programs_with_arguments(strided=True))
def test_equals_jacrev_with_its_value(data: st.DataObject, drawn: Drawn) -> None:
    program, args = drawn
    argnums = tuple(range(len(args)))
    plan = torchjac.jac(program, argnums, return_value=True).plan(*args)
    others = data.draw(strategies.arguments(program))
    for here in (args, others):
        value, jacobian = plan(*here)
        assert_same(value, program(*here))
        try:
            expected = torch.func.jacrev(program, argnums)(*here)
        except (IndexError, RuntimeError):
            continue  # jacrev itself fails at a few programs with empty tensors
        assert_same(jacobian, expected)


@fewer
@given(st.data(), strategies.programs_with_arguments(scalar=True), CHUNKS, st.booleans())
def test_equals_the_hessian(
    data: st.DataObject, drawn: Drawn, chunk_size: Any, detect: bool
) -> None:
    program, args = drawn
    sparsity = "detect" if detect else None
    plan = torchjac.hessian(program, chunk_size=chunk_size, sparsity=sparsity).plan(*args)
    others = data.draw(strategies.arguments(program, strided=True))
    trusted = torchjac.hessian(program, mode="reverse-over-reverse", chunk_size=1, check="never")
    for here in (args, others):
        assert_same(plan(*here), trusted(*here))


@fewer
@given(strategies.programs_with_arguments(max_arguments=1), st.integers(1, 4), CHUNKS)
def test_equals_the_loop_over_samples(drawn: Drawn, batch: int, chunk_size: Any) -> None:
    program, (tree,) = drawn
    stacked = map_tree(lambda leaf: torch.stack([leaf + b / 8 for b in range(batch)]), tree)
    plan = torchjac.batched_jac(program, chunk_size=chunk_size).plan(stacked)
    each = [looped(program)(map_tree(lambda leaf, b=b: leaf[b], stacked)) for b in range(batch)]
    leaves = [flatten(one)[0] for one in each]
    for got, *own in zip(flatten(plan(stacked))[0], *leaves, strict=True):
        torch.testing.assert_close(got, torch.stack(own), **CLOSE)


# The backward pass of the first is not written as a linear map; the others were traced with no colours, or
# without a dim.
CUMULATIVE = Program(
    "def program(x0):\n    return x0.logcumsumexp(-1)\n", (TensorSpec((2,)),), ("logcumsumexp",)
)
EMPTY = Program(
    "def program(x0):\n    v1 = torch.logaddexp(x0, x0)\n    return ([v1], v1)\n",
    (TensorSpec((0, 2)),),
    ("logaddexp",),
)
ZERO_DIM = Program("def program(x0):\n    return torch.sin(x0)\n", (TensorSpec(()),), ("sin",))


@fewer
@given(strategies.programs_with_arguments(max_arguments=1), MODES, st.sampled_from(LAYOUTS))
@example((CUMULATIVE, (torch.zeros(2).double(),)), "forward", torch.strided)
@example((EMPTY, (torch.zeros(0, 2).double(),)), "auto", torch.strided)
@example((ZERO_DIM, (torch.zeros(()).double(),)), "auto", torch.strided)
def test_equals_what_a_pattern_gives(drawn: Drawn, mode: str, layout: torch.layout) -> None:
    program, args = drawn
    transform = torchjac.jac(program, sparsity="detect", mode=mode, layout=layout)
    try:
        expected = transform(*args)
    except torchjac.errors.TorchjacError:
        assume(False)
    for one, other in zip(
        flatten(transform.plan(*args)(*args))[0], flatten(expected)[0], strict=True
    ):
        assert one.layout == layout
        assert one.shape == other.shape
        torch.testing.assert_close(one.to_dense(), other.to_dense(), **CLOSE)


@fewer
@given(strategies.programs_with_arguments(smooth=True))
def test_verifies(drawn: Drawn) -> None:
    program, args = drawn
    assert torchjac.jac(program).plan(*args).verify(*args)


@fewer
@given(strategies.programs_with_arguments(traps=True, smooth=True), MODES)
def test_never_silently_wrong_where_pytorch_is(drawn: Drawn, mode: str) -> None:
    program, args = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may say so, or not need to
        assert_same(torchjac.jac(program, mode=mode).plan(*args)(*args), looped(program)(*args))


@fewer
@given(strategies.programs_with_arguments(strided=True))
def test_results_are_the_callers_alone(drawn: Drawn) -> None:
    program, args = drawn
    argnums = tuple(range(len(args)))
    before, expected = map_tree(torch.clone, args), looped(program, argnums)(*args)
    plan = torchjac.jac(program, argnums).plan(*args)
    for leaf in flatten(plan(*args))[0]:
        leaf.fill_(7)
    assert_same(args, before)
    assert not any(leaf.requires_grad for leaf in flatten(args)[0])
    assert_same(plan(*args), expected)
