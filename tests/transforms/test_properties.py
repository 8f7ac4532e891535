"""What holds for every function: random programs, random arguments, zeros, ties and empties included."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, reject
from hypothesis import strategies as st
from torch import Tensor

import torchjac
from tests.trees import pairs
from torchjac.foundations.pytree import flatten, map_tree
from torchjac.testing import check_hessian, check_jac, strategies
from torchjac.testing.programs import Program, TensorSpec

CHUNKS = st.sampled_from(["auto", None, 1, 2, 3])
CLOSE = {"rtol": 1e-7, "atol": 1e-9, "equal_nan": True}
Case = tuple[Program, tuple[Any, ...]]

# Some operators have no forward or batching rule in some versions; that is said, and no concern here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def assert_same(got: Any, expected: Any) -> None:
    for one, other in pairs(got, expected):
        torch.testing.assert_close(one, other, **CLOSE)


@given(strategies.programs_with_arguments(other_outputs=True), CHUNKS)
def test_modes_and_chunks_agree(case: Case, chunk_size: Any) -> None:
    program, args = case
    outputs, _ = flatten(program(*args))
    assume(any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in outputs))
    expected = torchjac.jac(program, mode="reverse", chunk_size=1)(*args)
    assert_same(torchjac.jac(program, mode="reverse", chunk_size=chunk_size)(*args), expected)
    assert_same(torchjac.jac(program, mode="auto", chunk_size=chunk_size)(*args), expected)
    assert_same(torchjac.jac(program, mode="forward", chunk_size=chunk_size)(*args), expected)


@given(st.data(), strategies.programs_with_arguments(smooth=True))
def test_equals_finite_differences(data: st.DataObject, case: Case) -> None:
    program, args = case
    check_jac(program, *args, argnums=data.draw(strategies.argnums(program)))


@given(strategies.programs_with_arguments())
def test_equals_jacrev(case: Case) -> None:
    program, args = case
    argnums = tuple(range(len(args)))
    got = torchjac.jac(program, argnums)(*args)
    try:
        expected = torch.func.jacrev(program, argnums)(*args)
    except (IndexError, RuntimeError):
        reject()  # jacrev itself fails at a few programs with empty tensors
    assert_same(got, expected)


def contracted(jacobian: Any, vectors: list[Tensor], *, by_inputs: bool) -> list[Tensor]:
    """J·v for every output, from the leaves of ``jac(program, (0, 1, ...))``; or uᵀ·J for every input."""
    blocks = [flatten(row)[0] for row in jacobian]
    if by_inputs:
        return [
            sum(torch.tensordot(b, v, v.dim()) for b, v in zip(row, vectors, strict=True))
            for row in blocks
        ]
    columns = zip(*blocks, strict=True)
    return [
        sum(torch.tensordot(u, b, u.dim()) for b, u in zip(column, vectors, strict=True))
        for column in columns
    ]


def rows_of(program: Any, argnums: tuple[int, ...], args: tuple[Any, ...]) -> list[Any]:
    """The Jacobian as a list over output leaves."""

    def listed(*args: Any) -> list[Tensor]:
        return flatten(program(*args))[0]

    return torchjac.jac(listed, argnums)(*args)


@given(strategies.programs_with_arguments())
def test_product_with_a_vector_is_jvp(case: Case) -> None:
    program, args = case
    tangents = map_tree(torch.ones_like, args)
    _, pushed = torch.func.jvp(program, args, tangents)
    got = contracted(
        rows_of(program, tuple(range(len(args))), args), flatten(tangents)[0], by_inputs=True
    )
    for one, other in zip(got, flatten(pushed)[0], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@given(strategies.programs_with_arguments())
def test_product_with_a_covector_is_vjp(case: Case) -> None:
    program, args = case
    value, pull = torch.func.vjp(program, *args)
    cotangents = map_tree(torch.ones_like, value)
    got = contracted(
        rows_of(program, tuple(range(len(args))), args), flatten(cotangents)[0], by_inputs=False
    )
    for one, other in zip(got, flatten(pull(cotangents))[0], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@given(strategies.programs_with_arguments(max_arguments=1), st.integers(1, 4), CHUNKS)
def test_batched_equals_the_loop(case: Case, batch: int, chunk_size: Any) -> None:
    program, (tree,) = case
    stacked = map_tree(lambda leaf: torch.stack([leaf + b / 8 for b in range(batch)]), tree)
    got = torchjac.batched_jac(program, chunk_size=chunk_size)(stacked)
    each = [
        torchjac.jac(program)(map_tree(lambda leaf, b=b: leaf[b], stacked)) for b in range(batch)
    ]
    leaves = [flatten(one)[0] for one in each]
    for got_leaf, *own in zip(flatten(got)[0], *leaves, strict=True):
        torch.testing.assert_close(got_leaf, torch.stack(own), **CLOSE)


# The Hessian is zero but for rounding, which the self-check must not take for a wrong rule.
SUM_OF_SOFTMAX = Program(
    "def program(x0):\n    return x0.softmax(-2).sum()\n", (TensorSpec((2, 2)),)
)


@given(strategies.programs_with_arguments(scalar=True), st.sampled_from(["auto", None, 1, 3]))
@example((SUM_OF_SOFTMAX, (torch.tensor([[0.0, 0.0], [0.0, 0.5]], dtype=torch.float64),)), "auto")
def test_hessian_modes_agree_and_it_is_symmetric(case: Case, chunk_size: Any) -> None:
    program, args = case
    argnums = tuple(range(len(args)))
    got = torchjac.hessian(program, argnums, chunk_size=chunk_size)(*args)
    assume(all(leaf.isfinite().all() for leaf in flatten(got)[0]))
    for mode in ("forward-over-reverse", "reverse-over-reverse"):
        assert_same(
            torchjac.hessian(program, argnums, mode=mode, chunk_size=chunk_size)(*args), got
        )
    sizes = [leaf.numel() for leaf in flatten(args)[0]]
    leaves = iter(flatten(got)[0])
    matrix = torch.cat([torch.cat([next(leaves).reshape(m, n) for n in sizes], 1) for m in sizes])
    torch.testing.assert_close(matrix, matrix.T, **CLOSE)


@given(strategies.programs_with_arguments(scalar=True, smooth=True))
def test_hessian_equals_differences_of_gradients(case: Case) -> None:
    program, args = case
    check_hessian(program, *args)


@given(strategies.programs_with_arguments(scalar=True))
def test_jacobian_of_the_jacobian_is_the_hessian(case: Case) -> None:
    program, args = case
    got = torchjac.jac(torchjac.jac(program))(*args)
    assert_same(got, torchjac.hessian(program)(*args))


@given(strategies.programs_with_arguments(traps=True, smooth=True))
def test_never_silently_wrong_where_pytorch_is(case: Case) -> None:
    """Operators whose rules PyTorch gets wrong or lacks: the answer is right all the same."""
    program, args = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may say so, or not need to
        jacobian = torchjac.jac(program)(*args)
        check_jac(program, *args, jac=jacobian)


@given(strategies.programs_with_arguments(max_arguments=1))
def test_jac_of_equals_jac(case: Case) -> None:
    program, (tree,) = case
    tracked = map_tree(lambda leaf: leaf.clone().requires_grad_(), tree)
    # A copy, because an output may be an input itself, or have no graph at all.
    outputs = map_tree(lambda leaf: leaf * 1, program(tracked))
    assume(any(leaf.requires_grad for leaf in flatten(outputs)[0]))
    assert_same(torchjac.jac_of(outputs, tracked), torchjac.jac(program)(tree))


@given(strategies.programs_with_arguments(strided=True))
def test_arguments_are_left_alone(case: Case) -> None:
    program, args = case
    before = map_tree(torch.clone, args)
    torchjac.jac(program, tuple(range(len(args))))(*args)
    assert_same(args, before)
    assert not any(leaf.requires_grad for leaf in flatten(args)[0])
