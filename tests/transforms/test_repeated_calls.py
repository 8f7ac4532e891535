"""A call like one before takes one pass and asks nothing anew; what it gives is what the first one gave."""

import gc
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

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
from torchjac.errors import DerivativeMismatchWarning, TorchjacFallbackWarning
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


# --- What has changed meanwhile --------------------------------------------------------------------


def test_outputs_of_other_sizes() -> None:
    sizes = [3]
    derivative = torchjac.jac(lambda x: torch.cat([x.sin()] * sizes[0]))
    for size in (3, 3, 3, 1, 2, 2, 2, 3, 3):
        sizes[0] = size
        torch.testing.assert_close(derivative(X), torch.cat([X.cos().diag()] * size))


def test_one_output_that_becomes_several() -> None:
    """Whose rows one pass would add up."""
    sizes = [1]
    derivative = torchjac.jac(lambda x: torch.stack([x.sin().sum()] * sizes[0]))
    for size in (1, 1, 1, 2, 2, 2, 1):
        sizes[0] = size
        torch.testing.assert_close(derivative(X), X.cos().expand(size, 2))


def test_outputs_of_another_tree() -> None:
    wraps: list[Callable[[Tensor], Any]] = [lambda y: y]
    derivative = torchjac.jac(lambda x: wraps[0](x.sin()))
    for _ in range(TIMES):
        derivative(X)
    wraps[0] = lambda y: {"y": y, "none": None}
    got = derivative(X)
    assert got["none"] is None
    torch.testing.assert_close(got["y"], X.cos().diag())


@pytest.mark.parametrize("error", [ValueError("mine"), RuntimeError("mine"), KeyError("mine")])
def test_errors_of_the_function_come_out(error: Exception) -> None:
    raises: list[Exception] = []

    def func(x: Tensor) -> Tensor:
        for one in raises:
            raise one
        return x.sin()

    counted = Counted(func)
    derivative = torchjac.jac(counted)
    for _ in range(TIMES):
        derivative(X)
    raises.append(error)
    counted.reset()
    with pytest.raises(type(error), match="mine"):
        derivative(X)
    # Once more to see whose it is, where PyTorch raises such errors too.
    assert counted.evaluations == (1 if isinstance(error, KeyError) else 2)
    raises.clear()
    torch.testing.assert_close(derivative(X), X.cos().diag())


def test_errors_keep_nothing_alive() -> None:
    raises = False
    alive: list[weakref.ref[Tensor]] = []

    def func(x: Tensor) -> Tensor:
        y = x.sin()
        alive.append(weakref.ref(y))
        if raises:
            raise KeyError("mine")
        return y

    derivative = torchjac.jac(func)
    for _ in range(TIMES):
        derivative(X)
    raises = True
    gc.disable()
    try:
        with pytest.raises(KeyError):
            derivative(X)
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


OUT_OF_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory")


class Short(torch.autograd.Function):
    """The identity, which runs out of memory when asked to, forwards and backwards."""

    asked: ClassVar[list[str]] = []

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def _run_short(where: str) -> None:
        if where in Short.asked:
            Short.asked.remove(where)
            raise OUT_OF_MEMORY

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        Short._run_short("backward")
        return cotangent.clone()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        Short._run_short("jvp")
        return tangent.clone()

    generate_vmap_rule = True


@pytest.mark.parametrize("where", ["backward", "jvp"])
def test_memory_that_was_short_once(where: str) -> None:
    mode: Any = {"backward": "reverse", "jvp": "forward"}[where]
    func = Counted(lambda x: Short.apply(x).sin() * torch.rand(2, dtype=x.dtype))
    derivative = torchjac.jac(func, mode=mode, return_value=True)
    for _ in range(TIMES):
        derivative(X)
    Short.asked.append(where)
    func.reset()
    torch.manual_seed(1)
    value, got = derivative(X)
    torch.manual_seed(1)
    torch.testing.assert_close(value, func(X))
    torch.testing.assert_close(got, (X.cos() * value / X.sin()).diag())
    assert not Short.asked
    assert func.evaluations <= 2 + (mode == "forward")


@pytest.mark.parametrize("reduced", [False, True])
def test_evaluations_and_draws_where_sizes_change(reduced: bool) -> None:
    """One evaluation by the caller's draw, whatever has come of it."""

    def func(x: Tensor, copies: int) -> Tensor:
        dropped = torch.nn.functional.dropout(x, 0.5).repeat(copies)
        return dropped.sum() if reduced and copies > 2 else dropped

    counted = Counted(func)
    derivative, x = torchjac.jac(counted, return_value=True), torch.ones(4)
    for k in range(10):
        copies = 2 + k % 2
        counted.reset()
        torch.manual_seed(k)
        value, got = derivative(x, copies)
        assert k == 0 or counted.evaluations == 1
        torch.manual_seed(k)
        expected = func(x, copies)
        assert torch.equal(value, expected)
        torch.testing.assert_close(got @ x, expected)


def test_sizes_that_do_not_always_fit() -> None:
    func = Counted(lambda x, copies: (x**2).repeat(copies))
    derivative, x = torchjac.jac(func, mode="reverse"), torch.rand(300)
    for _ in range(TIMES):
        derivative(x, 1)
    for _ in range(TIMES):
        func.reset()
        assert derivative(x, 40).shape == (12000, 300)
        assert func.evaluations == 1


def test_parameters_of_another_dtype() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, i: Tensor) -> Tensor:
            return (self.w * 1e6).sum() * 1e-6 * (i + 1)

    net, i = Large().half(), torch.arange(6)
    derivative = torchjac.jac(net, "params", mode="forward", check="never")
    for _ in range(TIMES):
        derivative(i)
    net.double()
    expected = (i.double() + 1)[:, None].expand(6, 2)
    torch.testing.assert_close(derivative(i)["w"], expected)


def test_samples_that_cannot_be_vmapped_any_more() -> None:
    class WrappedError(RuntimeError):
        pass

    def func(x: Tensor, power: int) -> Tensor:
        try:
            return x * float(x.detach().sum()) if power > 1 else x**2
        except RuntimeError as error:
            raise WrappedError from error

    derivative = torchjac.batched_jac(func, in_dims=(0, None))
    x = torch.stack([X, X + 1])
    for _ in range(TIMES):
        derivative(x, 1)
    with pytest.warns(TorchjacFallbackWarning, match="cannot vmap"):
        got = derivative(x, 2)
    torch.testing.assert_close(got, x.sum(1)[:, None, None] * torch.eye(2, dtype=x.dtype))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_results_that_are_written_into(mode: Any) -> None:
    derivative = torchjac.jac(lambda x: x, mode=mode)
    for _ in range(TIMES + 2):
        result = derivative(X)
        torch.testing.assert_close(result, torch.eye(2, dtype=X.dtype))
        result.fill_(9)


def test_arguments_stay_as_they_are() -> None:
    derivative = torchjac.jac(lambda x, y: x.mul_(2).sin_() * y.add_(1), 0)
    x, y = X.clone(), X.clone()
    for _ in range(TIMES + 1):
        torch.testing.assert_close(derivative(x, y), (2 * (2 * X).cos() * (X + 1)).diag())
    assert torch.equal(x, X)
    assert torch.equal(y, X)


def test_gradients_of_what_was_captured() -> None:
    weight = W.clone()
    derivative = torchjac.jac(lambda x: (weight @ x).sin())
    for _ in range(TIMES):
        assert not derivative(X).requires_grad
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(derivative(X).sum(), weight)
    expected = torch.func.grad(lambda w: torch.func.jacrev(lambda x: (w @ x).sin())(X).sum())(W)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert not derivative(X).requires_grad


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
