"""A plan gives what the derivative itself gives, with every option, dtype and stride."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac
from tests.cases import CASES, Case
from tests.sparse import DETECTS, arrow, point, tridiagonal
from tests.transforms.curves import LAYOUTS, MATRIX, X, curve
from torchjac.errors import PlanMismatchError
from torchjac.foundations.pytree import map_tree

pytestmark = [
    pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


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


def written_into(x: Tensor) -> Tensor:
    """What is reshaped is a view of ``y`` for some strides, and a copy for others."""
    y = x * 1
    y.T.reshape(-1).add_(1.0)
    return y**2


ASKING_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "is_contiguous": lambda x: (x if x.is_contiguous() else x.T).reshape(-1) ** 2,
    "stride": lambda x: x * x.stride(0),
    "as_strided": lambda x: torch.as_strided(x, (3, 4), (1, 3)) ** 2,
    "a copy or a view": written_into,
}


@pytest.mark.parametrize("func", ASKING_FUNCTIONS)
def test_a_function_that_strides_make_another_one(func: str) -> None:
    run, strided = ASKING_FUNCTIONS[func], matrices()
    plan = torchjac.jac(run).plan(strided["contiguous"])
    x = strided["with an offset"]
    torch.testing.assert_close(plan(x), torch.func.jacrev(run)(x))
    expected = r"argument 0: stride \(4, 1\) was planned, got \(1, 3\)"
    for call in (plan, plan.verify, lambda x: torch.func.vmap(plan)(x[None])):
        with pytest.raises(PlanMismatchError, match=expected):
            call(strided["transposed"])


def test_what_a_derivative_asks_itself_is_not_asked_by_the_function() -> None:
    strided = matrices()
    plan = torchjac.hessian(lambda x: x.sin().sum()).plan(strided["contiguous"])
    x = strided["transposed"]
    expected = torch.diag(-x.sin().reshape(-1)).reshape(3, 4, 3, 4)
    torch.testing.assert_close(plan(x), expected)


def test_a_function_that_asks_for_strides_which_its_trace_would_not_have() -> None:
    run, strided = ASKING_FUNCTIONS["is_contiguous"], matrices()
    plan = torchjac.jac(run).plan(strided["every second row"])
    assert "by sizes alone: it asks for strides" in str(plan)
    for name in ("contiguous", "transposed"):
        torch.testing.assert_close(plan(strided[name]), torch.func.jacrev(run)(strided[name]))


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


def test_an_empty_input_has_a_plan() -> None:
    x = torch.zeros(0, 2, dtype=torch.float64)
    plan = torchjac.jac(lambda x: x.sum(0) + 1).plan(x)
    assert plan(x).shape == (2, 0, 2)
