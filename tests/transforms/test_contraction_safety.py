"""Diagonals and traces are never silently wrong: what cannot be found out is said or refused."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

import torchjac
from tests.transforms.contracted import NEW, close, point
from torchjac.errors import (
    DerivativeMismatchWarning,
    OptionError,
    OptionTypeError,
    OutputTypeError,
    TorchjacFallbackWarning,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


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
@pytest.mark.filterwarnings("ignore:.*a difference of gradients")
@pytest.mark.parametrize(("func", "expected"), HOLDING)
def test_a_derivative_that_is_held_back_stays_so(func: Any, expected: Any) -> None:
    x, xs = point(4), point(3, 4)
    with pytest.warns(DerivativeMismatchWarning, match="the forward Laplacian disagrees"):
        torch.testing.assert_close(torchjac.laplacian(func)(x), expected(x))
    torch.testing.assert_close(torchjac.laplacian(func)(x), expected(x))  # and says so once
    torchjac.planning.memory.forget_everything()
    # Inside a transform there is nothing to compare with, so it is not even tried.
    torch.testing.assert_close(vmap(torchjac.laplacian(func))(xs), expected(xs))


class NotTwice(torch.autograd.Function):
    """A cube whose derivative cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * cotangent * x.detach() ** 2


class Once(NotTwice):
    backward = staticmethod(torch.autograd.function.once_differentiable(NotTwice.backward))


class Outside(NotTwice):
    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * cotangent.detach().numpy() * x.detach().numpy() ** 2)


@pytest.mark.filterwarnings("ignore:.*the forward Laplacian disagrees")
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
@pytest.mark.parametrize("transform", [torchjac.hessian_diag, torchjac.laplacian])
@pytest.mark.parametrize(
    ("func", "x"),
    [
        (lambda x: NotTwice.apply(x).sum(), point(4)),
        (lambda x: Once.apply(x).sum(), point(4)),
        (lambda x: Outside.apply(x).sum(), point(4)),
        (lambda x: (x.detach() * x**2).sum(), point(4)),
        (lambda x: x.norm() ** 2, torch.zeros(4).double()),
        (lambda x: NotTwice.apply(x["a"]).sum() + x["b"], {"a": point(3), "b": point()}),
    ],
)
def test_a_hessian_that_gradients_do_not_have_is_said_once(
    func: Any, x: Any, transform: Any, method: Any
) -> None:
    with pytest.warns(DerivativeMismatchWarning, match="disagrees with a difference of gradients"):
        transform(func, method=method)(x)
    transform(func, method=method)(x)
    transform(func, method=method)(x)


@pytest.mark.parametrize("transform", [torchjac.hessian_diag, torchjac.laplacian])
def test_what_gradients_say_is_looked_for_once(
    transform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchjac.planning.contractions import witness

    compared: list[int] = []
    plain = witness.attempt
    monkeypatch.setattr(witness, "attempt", lambda *a: compared.append(1) or plain(*a))

    def cube(x: Tensor) -> Tensor:
        return (x**3).sum()

    vmap(transform(cube))(point(2, 4))
    assert not compared, "there are no values"
    transform(cube)(torch.zeros(4).double())
    for _ in range(3):
        transform(cube)(point(4))
    assert len(compared) == 2, "zeros tell nothing, and one other point enough"
    for _ in range(6):
        transform(torch.sum)(point(4))
    assert len(compared) == 2 + 4, "nor does what is linear, but not for ever"


class WrongInBatches(torch.autograd.Function):
    """A cube whose batching rule forgets a factor in its derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return Slope.apply(*ctx.saved_tensors, cotangent)


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, cotangent: Tensor) -> Tensor:
        return 3 * cotangent * x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, cotangent: Tensor) -> tuple[Tensor, int]:
        return cotangent.movedim(in_dims[1], 0) * x**2, 0


def mixed(x: Tensor) -> Tensor:
    return WrongInBatches.apply(x) * x.sum()


@NEW
@pytest.mark.parametrize("transform", [torchjac.jac_diag, torchjac.divergence])
@pytest.mark.parametrize("first", [0.0, float("nan"), float("inf")])
def test_a_first_point_that_tells_nothing_is_no_proof(first: float, transform: Any) -> None:
    x = point(4)
    expected = 3 * x**2 * x.sum() + x**3
    transform(mixed)(torch.full_like(x, first))
    with pytest.warns(DerivativeMismatchWarning, match="disagrees with plain backward passes"):
        found = transform(mixed)(x)
    close(found, expected if transform is torchjac.jac_diag else expected.sum())


@NEW
@pytest.mark.filterwarnings("ignore:.*a difference of gradients")
def test_a_forward_laplacian_of_zero_is_no_proof() -> None:
    def func(x: Tensor) -> Tensor:
        return (x.detach() ** 2 * x**2).sum()

    x = point(4)
    torchjac.laplacian(func)(torch.zeros_like(x))
    with pytest.warns(DerivativeMismatchWarning, match="the forward Laplacian disagrees"):
        close(torchjac.laplacian(func)(x), 2 * x.square().sum())


def test_what_tells_nothing_is_compared_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchjac.planning.contractions import contract

    compared: list[int] = []
    plain = contract.way_agrees
    monkeypatch.setattr(contract, "way_agrees", lambda *a: compared.append(1) or plain(*a))
    diagonal = torchjac.jac_diag(lambda x: x**2 * x.sum())
    for _ in range(6):
        diagonal(torch.zeros(4).double())
    assert len(compared) == 4
    diagonal = torchjac.jac_diag(lambda x: x**3 * x.sum())
    for _ in range(3):
        diagonal(point(4))
    assert len(compared) == 5


@NEW
def test_colors_at_zero_are_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchjac.planning.contractions import contract

    compared: list[int] = []
    plain = contract.colors_agree
    monkeypatch.setattr(contract, "colors_agree", lambda *a: compared.append(1) or plain(*a))
    diagonal = torchjac.jac_diag(lambda x: x**3)
    diagonal(torch.zeros(12).double())
    for _ in range(3):
        diagonal(point(12))
    assert len(compared) == 2


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
        (torchjac.jac_diag, {"return_error": "yes"}, OptionTypeError, "expected True or False"),
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
