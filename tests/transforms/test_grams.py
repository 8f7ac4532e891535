"""`gram` in the forms that NTK, Laplace and Levenberg–Marquardt take it, and what it costs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac
from torchjac.errors import ArgumentError, ArgumentTypeError
from torchjac.planning.products.linearization import Linearization

BATCH = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def per_sample(module: nn.Module, batch: Tensor) -> Tensor:
    """J of all outputs by all parameters, (B, out, parameters)."""
    leaves = torchjac.batched_jac(module, "params")(batch)
    return torch.cat([leaf.flatten(2) for leaf in leaves.values()], 2).detach()


def test_neural_tangent_kernel() -> None:
    module = network()
    with torch.no_grad():
        kernel = torchjac.jac_operator(module, "params")(BATCH).gram("outputs")
    J = per_sample(module, BATCH).flatten(0, 1)
    torch.testing.assert_close(kernel, J @ J.T)


def test_generalised_gauss_newton_with_a_block_for_every_sample() -> None:
    module = network()
    logits = module(BATCH).detach()
    p = logits.softmax(1)
    # (B, 2, 2): the Hessian of the cross-entropy of a sample by its logits
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    with torch.no_grad():
        op = torchjac.jac_operator(module, "params")(BATCH)
        got = op.gram("inputs", blocks)
    J = per_sample(module, BATCH)
    torch.testing.assert_close(got, torch.einsum("bip,bij,bjq->pq", J, blocks, J))


def test_one_gram_for_every_sample_of_a_batch() -> None:
    module = network()

    def gram(sample: Tensor) -> Tensor:
        return torchjac.jac_operator(module)(sample).gram("inputs")

    got = torch.func.vmap(gram)(BATCH)
    J = torchjac.batched_jac(module)(BATCH)
    torch.testing.assert_close(got, J.mT @ J)


def test_a_gram_is_differentiable_by_the_input() -> None:
    x = BATCH[0].clone().requires_grad_()
    module = network()

    def size(J: Tensor) -> Tensor:
        return (J.T @ J).square().sum()

    torchjac.jac_operator(module)(x).gram("inputs").square().sum().backward()
    expected = torch.func.grad(lambda x: size(torch.func.jacrev(module)(x)))(BATCH[0])
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    ("rows", "weights", "pulled", "pushed"),
    [
        (6, None, 6, 0),
        (6, torch.ones(6), 6, 0),
        (6, torch.ones(3, 2, 2), 6, 0),
        (6, torch.eye(6), 6, 0),
        (40, None, 6, 6),
        (40, torch.eye(40), 6, 6),
    ],
    ids=["plain", "diagonal", "blocks", "matrix", "tall", "tall matrix"],
)
def test_passes(
    rows: int, weights: Any, pulled: int, pushed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"pull": 0, "push": 0}
    for name in counts:
        plain = getattr(Linearization, name)

        def counted(self: Any, matrix: Tensor, *, name: str = name, plain: Any = plain) -> Tensor:
            counts[name] += matrix.shape[1]
            return plain(self, matrix)

        monkeypatch.setattr(Linearization, name, counted)
    matrix = torch.linspace(-1, 1, 6 * rows).reshape(rows, 6)
    op = torchjac.jac_operator(lambda x: (matrix @ x).sin())(torch.ones(6))
    op.gram("inputs", weights)
    assert counts == {"pull": pulled, "push": pushed}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("c", [1, 2, 3, 4, 6, 12])
def test_blocks_that_fit_a_pass_and_blocks_that_do_not(
    size: int, c: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Linearization, "chunk_size", lambda self, columns: min(size, columns))
    matrix = torch.linspace(-1, 1, 12 * 8, dtype=torch.float64).reshape(12, 8)
    op = torchjac.jac_operator(lambda x: (matrix @ x).sin())(torch.ones(8).double())
    J = op.to_dense()
    blocks = torch.randn(12 // c, c, c, dtype=torch.float64)
    expected = J.T @ torch.block_diag(*blocks) @ J
    torch.testing.assert_close(op.gram("inputs", blocks), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_blocks_in_half_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to a sum of many blocks is not lost in it."""
    if dtype == torch.float16 and torch.__version__ < "2.1":
        pytest.skip("no products of float16 matrices on the CPU")
    monkeypatch.setattr(Linearization, "chunk_size", lambda self, columns: min(2, columns))
    matrix = torch.rand(1000, 600).to(dtype)
    op = torchjac.jac_operator(lambda x: matrix @ x)(torch.ones(600, dtype=dtype))
    got = op.gram("inputs")
    assert got.dtype == dtype
    expected = matrix.double().T @ matrix.double()
    torch.testing.assert_close(got.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("shape", [(6,), (6, 6), (2, 3, 3), (15,), (15, 15), (5, 3, 3)], ids=str)
def test_a_gram_is_differentiable_by_the_weights(shape: tuple[int, ...]) -> None:
    rows = shape[0] * shape[1] if len(shape) == 3 else shape[0]
    matrix = torch.linspace(-1, 1, 3 * rows, dtype=torch.float64).reshape(rows, 3)
    weights = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    op = torchjac.jac_operator(lambda x: (matrix @ x).sin())(torch.ones(3).double())
    assert torch.autograd.gradcheck(lambda weights: op.gram("inputs", weights), weights)


def test_weights_of_nothing() -> None:
    op = torchjac.jac_operator(lambda x: x[:0])(torch.ones(3))
    assert op.shape == (0, 3)
    for weights in (torch.ones(0), torch.ones(0, 0), torch.ones(0, 1, 1)):
        torch.testing.assert_close(op.gram("inputs", weights), torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(3), ArgumentError, r"\(3,\); expected a tensor \(6,\), \(6, 6\) or \(b, c, c\)"),
        (torch.ones(2, 3), ArgumentError, r"got shape \(2, 3\)"),
        (torch.ones(2, 2, 2), ArgumentError, r"with b·c = 6"),
        (torch.ones(2, 3, 2), ArgumentError, r"with b·c = 6"),
        (torch.ones(6).double(), ArgumentTypeError, r"got torch.float64 on cpu"),
        ([1.0] * 6, ArgumentTypeError, r"gram\(weights\): got a list"),
        (torch.eye(6).to_sparse(), ArgumentTypeError, r"got one of torch.sparse_coo"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(weights: Any, error: Any, message: str) -> None:
    op = torchjac.jac_operator(torch.sin)(torch.ones(6))
    with pytest.raises(error, match=message):
        op.gram("inputs", weights)
