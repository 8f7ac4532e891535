"""Diagonals and traces without the matrix: equal to those of the matrix, in counted passes."""

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

import torchjac
from tests.sparse import DETECTS, rosenbrock, tridiagonal
from torchjac.errors import (
    DerivativeMismatchWarning,
    OptionError,
    OptionTypeError,
    OutputTypeError,
    TorchjacFallbackWarning,
)
from torchjac.foundations.pytree import flatten
from torchjac.testing import strategies
from torchjac.testing.programs import Program

CHUNKS = st.sampled_from(["auto", None, 1, 2])
CLOSE = {"rtol": 1e-7, "atol": 1e-8, "equal_nan": True}
NEW = pytest.mark.skipif(not DETECTS, reason="needs torch 2.1")

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def close(got: Any, expected: Any) -> None:
    for one, other in zip(flatten(got)[0], flatten(expected)[0], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def model(inputs: int = 5, outputs: int = 5) -> torch.nn.Module:
    layers = [torch.nn.Linear(inputs, 8), torch.nn.Tanh(), torch.nn.Linear(8, outputs)]
    return torch.nn.Sequential(*layers).double()


def point(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def trace_of_hessian(func: Any) -> Any:
    """The dense formula, by plain double backward, differentiable."""

    def trace(x: Tensor) -> Tensor:
        hessian = torch.func.jacrev(torch.func.jacrev(func))(x)
        shape = func(x).shape
        return hessian.reshape(*shape, x.numel(), x.numel()).diagonal(dim1=-2, dim2=-1).sum(-1)

    return trace


# --- equal to the dense ones -------------------------------------------------------------------------


# The dense Hessian may have to be made again in another way.
@pytest.mark.filterwarnings("ignore::torchjac.errors.DerivativeMismatchWarning")
@given(strategies.programs_with_arguments(smooth=True), CHUNKS)
def test_laplacian_is_the_trace_of_the_hessian(case: tuple[Program, Any], chunk: Any) -> None:
    program, args = case
    # Its double backward takes the logarithm of a zero where one is among what it is given.
    assume("logcumsumexp" not in program.source)
    argnums = tuple(range(len(args)))

    def outputs(*args: Any) -> list[Tensor]:
        return flatten(program(*args))[0]

    hessian = torchjac.hessian(outputs, argnums, mode="reverse-over-reverse", chunk_size=1)(*args)
    got = torchjac.laplacian(outputs, argnums, chunk_size=chunk)(*args)
    leaves, likes = flatten(args)[0], outputs(*args)
    blocks = iter(flatten(hessian)[0])
    for found, like in zip(got, likes, strict=True):
        total = torch.zeros_like(like)
        for i, one in enumerate(leaves):
            for j, _ in enumerate(leaves):
                block = next(blocks)
                if i == j:
                    n = one.numel()
                    square = block.reshape(*like.shape, n, n)
                    total = total + square.diagonal(dim1=-2, dim2=-1).sum(-1)
        assume(total.isfinite().all())
        torch.testing.assert_close(found, total, rtol=1e-7, atol=1e-7)


@given(strategies.programs_with_arguments(scalar=True, smooth=True, max_arguments=1), CHUNKS)
def test_hessian_diag_is_its_diagonal(case: tuple[Program, Any], chunk: Any) -> None:
    program, (tree,) = case
    hessian = torchjac.hessian(program, mode="reverse-over-reverse", chunk_size=1)(tree)
    leaves = flatten(tree)[0]
    blocks = iter(flatten(hessian)[0])
    expected = []
    for i, one in enumerate(leaves):
        for j, _ in enumerate(leaves):
            block = next(blocks)
            if i == j:
                square = block.reshape(one.numel(), one.numel())
                expected.append(square.diagonal().reshape(one.shape))
    got = torchjac.hessian_diag(program, chunk_size=chunk)(tree)
    assert flatten(got)[1] == flatten(tree)[1]
    assume(all(leaf.isfinite().all() for leaf in expected))
    close(got, expected)


@given(strategies.programs_with_arguments(max_arguments=1), CHUNKS)
def test_jac_diag_and_divergence_are_those_of_the_matrix(
    case: tuple[Program, Any], chunk: Any
) -> None:
    program, (tree,) = case

    def like_its_input(tree: Any) -> Any:
        total = sum(leaf.sum() for leaf in flatten(program(tree))[0])
        return torchjac.foundations.pytree.map_tree(lambda leaf: leaf.sin() * total, tree)

    def flat(tree: Any) -> list[Tensor]:
        return flatten(like_its_input(tree))[0]

    jacobian = [flatten(row)[0] for row in torchjac.jac(flat, chunk_size=1)(tree)]
    expected = [
        row[i].reshape(leaf.numel(), leaf.numel()).diagonal().reshape(leaf.shape)
        for i, (row, leaf) in enumerate(zip(jacobian, flatten(tree)[0], strict=True))
    ]
    got = torchjac.jac_diag(like_its_input, chunk_size=chunk)(tree)
    assert flatten(got)[1] == flatten(tree)[1]
    close(got, expected)
    trace = torchjac.divergence(like_its_input, chunk_size=chunk)(tree)
    assert trace.shape == ()
    torch.testing.assert_close(trace, sum(d.sum() for d in expected), **CLOSE)


# --- closed forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("func", "n"),
    [
        (lambda x: x[0] ** 2 - x[1] ** 2, 2),
        (lambda x: x[0].exp() * x[1].sin(), 2),
        (lambda x: x.square().sum().log(), 2),
        (lambda x: 1 / x.norm(), 3),
        (lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2, 2),
    ],
)
def test_harmonic_functions(func: Any, n: int) -> None:
    found = torchjac.laplacian(func)(point(n))
    torch.testing.assert_close(found, torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [1, 3, 12])
def test_the_square_and_the_gaussian(n: int) -> None:
    x = point(n)
    torch.testing.assert_close(
        torchjac.laplacian(lambda x: x @ x)(x), torch.tensor(2.0 * n).double()
    )
    gaussian = torch.exp(-x.square().sum() / 2)
    found = torchjac.laplacian(lambda x: torch.exp(-x.square().sum() / 2))(x)
    torch.testing.assert_close(found, gaussian * (x.square().sum() - n))


def test_a_rotation_has_no_divergence() -> None:
    found = torchjac.divergence(lambda x: torch.stack([-x[1], x[0]]))(point(2))
    assert found == 0


def test_empty_and_scalar_inputs() -> None:
    empty = torch.zeros(0, 2).double()
    assert torchjac.divergence(torch.sin)(empty) == 0
    assert torchjac.jac_diag(torch.sin)(empty).shape == (0, 2)
    assert torchjac.laplacian(lambda x: x.square().sum())(empty) == 0
    x = torch.tensor(0.3).double()
    torch.testing.assert_close(torchjac.laplacian(torch.sin)(x), -x.sin())
    torch.testing.assert_close(torchjac.hessian_diag(torch.sin)(x), -x.sin())


def test_trees_parameters_and_other_arguments() -> None:
    args = ({"a": point(2), "b": (point(3),)}, torch.tensor(2.0).double())

    def func(tree: Any, scale: Tensor, *, shift: Tensor) -> Any:
        return {"y": scale * (tree["a"] ** 3).sum() + (tree["b"][0] ** 2).sum() + shift, "n": None}

    found = torchjac.laplacian(func)(*args, shift=point(1)[0])
    assert found["n"] is None
    torch.testing.assert_close(found["y"], 12 * args[0]["a"].sum() + 6)
    net = model(3, 1)
    x = point(4, 3)
    loss = torchjac.hessian_diag(torch.nn.Sequential(net, torch.nn.Flatten(0)), "params")
    with pytest.raises(OutputTypeError, match="must return a single number"):
        loss(x)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).square().mean()

    found = torchjac.hessian_diag(Loss(), "params")(x)
    dense = torchjac.hessian(Loss(), "params")(x)
    for name, parameter in Loss().named_parameters():
        n = parameter.numel()
        expected = dense[name][name].reshape(n, n).diagonal().reshape(parameter.shape)
        torch.testing.assert_close(found[name], expected)


# --- inside transforms, and differentiated -----------------------------------------------------------


def test_vmap_over_points() -> None:
    net, xs = model(), point(6, 5)
    dense = vmap(trace_of_hessian(net))(xs)
    torch.testing.assert_close(vmap(torchjac.laplacian(net))(xs), dense)
    torch.testing.assert_close(vmap(torchjac.laplacian(net, chunk_size=2))(xs), dense)
    jacobians = vmap(torch.func.jacrev(net))(xs).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(vmap(torchjac.jac_diag(net))(xs), jacobians)
    torch.testing.assert_close(vmap(torchjac.divergence(net))(xs), jacobians.sum(-1))


def test_a_training_loss_has_the_gradients_of_the_dense_formula() -> None:
    net, xs = model(3, 1), point(6, 3)
    parameters = list(net.parameters())[:3]  # the last bias has no part in it

    def u(x: Tensor) -> Tensor:
        return net(x).squeeze(-1)

    for transform in (torchjac.laplacian, trace_of_hessian):
        loss = vmap(transform(u))(xs).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        if transform is torchjac.laplacian:
            found = gradients
    close(found, gradients)
    one = torch.autograd.grad(torchjac.laplacian(u)(xs[0]).square(), parameters)
    close(one, torch.autograd.grad(trace_of_hessian(u)(xs[0]).square(), parameters))


def test_functional_parameters() -> None:
    net, xs = model(3, 1), point(4, 3)
    parameters = dict(net.named_parameters())

    def loss(transform: Any) -> Any:
        def u(x: Tensor, p: dict[str, Tensor]) -> Tensor:
            return functional_call(net, p, (x,)).squeeze(-1)

        def of(p: dict[str, Tensor]) -> Tensor:
            return vmap(lambda x: transform(lambda y, p: u(y, p), x, p))(xs).square().mean()

        return of

    def ours(func: Any, x: Tensor, p: Any) -> Tensor:
        return torchjac.laplacian(func)(x, p)

    def dense(func: Any, x: Tensor, p: Any) -> Tensor:
        return trace_of_hessian(lambda x: func(x, p))(x)

    close(grad(loss(ours))(parameters), grad(loss(dense))(parameters))


def test_derivatives_of_contractions() -> None:
    net, x = model(), point(5)

    def f(x: Tensor) -> Tensor:
        return net(x).square().sum()

    dense = trace_of_hessian(f)
    close(grad(torchjac.laplacian(f))(x), grad(dense)(x))
    close(jvp(torchjac.laplacian(f), (x,), (x,)), jvp(dense, (x,), (x,)))
    close(
        torchjac.jac(torchjac.hessian_diag(f))(x).trace(),
        grad(dense)(x).sum() * 0
        + torch.func.jacrev(lambda x: torch.func.hessian(f)(x).diagonal())(x).trace(),
    )
    quartic = lambda x: (x**4).sum() * x[0]  # noqa: E731
    biharmonic = torchjac.laplacian(torchjac.laplacian(quartic))(x)
    torch.testing.assert_close(biharmonic, trace_of_hessian(trace_of_hessian(quartic))(x))


@NEW
@pytest.mark.slow
def test_compiled() -> None:
    net, x = model(), point(5)
    for transform in (torchjac.laplacian, torchjac.divergence, torchjac.jac_diag):
        compiled = torch.compile(transform(net), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), transform(net)(x))


# --- counts ------------------------------------------------------------------------------------------


class Counted:
    """Counts evaluations, and the directions that are pushed or pulled through an identity in front."""

    def __init__(self, func: Any) -> None:
        self.func, self.evaluations = func, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.evaluations += 1
        return self.func(x)


@NEW
@pytest.mark.parametrize(
    ("name", "func", "passes"),
    [
        ("jac_diag", torch.sin, 1),
        ("jac_diag", tridiagonal, 2),
        ("divergence", tridiagonal, 2),
        ("divergence", lambda x: x.roll(1), 1),
        ("hessian_diag", lambda x: x.sin().sum(), 1),
        ("hessian_diag", rosenbrock, 2),
        ("laplacian", rosenbrock, 2),
        ("laplacian", torch.sin, 1),
        ("jac_diag", lambda x: x * x.sum(), 30),
    ],
)
def test_as_many_passes_as_the_diagonal_needs(
    name: str, func: Any, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = point(30)
    found = getattr(torchjac, name)(func)(x)
    chunks: list[int] = []
    from torchjac.planning.contractions import contract

    plain = contract.contracted
    monkeypatch.setattr(
        contract,
        "contracted",
        lambda form, seeds, *rest, **how: (
            chunks.append(seeds.total) or plain(form, seeds, *rest, **how)
        ),
    )
    again = getattr(torchjac, name)(func)(x)
    assert chunks == [passes]
    torch.testing.assert_close(again, found)
    if name in ("jac_diag", "divergence"):
        diagonal = torch.func.jacrev(func)(x).diagonal()
        torch.testing.assert_close(found, diagonal if name == "jac_diag" else diagonal.sum())


@NEW
def test_a_function_of_the_whole_batch_takes_the_directions_of_one_sample() -> None:
    net, xs = model(3, 2), point(8, 3)
    found = torchjac.laplacian(net)(xs)
    torch.testing.assert_close(found, vmap(trace_of_hessian(net))(xs))


def test_a_later_call_evaluates_once_or_not_at_all() -> None:
    x = point(5)
    counted = Counted(lambda x: x * x.sum())
    diagonal = torchjac.jac_diag(counted)
    diagonal(x)
    counted.evaluations = 0
    diagonal(x)
    assert counted.evaluations == 1
    counted = Counted(lambda x: (x * x.sum()).sum())
    laplacian = torchjac.laplacian(counted)
    counted.evaluations = 0
    diagonal = torchjac.hessian_diag(counted)
    diagonal(x)
    counted.evaluations = 0
    diagonal(x)
    assert counted.evaluations == 1
    laplacian(x)


@NEW
def test_a_function_written_anew_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchjac.evaluation.programs import laplacian_trace

    traces: list[int] = []
    plain = laplacian_trace.trace
    monkeypatch.setattr(laplacian_trace, "trace", lambda *a: traces.append(1) or plain(*a))
    net, x = model(), point(5)

    def compare() -> None:
        func = lambda x: net(x).sin()  # noqa: E731
        torch.testing.assert_close(torchjac.laplacian(func)(x), trace_of_hessian(func)(x))

    for _ in range(3):
        compare()
    assert len(traces) == 1
    with torch.no_grad():
        net[0].weight.mul_(2)
    compare()  # seen, for the trace is run on the parameters themselves
    assert len(traces) == 1
    net[0].weight = torch.nn.Parameter(net[0].weight * 2)
    compare()
    assert len(traces) == 2, "another parameter, another trace"


@NEW
def test_what_is_remembered_keeps_nothing_alive() -> None:
    def first_call() -> list[Any]:
        net = model()
        func = lambda x: net(x).sin()  # noqa: E731
        torchjac.laplacian(func)(point(5))
        return [weakref.ref(net[0].weight), weakref.ref(net), weakref.ref(func)]

    refs = first_call()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_a_number_that_changes_is_seen() -> None:
    x = point(12)
    for shift in (1, 2, 3):
        func = lambda x, k=shift: (x * x.roll(k)).sum() + k * x.square().sum()  # noqa: E731
        torch.testing.assert_close(torchjac.laplacian(func)(x), torch.tensor(24.0 * shift).double())
        func = lambda x: x * x.roll(shift) + shift * x  # noqa: E731, B023
        close(torchjac.jac_diag(func)(x), x.roll(shift) + shift)


# --- estimates ---------------------------------------------------------------------------------------


def smooth(x: Tensor) -> Tensor:
    return torch.cumsum(x, 0).sin() + x * x.flip(0)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_estimates_are_within_their_errors(method: str) -> None:
    x = point(40)
    generator = torch.Generator().manual_seed(0)
    exact = torchjac.divergence(smooth)(x)
    options = {"method": method, "generator": generator, "num_samples": 90, "return_error": True}
    misses = []
    for _ in range(20):
        estimate, error = torchjac.divergence(smooth, **options)(x)
        misses.append(float((estimate - exact) / error))
    assert max(map(abs, misses)) < 4
    assert abs(sum(misses)) / 20 < 4 / 20**0.5, "unbiased: the mean of twenty is within four errors"
    estimate, error = torchjac.laplacian(lambda x: smooth(x).square().sum(), **options)(x)
    exact = torchjac.laplacian(lambda x: smooth(x).square().sum())(x)
    assert abs(estimate - exact) <= 4 * error


def test_diagonal_estimates_are_within_their_errors() -> None:
    x = point(20)
    options = {"method": "hutchinson", "num_samples": 2000, "return_error": True}
    generator = torch.Generator().manual_seed(0)
    for transform, func in [
        (torchjac.jac_diag, smooth),
        (torchjac.hessian_diag, lambda x: smooth(x).square().sum()),
    ]:
        estimate, error = transform(func, generator=generator, **options)(x)
        exact = transform(func)(x)
        assert ((estimate - exact).abs() <= 4.5 * error + 1e-9).all()


def test_hutch_plus_plus_is_exact_where_the_rank_is_small() -> None:
    left, right = point(30, 2), point(2, 30)
    func = lambda x: left @ (right @ x)  # noqa: E731
    estimate, error = torchjac.divergence(func, method="hutch++", num_samples=9, return_error=True)(
        point(30)
    )
    torch.testing.assert_close(estimate, (right @ left).trace())
    assert error < 1e-10


def test_a_seed_repeats_an_estimate() -> None:
    x = point(7)

    def estimate(**options: Any) -> Tensor:
        return torchjac.laplacian(lambda x: smooth(x).prod(), method="hutchinson", **options)(x)

    generator = torch.Generator()
    one, other = [estimate(generator=generator.manual_seed(3)) for _ in range(2)]
    assert one == other
    assert estimate(generator=generator) != one
    torch.manual_seed(5)
    one = estimate()
    torch.manual_seed(5)
    assert estimate() == one
    # With the error each probe is pushed by itself; the estimate is the same.
    whole, _ = estimate(generator=generator.manual_seed(3), return_error=True)
    torch.testing.assert_close(whole, other)


def test_an_exact_result_has_no_error() -> None:
    value, error = torchjac.divergence(smooth, return_error=True)(point(4))
    assert error == 0
    torch.testing.assert_close(value, torchjac.divergence(smooth)(point(4)))


def test_probes_under_vmap() -> None:
    xs = torch.ones(8, 6).double()
    estimate = torchjac.divergence(smooth, method="hutchinson", num_samples=1)
    assert len(vmap(estimate)(xs).unique()) == 1, "shared"
    assert len(vmap(estimate, randomness="different")(xs).unique()) > 1


# --- never silently wrong ----------------------------------------------------------------------------


class StraightThrough(torch.autograd.Function):
    """Says that it is a cube, and is a square."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * cotangent * x**2


def detaching(x: Tensor) -> Tensor:
    return (x.detach() * x**2).sum()


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        factor = x.sin()
    return (factor * x**2).sum()


HOLDING = [
    (lambda x: StraightThrough.apply(x).sum(), lambda x: 6 * x.sum(-1)),
    (detaching, lambda x: 2 * x.sum(-1)),
    (without_grad, lambda x: 2 * x.sin().sum(-1)),
]


@NEW
@pytest.mark.parametrize(("func", "expected"), HOLDING)
def test_a_derivative_that_is_held_back_stays_so(func: Any, expected: Any) -> None:
    x, xs = point(4), point(3, 4)
    with pytest.warns(DerivativeMismatchWarning, match="the forward Laplacian disagrees"):
        torch.testing.assert_close(torchjac.laplacian(func)(x), expected(x))
    torch.testing.assert_close(torchjac.laplacian(func)(x), expected(x))  # and says so once
    torchjac.planning.memory.forget_everything()
    # Inside a transform there is nothing to compare with, so it is not even tried.
    torch.testing.assert_close(vmap(torchjac.laplacian(func))(xs), expected(xs))


@NEW
@pytest.mark.parametrize(
    ("func", "says"),
    [
        (lambda x: x.square().sum() if x[0] > 9 else (x**3).sum(), "it looks at values"),
        (lambda x: torch.dropout(x**3, 0.0, True).sum() + 0 * torch.rand(()), "random numbers"),
    ],
)
@pytest.mark.filterwarnings("always::torchjac.errors.TorchjacFallbackWarning")
def test_where_nothing_can_be_traced_products_are_taken(func: Any, says: str) -> None:
    x = point(4)
    laplacian = torchjac.laplacian(func)
    with pytest.warns(TorchjacFallbackWarning, match=says):
        torch.testing.assert_close(laplacian(x), 6 * x.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(laplacian(x), 6 * x.sum())


def test_the_functions_own_error_comes_out() -> None:
    def func(x: Tensor) -> Tensor:
        raise KeyError("mine")

    for transform in (torchjac.laplacian, torchjac.divergence):
        with pytest.raises(KeyError, match="mine"):
            transform(func)(point(3))


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "options", "error", "says"),
    [
        (
            torchjac.jac_diag,
            {"method": "hutch++"},
            OptionError,
            "expected one of 'exact', 'hutchinson'",
        ),
        (torchjac.laplacian, {"method": "taylor"}, OptionError, "expected one of 'exact', 'hutch"),
        (torchjac.divergence, {"num_samples": 0}, OptionError, "expected at least 1"),
        (torchjac.divergence, {"num_samples": 2.5}, OptionTypeError, "expected an int"),
        (
            torchjac.divergence,
            {"num_samples": 1, "method": "hutchinson", "return_error": True},
            OptionError,
            "expected at least 2 for a standard error",
        ),
        (torchjac.divergence, {"generator": 3}, OptionTypeError, "expected a torch.Generator"),
        (torchjac.divergence, {"chunk_size": 0}, OptionError, "chunk_size"),
    ],
)
def test_bad_options_are_refused_at_once(
    transform: Any, options: Any, error: Any, says: str
) -> None:
    with pytest.raises(error, match=says):
        transform(torch.sin, **options)


def test_only_a_square_jacobian_has_a_diagonal() -> None:
    for transform in (torchjac.jac_diag, torchjac.divergence):
        with pytest.raises(OutputTypeError, match="func must return what is like its input"):
            transform(lambda x: x[:2])(point(3))
        with pytest.raises(OutputTypeError, match="func must return what is like its input"):
            transform(lambda x: (x,))(point(3))
    with pytest.raises(OutputTypeError, match="must return a single number"):
        torchjac.hessian_diag(torch.sin)(point(3))
    with pytest.raises(OutputTypeError, match="must return a single number"):
        torchjac.laplacian(torch.sin, method="hutch++")(point(3))
