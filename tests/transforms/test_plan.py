"""A plan gives what the derivative itself gives, composes as it does, and shares nothing with anybody."""

import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad

import torchjac
from tests.cases import CASES, Case
from tests.sparse import DETECTS, arrow, point, tridiagonal
from tests.trees import pairs
from torchjac.foundations.pytree import flatten, map_tree
from torchjac.testing import strategies
from torchjac.testing.programs import Program, TensorSpec

CHUNKS = st.sampled_from(["auto", None, 1, 2, 3])
MODES = st.sampled_from(["auto", "forward", "reverse"])
LAYOUTS = [torch.strided, torch.sparse_coo, torch.sparse_csr]
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


# Closed forms, and every option


@pytest.mark.parametrize("mode", ["auto", "forward"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_closed_forms(case: Case, mode: str) -> None:
    plan = torchjac.jac(case.func, case.argnums, mode=mode).plan(*case.args)
    torch.testing.assert_close(plan(*case.args), case.jacobian)


@pytest.mark.parametrize("case", [case for case in CASES if case.hessian is not None], ids=str)
def test_closed_forms_of_hessians(case: Case) -> None:
    plan = torchjac.hessian(case.func, case.argnums).plan(*case.args)
    torch.testing.assert_close(plan(*case.args), case.hessian)


X = torch.tensor([0.3, -0.8, 1.2], dtype=torch.float64)
MATRIX = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)


def curve(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1], x.sin().sum(), (x[1] / (2 + x[0] ** 2)).tanh()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sparsity", ["detect", "given"])
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_patterns_given_or_found_in_every_layout(mode: str, sparsity: str, layout: Any) -> None:
    pattern = torchjac.jac_sparsity(arrow)(point(6)) if sparsity == "given" else "detect"
    transform = torchjac.jac(arrow, sparsity=pattern, layout=layout, mode=mode)
    got = transform.plan(point(6))(2 * point(6))
    assert got.layout == layout
    torch.testing.assert_close(got.to_dense(), torch.func.jacrev(arrow)(2 * point(6)))


def test_a_wrong_pattern_is_refused_as_by_the_derivative() -> None:
    with pytest.raises(torchjac.errors.SparsityMismatchError):
        torchjac.jac(tridiagonal, sparsity=torch.eye(6).bool()).plan(point(6))


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("in_dims", [0, 1, -1])
def test_batches_along_any_dim(in_dims: int, per_sample: bool) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    given = x.movedim(0, in_dims)
    whole = lambda x: torch.func.vmap(curve, in_dims)(x)  # noqa: E731
    func = curve if per_sample else whole
    plan = torchjac.batched_jac(func, in_dims=in_dims, per_sample=per_sample).plan(given)
    torch.testing.assert_close(plan(given), torch.func.vmap(torch.func.jacrev(curve))(x))


def test_batches_that_share_an_argument() -> None:
    def func(x: Tensor, w: Tensor) -> Tensor:
        return (w * x).sin() * w

    x, w = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    plan = torchjac.batched_jac(func, (0, 1), in_dims=(0, None)).plan(x, w)
    expected = torch.func.vmap(torch.func.jacrev(func, (0, 1)), (0, None))(2 * x, w + 1)
    torch.testing.assert_close(plan(2 * x, w + 1), expected)


def test_coupled_samples_are_refused_as_by_the_derivative() -> None:
    with pytest.raises(torchjac.errors.BatchCouplingError):
        torchjac.batched_jac(lambda x: x - x.mean(0), per_sample=False).plan(torch.randn(4, 3))


def test_value_aux_keywords_integers_and_none() -> None:
    def func(x: Tensor, *, power: int) -> Any:
        outputs = {"y": x**power, "at": x.argmax(), "none": None}
        return outputs, {"sine": x.sin(), "matrix": MATRIX, "word": "aux"}

    transform = torchjac.jac(func, has_aux=True, return_value=True)
    value, jacobian, aux = transform.plan(X, power=3)(2 * X, power=3)
    torch.testing.assert_close(value["y"], 8 * X**3)
    assert (value["at"].item(), value["none"], aux["word"]) == (2, None, "aux")
    torch.testing.assert_close(jacobian["y"], torch.diag(12 * X**2))
    assert (jacobian["at"], jacobian["none"]) == (None, None)
    torch.testing.assert_close(aux["sine"], (2 * X).sin())
    torch.testing.assert_close(aux["matrix"], MATRIX)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("options", [{}, {"mode": "forward"}, {"sparsity": "detect"}], ids=str)
@pytest.mark.parametrize(
    ("dtype", "other"), [*zip(DTYPES, DTYPES[::-1], strict=True), (torch.float16, torch.float16)]
)
def test_every_mixture_of_dtypes(dtype: Any, other: Any, options: Any) -> None:
    def func(x: Tensor, y: Tensor) -> Any:
        return x * y, (x * x).to(other)

    x, y = X.to(dtype), torch.full((3,), 0.5, dtype=other)
    plan = torchjac.jac(func, (0, 1), **options).plan(x, y)
    (by_x, by_y), (square_by_x, square_by_y) = plan(x, y)
    torch.testing.assert_close(by_x, torch.diag(y).to(dtype))
    torch.testing.assert_close(by_y, torch.diag(x).to(other))
    # 2 * x goes through the other dtype.
    torch.testing.assert_close(
        square_by_x.double(), torch.diag(2 * x).double(), rtol=2e-2, atol=2e-2
    )
    assert not square_by_y.any()
    assert plan.verify(x, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_verifies_outputs_that_are_coarser_than_the_input(dtype: Any) -> None:
    assert torchjac.jac(lambda x: x.to(dtype) * 2).plan(X).verify(X)


def test_parameters() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    plan = torchjac.jac(module, argnums="params").plan(X)
    with torch.no_grad():
        module[0].weight.mul_(3)
    named = {name: p.detach() for name, p in module.named_parameters()}
    called = lambda named: torch.func.functional_call(module, named, (2 * X,))  # noqa: E731
    got = plan(2 * X)
    torch.testing.assert_close(map_tree(torch.Tensor.detach, got), torch.func.jacrev(called)(named))


@pytest.mark.parametrize("chunk_size", ["auto", 1, 2, 3, 5])
def test_hessians_by_parameters_whatever_the_chunks(chunk_size: Any) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    transform = torchjac.hessian(module, argnums="params", chunk_size=chunk_size)
    named = {name: p.detach() for name, p in module.named_parameters()}
    called = lambda named: torch.func.functional_call(module, named, (2 * X,))  # noqa: E731
    got = map_tree(torch.Tensor.detach, transform.plan(X)(2 * X))
    torch.testing.assert_close(got, torch.func.hessian(called)(named))


@pytest.mark.parametrize("chunk_size", ["auto", 2, 3, 4])
def test_a_hessian_in_closed_form_whatever_the_chunks(chunk_size: Any) -> None:
    """Of w ↦ Σ tanh(w·x): the entries (i, j), (i, k) are tanh″(wᵢ·x)·xⱼ·xₖ."""
    weight = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    func = lambda w: (w @ X).tanh().sum()  # noqa: E731
    got = torchjac.hessian(func, chunk_size=chunk_size).plan(weight)(2 * weight)
    t = (2 * weight @ X).tanh()
    curvature = torch.diag(-2 * t * (1 - t**2))
    torch.testing.assert_close(got, torch.einsum("il,j,k->ijlk", curvature, X, X))


# Strides


def matrices() -> dict[str, Tensor]:
    def numbers(*shape: int) -> Tensor:
        return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)

    return {
        "contiguous": numbers(3, 4),
        "transposed": numbers(4, 3).T,
        "every second row": numbers(6, 4)[::2],
        "every second column": numbers(3, 8)[:, ::2],
        "with an offset": numbers(13)[1:].view(3, 4),
        "one number": numbers(1).expand(3, 4),
        "one row": numbers(4).expand(3, 4),
        "one column": numbers(3)[:, None].expand(3, 4),
        "overlapping": numbers(6).unfold(0, 4, 1),
    }


STRIDED_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda x: x.reshape(-1).sin(),
    "contiguous": lambda x: x.contiguous().view(-1).sin(),
    "product": lambda x: x.T @ x,
    "in place": lambda x: x.mul_(x[0].clone()),
}


@pytest.mark.parametrize("func", STRIDED_FUNCTIONS)
@pytest.mark.parametrize("planned", matrices())
def test_whatever_the_strides_at_the_plan_and_at_the_call(planned: str, func: str) -> None:
    strided = matrices()
    run = STRIDED_FUNCTIONS[func]
    plan = torchjac.jac(run).plan(strided[planned])
    for here in strided.values():
        expected = torch.func.jacrev(lambda x: run(x * 1))(here)
        torch.testing.assert_close(plan(here), expected)


def test_the_same_tensor_twice_is_two_arguments() -> None:
    def func(x: Tensor, y: Tensor) -> Tensor:
        return x**2 * y

    plan = torchjac.jac(func, (0, 1)).plan(X, X)
    for args in [(X, X), (X, 2 * X)]:
        torch.testing.assert_close(plan(*args), torch.func.jacrev(func, (0, 1))(*args))


def test_an_argument_that_is_captured_too() -> None:
    plan = torchjac.jac(lambda x: (x * X).sin()).plan(X)
    for x in (X, 2 * X):
        torch.testing.assert_close(plan(x), torch.diag(X * (x * X).cos()))


# Around a plan

ROUND_PLAN: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "vmap": lambda f: torch.func.vmap(f),
    "grad": lambda f: torch.func.grad(lambda x: f(x).square().sum()),
    "jacrev": lambda f: torch.func.jacrev(f),
    "jacfwd": lambda f: torch.func.jacfwd(f),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x + 1,)),
    "jac": lambda f: torchjac.jac(f),
    "batched_jac": lambda f: torchjac.batched_jac(f),
    "vmap of vmap": lambda f: torch.func.vmap(torch.func.vmap(f)),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).square().sum())),
    "plan of a plan": lambda f: lambda x: torchjac.jac(f).plan(x)(x),
    "plan of a plan of a plan": lambda f: (
        lambda x: torchjac.jac(torchjac.jac(f).plan(x)).plan(x)(x)
    ),
}


def branching(x: Tensor) -> Tensor:
    return curve(x) if x.sum() > 9 else curve(1 * x)


@pytest.mark.parametrize("func", [curve, branching])
@pytest.mark.parametrize("around", ROUND_PLAN)
def test_transforms_around_a_plan(around: str, func: Callable[..., Any]) -> None:
    batched = {"vmap of vmap": (2, 3, 3), "vmap": (2, 3), "vmap of grad": (2, 3)}
    shape = {**batched, "batched_jac": (2, 3)}.get(around, (3,))
    x = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    if "vmap" in around or around == "batched_jac":
        func = curve  # vmap cannot branch
    expected = ROUND_PLAN[around](torch.func.jacrev(curve))
    if around == "batched_jac":
        expected = torch.func.vmap(torch.func.jacrev(torch.func.jacrev(curve)))
    if "plan" in around:
        expected = torch.func.jacrev(torch.func.jacrev(curve))
    if around.count("plan") == 3:
        expected = torch.func.jacrev(expected)
    got = ROUND_PLAN[around](torchjac.jac(func).plan(X))(x)
    torch.testing.assert_close(got, expected(x))


@pytest.mark.parametrize("sparsity", [None, "detect"])
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_a_tuned_plan_within_a_transform(mode: str, sparsity: Any) -> None:
    """What was measured with other seeds is no part of what runs without the program."""
    x = point(60)
    plan = torchjac.jac(tridiagonal, mode=mode, sparsity=sparsity).plan(x, tune=True)
    expected = torch.func.jacrev(tridiagonal)
    torch.testing.assert_close(plan(2 * x), expected(2 * x))
    torch.testing.assert_close(torch.func.vmap(plan)(x[None]), torch.func.vmap(expected)(x[None]))
    weighed = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(loss(plan(weighed)), weighed)
    torch.testing.assert_close(got, torch.autograd.grad(loss(expected(weighed)), weighed)[0])


def test_under_forward_mode_of_the_callers_own() -> None:
    plan = torchjac.jac(torch.sin).plan(X)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        tangent = forward_ad.unpack_dual(plan(dual)).tangent
    torch.testing.assert_close(tangent, torch.diag(-X.sin()))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_made_and_called_under_no_grad_and_inference_mode(guard: Any) -> None:
    outside = torchjac.jac(curve).plan(X)
    expected = torch.func.jacrev(curve)(2 * X)
    with guard():
        inside, x = torchjac.jac(curve).plan(X * 1), X * 2
        for plan in (outside, inside):
            torch.testing.assert_close(plan(x), expected)
            assert not plan(x).requires_grad
    torch.testing.assert_close(outside(x), expected)
    torch.testing.assert_close(inside(x), expected)


def test_called_under_autocast_as_the_derivative_is() -> None:
    def func(x: Tensor) -> Tensor:
        return (MATRIX.float() @ x).tanh()

    transform, x = torchjac.jac(func), X.float()
    plan = transform.plan(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(plan(x), transform(x))
    torch.testing.assert_close(plan(x), torch.func.jacrev(func)(x))


# Differentiating a result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(MATRIX.clone())
        self.register_buffer("shift", torch.linspace(0, 1, 5, dtype=torch.float64))
        self.rate = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x * self.rate + self.shift).sin()


def loss(jacobian: Tensor) -> Tensor:
    return jacobian.square().sum()


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_gradients_of_a_result_to_second_order(mode: str) -> None:
    net, x = Net(), X.clone().requires_grad_()
    plan = torchjac.jac(net, mode=mode).plan(X)
    for order in (1, 2):
        found = []
        for derivative in (plan, torch.func.jacrev(net)):
            grads = torch.autograd.grad(loss(derivative(x)), (x, net.weight), create_graph=True)
            if order == 2:
                grads = torch.autograd.grad(sum(map(loss, grads)), (x, net.weight))
            found.append(grads)
        torch.testing.assert_close(*found)


def test_requires_grad_is_looked_at_in_every_call() -> None:
    net = Net()
    plan = torchjac.jac(net).plan(X)
    for flag in (True, False, True):
        net.weight.requires_grad_(flag)
        assert plan(X).requires_grad == flag
    with torch.no_grad():
        assert not plan(X).requires_grad


def test_gradients_of_values_and_aux() -> None:
    def func(x: Tensor) -> Any:
        return x**3, x.sin()

    found = []
    transform = torchjac.jac(func, has_aux=True, return_value=True)
    for derivative in (transform, transform.plan(X)):
        x = X.clone().requires_grad_()
        found.append(torch.autograd.grad(sum(map(loss, derivative(x))), x))
    torch.testing.assert_close(*found)


def later_changes() -> dict[str, Callable[[Net, Tensor], Any]]:
    def in_place(pick: Callable[[Net, Tensor], Tensor]) -> Callable[[Net, Tensor], Any]:
        def change(net: Net, x: Tensor) -> None:
            with torch.no_grad():
                pick(net, x).add_(1)

        return change

    return {
        "argument": in_place(lambda net, x: x),
        "parameter": in_place(lambda net, x: net.weight),
        "buffer": in_place(lambda net, x: net.shift),
        "attribute": lambda net, x: setattr(net, "rate", 5.0),
        "data": lambda net, x: setattr(net.weight, "data", 2 * net.weight.data),
        "rebound": lambda net, x: setattr(net, "shift", 2 * net.shift),
    }


@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "plain"])
@pytest.mark.parametrize("change", later_changes())
def test_what_is_changed_before_backward_is_never_a_wrong_gradient(
    change: str, tracked: bool
) -> None:
    """Either an error, or the gradient at what was there."""
    net, x = Net(), X.clone().requires_grad_(tracked)
    (expected,) = torch.autograd.grad(loss(torch.func.jacrev(net)(x)), net.weight)
    weight = net.weight
    result = loss(torchjac.jac(net).plan(X)(x))
    later_changes()[change](net, x)
    try:
        (got,) = torch.autograd.grad(result, weight)
    except RuntimeError as error:
        assert "modified" in str(error) or "changed" in str(error)  # noqa: PT017
    except torchjac.errors.TorchjacError:
        pass
    else:
        torch.testing.assert_close(got, expected)


# Memory and threads


@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
@pytest.mark.parametrize(
    "func",
    [lambda x: MATRIX @ x, lambda x: x, lambda x: (x, x), lambda x: x[::2], lambda x: x / 2],
    ids=["matrix", "identity", "twice", "slice", "half"],
)
def test_a_result_is_written_into_and_the_next_is_right(
    func: Callable[..., Any], layout: Any
) -> None:
    before, expected = MATRIX.clone(), flatten(torch.func.jacrev(func)(X))[0]
    sparsity = "detect" if layout != torch.strided else None
    plan = torchjac.jac(func, sparsity=sparsity, layout=layout).plan(X)
    for leaf in flatten(plan(X))[0]:
        (leaf if layout == torch.strided else leaf._values()).fill_(7)
        if layout != torch.strided:
            leaf._indices().fill_(0)
    for leaf, other in zip(flatten(plan(X))[0], expected, strict=True):
        torch.testing.assert_close(leaf.to_dense(), other)
    assert torch.equal(MATRIX, before)


@pytest.mark.parametrize("options", [{}, {"sparsity": "detect"}, {"mode": "forward"}], ids=str)
def test_a_plan_that_is_gone_leaves_nothing(options: Any) -> None:
    net, x = Net(), X.clone()
    plan = torchjac.jac(net, **options).plan(x)
    plan(x.clone().requires_grad_())
    alive = [weakref.ref(held) for held in (net, net.weight, x, plan)]
    del net, x, plan
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_threads_share_a_plan() -> None:
    plan, wrong = torchjac.jac(curve).plan(X), []

    def work(scale: int) -> None:
        expected = torchjac.jac(curve, mode="reverse")(scale * X)
        wrong.extend(scale for _ in range(50) if not torch.allclose(plan(scale * X), expected))

    threads = [threading.Thread(target=work, args=(scale,)) for scale in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_empty_input_has_a_plan() -> None:
    x = torch.zeros(0, 2, dtype=torch.float64)
    plan = torchjac.jac(lambda x: x.sum(0) + 1).plan(x)
    assert plan(x).shape == (2, 0, 2)
