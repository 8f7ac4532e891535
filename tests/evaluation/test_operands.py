"""Operands without a tangent are kept apart, and nothing else is different for it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import torchjac
from tests.sparse import DETECTS
from torchjac.evaluation import operands
from torchjac.evaluation.duals import pushed
from torchjac.evaluation.operands import Constants
from torchjac.foundations.pytree import flatten
from torchjac.testing import strategies

DOUBLE = torch.float64
SQUARE = torch.tensor([[2.0, -1.0, 0.5], [1.0, 3.0, -2.0], [0.25, 1.5, -4.0]], dtype=DOUBLE)
VECTOR = SQUARE[0].clone()
BATCH = SQUARE.expand(2, 3, 3).clone()
# Bases and exponents of zero, and equal numbers.
TIED = torch.tensor([[0.0, 1.0, 0.5], [2.0, 0.0, 3.0]], dtype=DOUBLE)
TIES = [(TIED, TIED), (TIED, TIED + 1), (TIED[1], TIED.ceil()[..., None])]
ONE_VECTOR = {torch.dot, Tensor.dot, torch.outer, Tensor.outer, torch.linalg.cross}
SHAPED: dict[Any, list[tuple[Tensor, ...]]] = {
    torch.mv: [(SQUARE, VECTOR)],
    Tensor.mv: [(SQUARE, VECTOR)],
    torch.bmm: [(BATCH, BATCH)],
    Tensor.bmm: [(BATCH, BATCH)],
    F.linear: [(SQUARE, SQUARE, VECTOR), (BATCH, SQUARE), (VECTOR, SQUARE, VECTOR)],
    torch.mm: [(SQUARE, SQUARE)],
    Tensor.mm: [(SQUARE, SQUARE)],
    F.conv1d: [(BATCH, BATCH, VECTOR[:2], 2, 1), (SQUARE, BATCH, None)],
    F.conv2d: [
        (BATCH[:, None], BATCH[:, None], VECTOR[:2]),
        (BATCH, BATCH.mT[:, :2, None], None, 1, "same"),
    ],
    F.conv3d: [(BATCH[None, None], BATCH[None, None], None, 1, 1, 2)],
    F.conv_transpose1d: [(SQUARE[None], SQUARE[..., None], VECTOR, 2, 0, 1)],
    F.conv_transpose2d: [(BATCH[:, None], BATCH[None], VECTOR[:2])],
    F.conv_transpose3d: [(BATCH[None, None], BATCH[None, None], None)],
    F.layer_norm: [
        (BATCH, [3], VECTOR, -VECTOR),
        (BATCH, [3, 3], SQUARE, None, 0.5),
        (BATCH, [3], None, VECTOR),
        (BATCH, [3]),
    ],
    F.group_norm: [
        (BATCH, 1, VECTOR, -VECTOR),
        (BATCH[..., None], 3, VECTOR, VECTOR, 0.5),
    ],
    F.batch_norm: [
        (BATCH, VECTOR.sin(), VECTOR.exp(), VECTOR, -VECTOR, False, 0.1, 0.5),
        (BATCH[..., None], VECTOR.sin(), VECTOR.exp(), VECTOR, None),
        (SQUARE, VECTOR.sin(), VECTOR.exp()),
        (SQUARE, VECTOR.sin(), VECTOR.exp(), VECTOR, None, True),
        (BATCH, None, None, VECTOR, VECTOR, True, 0.1, 0.5),
    ],
    **dict.fromkeys([*operands._POWERS, *operands._EXTREMES], TIES),
    getattr(F, "rms_norm", None): [(BATCH, [3], VECTOR), (BATCH, [3, 3], SQUARE, 0.5)],
}


@pytest.fixture(autouse=True, params=[0, 2**15], ids=["tangents lent", "copied"])
def much(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of many numbers share the tangents of their operands until somebody writes into them."""
    monkeypatch.setattr(operands, "_MUCH", request.param)


STATISTICS = {F.batch_norm: (1, 2)}  # arguments without a derivative
ANY = [(SQUARE, VECTOR), (VECTOR, SQUARE), (SQUARE, SQUARE), (VECTOR, VECTOR), (BATCH, SQUARE)]


def operand_lists(function: Any) -> list[tuple[Any, ...]]:
    if function is torch.einsum:
        return [("ij,jk->ik", SQUARE, SQUARE), ("i,ij,j->", VECTOR, SQUARE, VECTOR), ("ii", SQUARE)]
    if function in ONE_VECTOR:
        return [(VECTOR, VECTOR)]
    return SHAPED.get(function, ANY)  # type: ignore[return-value]


def dual(function: Callable[..., Any], x: Tensor, *, apart: bool) -> tuple[Tensor, Tensor, bool]:
    """The value and its tangent, and whether there was a constant, at a mixed bag of tangents."""
    tangent = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)
    constants = Constants()
    (value,), (product,), _ = pushed(
        lambda x: ((function(x),), ()), [x], [tangent], constants if apart else None
    )
    return value, product, constants.are_worth_it


def assert_same(function: Callable[..., Any], x: Tensor) -> bool:
    value, product, met = dual(function, x.clone(), apart=True)
    expected_value, expected, _ = dual(function, x.clone(), apart=False)
    torch.testing.assert_close(value, expected_value, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    return met


def name(function: Any) -> str:
    return f"{getattr(function, '__objclass__', torch).__name__}.{function.__name__}"


@pytest.mark.parametrize("number", [3, 0.3, 0, math.inf, -2, 1e-8, 1e5, 0.0, -0.0])
@pytest.mark.parametrize("function", operands._BY_NUMBERS, ids=name)
def test_every_operation_with_a_number(function: Any, number: float) -> None:
    """Of which neither the operand nor the result shares its tangent with the other."""

    def of_one(x: Tensor) -> Tensor:
        y = x * x
        made = function(y, number)
        return torch.cat([made.clone(), made.mul_(x), y.mul_(x)])

    for dtype in (DOUBLE, torch.float32, torch.half, torch.bfloat16):
        if torch.finfo(dtype).bits < 32 and abs(number) == 1e5:
            continue  # its tangents are infinite in PyTorch's rules too
        assert assert_same(of_one, SQUARE.to(dtype))


def test_integers_and_numbers() -> None:
    integers = torch.tensor([3, 0, 200], dtype=torch.uint8)
    for function in (torch.add, torch.sub, torch.mul, torch.div):
        assert_same(lambda x, function=function: function(integers, 7) * x, VECTOR)
        assert_same(lambda x, function=function: function(integers, -1) * x, VECTOR)


def of_each(function: Any) -> Iterator[tuple[Callable[[Tensor], Any], Tensor, bool]]:
    """The operation as a function of each operand, that operand, and whether constants are kept apart."""
    rule, statistics = operands._BY_TENSORS[function], STATISTICS.get(function, ())
    for args in operand_lists(function):
        for place, arg in enumerate(args):
            if not isinstance(arg, Tensor) or place in statistics:
                continue

            def of_one(x: Tensor, args: Any = args, place: int = place) -> Any:
                return function(*args[:place], x.sin(), *args[place + 1 :])

            count = sum(isinstance(arg, Tensor) for arg in args[rule.operands])
            yield of_one, arg, place in rule.linear and count > 1


@pytest.mark.parametrize("function", operands._BY_TENSORS, ids=name)
def test_every_operation_with_constants(function: Any) -> None:
    """Whichever operand is the dual number; and of several, what PyTorch does."""
    for of_one, arg, is_kept_apart in of_each(function):
        assert assert_same(of_one, arg) is is_kept_apart
    statistics = STATISTICS.get(function, ())
    for args in operand_lists(function):

        def of_all(x: Tensor, args: Any = args) -> Any:
            moved = [isinstance(arg, Tensor) and k not in statistics for k, arg in enumerate(args)]
            return function(*[arg * x if m else arg for m, arg in zip(moved, args, strict=True)])

        assert_same(of_all, torch.tensor(0.7, dtype=DOUBLE))


@pytest.mark.parametrize("function", operands._BY_TENSORS, ids=name)
def test_every_operation_with_constants_in_a_stack(function: Any) -> None:
    for of_one, arg, _ in of_each(function):
        derivative = torchjac.jac(of_one, mode="forward", check="never")
        expected = torch.autograd.functional.jacobian(of_one, arg)
        torch.testing.assert_close(derivative(arg), expected, rtol=1e-10, atol=1e-10)


WEIGHTS = torch.tensor([0.5, -1.0, 2.0])
PLACES = torch.tensor([0, 2, 1])
LEARNED = VECTOR.clone().requires_grad_()


def written_into(x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """What is made of ``x``, which is then written into."""
    made = operation(x)
    x.mul_(3)
    return made


def written_parts(x: Tensor) -> Tensor:
    y = torch.zeros(3, dtype=DOUBLE)
    y[0], y[1] = x[1] * x[2], 2.0
    return y


def seen_through(x: Tensor) -> Tensor:
    y = torch.ones(3, dtype=DOUBLE)
    y[1:].mul_(x[:2])
    return y


def without_grad(operation: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return operation()


CASES: dict[str, Callable[[Tensor], Any]] = {
    "broadcast": lambda x: x[:, None] + WEIGHTS.double() - x,
    "wider dtype": lambda x: x * WEIGHTS.half() + PLACES,
    "narrower dtype": lambda x: x.float() * SQUARE - SQUARE,
    "number of dimension 0": lambda x: x * torch.tensor(2.0) - torch.tensor(1, dtype=torch.int64),
    "made inside": lambda x: x * torch.arange(3) + torch.ones(3) * x,
    "made inside, a matrix": lambda x: torch.eye(3, dtype=DOUBLE) @ x + torch.ones_like(x) - x,
    "made inside, written into": lambda x: written_parts(x) * x + x.new_zeros(3).add_(x) * x,
    "made inside, written into as a view": lambda x: seen_through(x) * x,
    "made inside and gone": lambda x: x * torch.full((3,), 2.0) * (x * torch.full((3,), 3.0)),
    "cut": lambda x: x.detach() * x + torch.detach(x).mul_(2) - x,
    "masks": lambda x: (x > 0) * x + (x > 1).double() * x,
    "no tangent at all": lambda x: x.detach() * 2 + x.detach() * VECTOR + x,
    "bool": lambda x: x * True + False,
    "keywords": lambda x: (
        torch.add(x, VECTOR, alpha=2) + torch.div(x, 3, rounding_mode="floor") * x
    ),
    "a bias by keyword": lambda x: F.linear(x, SQUARE, bias=VECTOR),
    "weights by keyword": lambda x: F.conv1d(
        x[None], weight=SQUARE[:1, None], padding=1, bias=None
    ),
    "all by keyword": lambda x: F.linear(input=VECTOR, weight=SQUARE * x),
    "a norm by keywords": lambda x: F.layer_norm(x, [3], bias=VECTOR, weight=VECTOR, eps=0.5),
    "given memory": lambda x: torch.add(x.detach(), 1, out=torch.empty(3, dtype=DOUBLE)) * x,
    "written into": lambda x: (x + 1).mul_(x).sub_(VECTOR).div_(2).add_(x),
    "sum written into": lambda x: (x + VECTOR).mul_(x) * x,
    "difference written into": lambda x: (VECTOR - x).mul_(x) * x,
    "operand written into, difference": lambda x: written_into(x.sin(), lambda y: y - 1),
    "operand written into, sum": lambda x: written_into(x.sin(), lambda y: y + 1),
    "operand written into, tensors": lambda x: written_into(x.sin(), lambda y: VECTOR - y),
    "result written into": lambda x: (x - 1.0).mul_(3) + x * 1,
    "zeros of both signs": lambda x: (
        1 / (-1 * (x - x) - 0) + 1 / (-1 * (x - x) - 0.0) + (x - x - -0.0)
    ),
    "complex": lambda x: (torch.complex(x, x * x) * x + 1j * x - x / (1 + 2j)).imag,
    "Fourier": lambda x: torch.fft.irfft(torch.fft.rfft(x) * x[:2], n=3),
    "without grad for a while": lambda x: without_grad(lambda: x * VECTOR).mul_(LEARNED) * x,
    "expanded": lambda x: x[0].expand(3) - VECTOR,
    "view of a constant": lambda x: (SQUARE.T[1] @ x) * SQUARE.diagonal(),
    "numbers on the left": lambda x: 2 - 3 * x + 1 / (2 + x) + 2**x,
    "parameters": lambda x: torch.nn.Parameter(VECTOR.clone()) * x,
    "not finite": lambda x: x * torch.tensor([math.inf, math.nan, 0.0]) + x / 0.0,
    "a transform of its own": lambda x: torch.func.vmap(lambda y: y * WEIGHTS + 2 * y)(x),
    "a derivative of its own": lambda x: torch.func.grad(lambda y: (y * VECTOR * 3).sum())(x) * x,
    "forward mode of its own": lambda x: torch.func.jvp(lambda y: y * VECTOR * y, (x,), (x,))[1],
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    assert_same(CASES[name], VECTOR)


@pytest.mark.parametrize("inside", [True, False])
def test_nothing_is_kept_apart_under_autocast(inside: bool) -> None:
    """Where PyTorch's formulas round less often."""
    weight, half = VECTOR.float(), torch.autocast("cpu", torch.bfloat16)

    def norm(x: Tensor) -> Tensor:
        with half if inside else contextlib.nullcontext():
            return F.layer_norm(x @ SQUARE.float(), [3], weight, weight)

    with contextlib.nullcontext() if inside else half:
        assert not assert_same(norm, weight.sin())


@given(strategies.programs_with_arguments(smooth=True))
def test_programs_are_the_same_bit_for_bit_in_their_values(case: Any) -> None:
    program, args = case
    if all(isinstance(arg, Tensor) for arg in args):
        first = args[0]

        def of_first(x: Tensor) -> Tensor:
            leaves = flatten(program(x, *args[1:]))[0]
            return torch.cat([leaf.reshape(-1).to(x.dtype) for leaf in leaves])

        assert_same(of_first, first)


@pytest.mark.parametrize("outer", [torch.func.jacrev, torch.func.jacfwd, torchjac.jac])
def test_what_is_kept_apart_can_be_differentiated(outer: Any) -> None:
    weight = SQUARE.clone().requires_grad_()

    def func(x: Tensor) -> Tensor:
        return F.linear(x * 2, weight, weight[0]).sin() * weight[1] / 3 - weight[2]

    derivative = torchjac.jac(func, mode="forward")
    second = torch.func.jacrev(torch.func.jacrev(func))(VECTOR)
    torch.testing.assert_close(outer(derivative)(VECTOR), second)
    torch.testing.assert_close(torch.func.vmap(derivative)(SQUARE)[0], derivative(VECTOR))
    ours = torch.autograd.grad(derivative(VECTOR).square().sum(), weight)[0]
    theirs = torch.autograd.grad(torch.func.jacrev(func)(VECTOR).square().sum(), weight)[0]
    torch.testing.assert_close(ours, theirs)


# --- Arguments that are written into ---------------------------------------------------------------


def in_place(x: Tensor) -> Tensor:
    x.mul_(3)
    x[0] = x[1] * 2
    return x + 1


@pytest.mark.skipif(not DETECTS, reason="detection needs torch 2.1")
@pytest.mark.parametrize(
    "func",
    [in_place, lambda x: x.mul_(3), lambda x: x.copy_(x.flip(0) * 2), lambda x: x.zero_() + 1],
)
def test_neither_arguments_nor_seeds_are_harmed(func: Any) -> None:
    """Colours are lent to the passes, call after call."""
    x = torch.linspace(1, 2, 6, dtype=DOUBLE)
    expected = torch.func.jacrev(lambda x: func(x.clone()))(x)
    pattern = torch.eye(6).bool() | torch.eye(6).bool().flip(0)
    pattern[0, 1] = True
    for mode in ("forward", "reverse", "auto"):
        derivative = torchjac.jac(func, sparsity=pattern, mode=mode, layout=torch.strided)
        for _ in range(4):
            torch.testing.assert_close(derivative(x), expected)
    torch.testing.assert_close(x, torch.linspace(1, 2, 6, dtype=DOUBLE))


@given(st.integers(1, 4), st.booleans())
def test_products_of_functions_that_write_into_their_argument(count: int, plain: bool) -> None:
    matrix = torch.randn(4, count, dtype=DOUBLE)
    before = matrix.clone()
    op = torchjac.jac_operator(lambda x: x.mul_(2).add_(1))(torch.ones(4, dtype=DOUBLE))
    got = op @ (matrix[:, 0] if plain else matrix)
    torch.testing.assert_close(got, 2 * (before[:, 0] if plain else before))
    assert torch.equal(matrix, before)
