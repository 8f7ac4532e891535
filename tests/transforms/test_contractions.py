"""Diagonals and traces without the matrix: equal to those of the matrix, and to closed forms."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import torchjac
from tests.transforms.contracted import CLOSE, close, model, point
from torchjac.errors import OutputTypeError, TorchjacFallbackWarning
from torchjac.foundations.pytree import flatten
from torchjac.testing import strategies
from torchjac.testing.programs import Program

CHUNKS = st.sampled_from(["auto", None, 1, 2])

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


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


@pytest.mark.parametrize("chunk", ["auto", 1])
def test_the_best_way_takes_a_single_number(chunk: Any) -> None:
    x = torch.tensor(0.3).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", TorchjacFallbackWarning)
        torch.testing.assert_close(
            torchjac.hessian_diag(lambda x: x**3, chunk_size=chunk)(x), 6 * x
        )
        torch.testing.assert_close(torchjac.jac_diag(lambda x: x**3, chunk_size=chunk)(x), 3 * x**2)


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
