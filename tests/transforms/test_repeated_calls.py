"""A call like one before takes one pass and asks nothing anew; what it gives is what the first one gave."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torchjac
import torchjac.transforms.transformed as layer
from tests.counted import Counted
from tests.trees import pairs
from torchjac.errors import DerivativeMismatchWarning
from torchjac.foundations.pytree import flatten, map_tree
from torchjac.planning.memory import forget_everything
from torchjac.testing import strategies

CLOSE = {"rtol": 1e-7, "atol": 1e-9, "equal_nan": True}
TIMES = 3  # the first call looks, the second is noted, the third repeats
W = torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]], dtype=torch.float64)
X = torch.tensor([0.5, -1.5], dtype=torch.float64)
NET = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()

rules = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def with_rules(test: Any) -> Any:
    """Of random programs, some of whose operators have no forward or batching rule in some versions."""
    for mark in rules:
        test = mark(test)
    return test


def assert_same(got: Any, expected: Any) -> None:
    for one, other in pairs(got, expected):
        assert one.requires_grad == other.requires_grad
        torch.testing.assert_close(one, other, **CLOSE)


# --- Random programs -------------------------------------------------------------------------------


@with_rules
@given(
    strategies.programs_with_arguments(other_outputs=True),
    st.sampled_from(["auto", "forward", "reverse"]),
    st.booleans(),
    st.booleans(),
)
def test_later_calls_equal_the_first(
    case: Any, mode: str, connected: bool, all_of_them: bool
) -> None:
    program, args = case
    outputs, _ = flatten(program(*args))
    assume(any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in outputs))
    argnums = tuple(range(len(args))) if all_of_them else 0
    derivative = torchjac.jac(program, argnums, mode=mode, return_value=True)
    for _ in range(TIMES):
        derivative(*args)
    if connected:
        args = map_tree(lambda x: x.clone().requires_grad_(x.is_floating_point()), args)
    for point in (args, map_tree(lambda x: x * 0.75 if x.is_floating_point() else x, args)):
        got = derivative(*point)
        forget_everything()
        assert_same(got, derivative(*point))
        for _ in range(TIMES):
            derivative(*point)


@with_rules
@given(strategies.programs_with_arguments(), st.integers(1, 3), st.booleans())
def test_later_batches_equal_the_first(case: Any, batch: int, per_sample: bool) -> None:
    program, args = case
    function = program if per_sample else torch.func.vmap(program)
    stacked = [
        map_tree(lambda x: torch.stack([x * (k + 1) / 2 for k in range(batch)]), a) for a in args
    ]
    derivative = torchjac.batched_jac(function, per_sample=per_sample)
    first = derivative(*stacked)
    for _ in range(TIMES):
        assert_same(derivative(*stacked), first)


@with_rules
@given(strategies.programs_with_arguments(), st.sampled_from(["auto", "forward", "reverse"]))
def test_later_calls_with_a_pattern_equal_the_dense_one(case: Any, mode: str) -> None:
    program, args = case
    dense = torchjac.jac(program, mode="reverse", chunk_size=1)(*args)
    outputs, inputs = flatten(program(*args))[0], flatten(args[0])[0]
    shape = sum(leaf.numel() for leaf in outputs), sum(leaf.numel() for leaf in inputs)
    derivative = torchjac.jac(program, mode=mode, sparsity=torch.ones(shape).bool())
    for _ in range(TIMES):
        assert_same(derivative(*args), dense)


# --- Which calls repeat ----------------------------------------------------------------------------


def matrix(x: Tensor) -> Tensor:
    return (W @ x).sin()


def several(x: Tensor) -> dict[str, Tensor]:
    return {"y": x.sin().prod()}


def pair(x: dict[str, Tensor]) -> Tensor:
    return x["a"].sin() * x["b"]


def of_samples(x: Tensor) -> Tensor:
    return (x @ W.T).sin()


EYE = torch.eye(2, dtype=torch.bool)

REPEATING: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "rows": (torchjac.jac(matrix), (X,)),
    "one row": (torchjac.jac(several), (X,)),
    "one long row": (torchjac.jac(lambda x: x.sin().sum()), (X.repeat(2**20),)),
    "columns": (torchjac.jac(matrix, mode="forward"), (X,)),
    "one column": (torchjac.jac(lambda x: W[:, 0] * x, mode="forward"), (X[0],)),
    "several inputs": (torchjac.jac(pair, mode="reverse"), ({"a": X, "b": X},)),
    "all chunks at once": (torchjac.jac(matrix, chunk_size=None), (X,)),
    "unchecked": (torchjac.jac(matrix, check="never"), (X,)),
    "a value": (torchjac.jac(matrix, return_value=True), (X,)),
    "something beside": (torchjac.jac(lambda x: (matrix(x), x.sum()), has_aux=True), (X,)),
    "a given pattern": (torchjac.jac(torch.sin, sparsity=EYE), (X,)),
    "a pattern of columns": (torchjac.jac(torch.sin, sparsity=EYE, mode="forward"), (X,)),
    "a sparse layout": (torchjac.jac(torch.sin, sparsity=EYE, layout=torch.sparse_coo), (X,)),
    "a module": (torchjac.jac(NET), (X,)),
    "parameters": (torchjac.jac(NET, "params"), (X,)),
    "samples": (torchjac.batched_jac(matrix), (X.expand(4, 2),)),
    "a batch": (torchjac.batched_jac(of_samples, per_sample=False), (X.expand(4, 2),)),
    "sums of a batch": (torchjac.batched_jac(lambda x: x.sin().sum(1), per_sample=False), (W,)),
}


@pytest.mark.parametrize("name", REPEATING)
def test_what_repeats(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    derivative, args = REPEATING[name]
    first = derivative(*args)
    derivative(*args)
    monkeypatch.setattr(layer, "solve", None)  # nobody is asked
    assert_same(derivative(*args), first)


ASKING: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "checked at every call": (torchjac.jac(matrix, check="always"), (X,)),
    "chunks": (torchjac.jac(matrix, chunk_size=1), (X,)),
    "no outputs": (torchjac.jac(lambda x: x[:0].sin()), (X,)),
    "two outputs": (torchjac.jac(lambda x: (x.sin(), x.cos())), (X,)),
    "Hessians": (torchjac.hessian(lambda x: x.sin().prod()), (X,)),
    "a tensor of inference mode": (torchjac.jac(matrix), (torch.inference_mode()(X.clone)(),)),
}


@pytest.mark.parametrize("name", ASKING)
def test_what_does_not_repeat(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    derivative, args = ASKING[name]
    for _ in range(TIMES):
        derivative(*args)
    monkeypatch.setattr(layer, "solve", lambda problem: pytest.fail("asked"))
    with pytest.raises(pytest.fail.Exception, match="asked"):
        derivative(*args)


def test_within_other_transforms_nothing_repeats() -> None:
    derivative = torchjac.jac(matrix)
    for _ in range(TIMES):
        expected = derivative(X)
    torch.testing.assert_close(torch.func.vmap(derivative)(X[None])[0], expected)
    torch.testing.assert_close(
        torch.func.jacrev(derivative)(X), torch.func.jacrev(torch.func.jacrev(matrix))(X)
    )
    with torch.inference_mode():
        torch.testing.assert_close(derivative(X), expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        tangent = torch.autograd.forward_ad.unpack_dual(derivative(dual)).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(derivative, (X,), (torch.ones_like(X),))[1])


def test_one_evaluation_and_one_pass() -> None:
    func = Counted(matrix)
    derivative = torchjac.jac(func)
    for _ in range(TIMES):
        derivative(X)
    func.reset()
    derivative(X)
    assert (func.evaluations, func.passes) == (1, 1)


# --- What has not been checked yet -----------------------------------------------------------------


class WrongUnderVmap(torch.autograd.Function):
    """The sine, whose vmap rule is that of another function."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return Cosine.apply(*ctx.saved_tensors, cotangent)


class Cosine(torch.autograd.Function):
    """The product with the cosine, whose vmap rule is wrong."""

    @staticmethod
    def forward(x: Tensor, cotangent: Tensor) -> Tensor:
        return x.cos() * cotangent

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, cotangent: Tensor) -> Any:
        return 2 * x.cos() * cotangent, in_dims[1]


def test_fake_tensors_first() -> None:
    derivative = torchjac.jac(WrongUnderVmap.apply)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = mode.from_tensor(X)
    for _ in range(TIMES):
        assert derivative(fake).shape == (2, 2)
    with pytest.warns(DerivativeMismatchWarning):
        result = derivative(X)
    torch.testing.assert_close(result, X.cos().diag())


def test_another_transform_first() -> None:
    derivative = torchjac.jac(WrongUnderVmap.apply)
    for _ in range(TIMES):
        torch.func.vjp(derivative, X)
    with pytest.warns(DerivativeMismatchWarning):
        derivative(X)
    for _ in range(TIMES):
        torch.testing.assert_close(derivative(X), X.cos().diag())
