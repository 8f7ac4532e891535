"""`jac_operator` and `hessian_operator`: whatever they do equals what the dense matrix does."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import torchjac
from tests.cases import CASES, Case
from tests.trees import pairs
from torchjac.errors import (
    ArgumentError,
    ArgumentTypeError,
    OptionError,
    OptionTypeError,
    OutputTypeError,
)
from torchjac.foundations.pytree import flatten, map_tree
from torchjac.testing import strategies

# Some operators have no second backward or batching rule in some versions; that is said, and no concern here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]
CLOSE = {torch.float64: (1e-8, 1e-9), torch.float32: (2e-3, 1e-4)}
DTYPES = st.sampled_from([torch.float64, torch.float32])


def assert_same(got: Any, expected: Any) -> None:
    for one, other in pairs(got, expected):
        rtol, atol = CLOSE.get(other.dtype, (0, 0))
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol * max(1, scale_of(other)))


def scale_of(tensor: Tensor) -> float:
    return float(tensor.double().abs().max()) if tensor.numel() else 0.0


def flat(jacobian: Any, output: Any, inputs: Any) -> Tensor:
    """The matrix (m, n) of the leaves of a Jacobian."""
    sizes = [leaf.numel() for leaf in flatten(inputs)[0]]
    outputs = [
        leaf.numel()
        for leaf in flatten(output)[0]
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    leaves = iter([leaf for leaf in flatten(jacobian)[0] if leaf is not None])
    # (*out, *in) -> (m_o, n_i)
    return torch.cat([torch.cat([next(leaves).reshape(m, n) for n in sizes], 1) for m in outputs])


def vector(tree: Any) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in flatten(tree)[0] if leaf is not None])


def chosen(argnums: Any, args: tuple[Any, ...]) -> Any:
    return tuple(args[k] for k in argnums) if isinstance(argnums, tuple) else args[argnums]


def like(tree: Any) -> Any:
    """A tree of random tensors where that one has floating-point tensors, else of None."""
    return map_tree(
        lambda leaf: (
            torch.randn_like(leaf)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
            else None
        ),
        tree,
    )


@given(st.data(), DTYPES)
def test_products_are_those_of_the_dense_jacobian(data: st.DataObject, dtype: torch.dtype) -> None:
    program, args = data.draw(strategies.programs_with_arguments(dtype=dtype, other_outputs=True))
    argnums = data.draw(strategies.argnums(program))
    output, inputs = program(*args), chosen(argnums, args)
    dense = torchjac.jac(program, argnums, mode="reverse", chunk_size=1, check="never")(*args)
    J = flat(dense, output, inputs)
    assume(J.isfinite().all())
    op = torchjac.jac_operator(program, argnums)(*args)
    assert op.T.T is op
    assert (op.shape, op.dtype, op.device) == (J.shape, dtype, J.device)
    assert_same(op.value, output)

    (m, n), k = J.shape, data.draw(st.integers(0, 3))
    V, U = torch.randn(n, k, dtype=dtype), torch.randn(m, k, dtype=dtype)
    v, u = like(inputs), like(output)
    assert_same(op @ V, J @ V)
    assert_same(op.T @ U, J.T @ U)
    assert_same(op @ vector(v), J @ vector(v))
    assert_same(op.T @ vector(u), J.T @ vector(u))
    assert_same(op.to_dense(), J)
    assert_same(op.T.to_dense(), J.T)
    pushed, pulled = op.matvec(v), op.T.matvec(u)
    assert flatten(pushed)[1] == flatten(output)[1]
    assert flatten(pulled)[1] == flatten(inputs)[1]
    assert_same(vector(pushed), J @ vector(v))
    assert_same(vector(pulled), J.T @ vector(u))


@given(st.data(), DTYPES)
def test_gram_matrices(data: st.DataObject, dtype: torch.dtype) -> None:
    program, args = data.draw(strategies.programs_with_arguments(dtype=dtype, smooth=True))
    op = torchjac.jac_operator(program)(*args)
    J = op.to_dense()
    assume(J.isfinite().all())
    m, n = J.shape
    rows, columns = torch.rand(m, dtype=dtype), torch.rand(n, dtype=dtype)
    assert_same(op.gram("inputs"), J.T @ J)
    assert_same(op.gram("outputs"), J @ J.T)
    assert_same(op.gram("inputs", rows), J.T @ (rows[:, None] * J))
    assert_same(op.gram("outputs", weights=columns), (J * columns) @ J.T)
    whole = torch.randn(m, m, dtype=dtype)
    assert_same(op.gram("inputs", whole), J.T @ whole @ J)
    for size in (c for c in range(1, m + 1) if m % c == 0):
        blocks = torch.randn(m // size, size, size, dtype=dtype)
        assert_same(op.gram("inputs", blocks), J.T @ torch.block_diag(*blocks) @ J)


@given(st.data(), DTYPES)
def test_products_are_those_of_the_dense_hessian(data: st.DataObject, dtype: torch.dtype) -> None:
    program, args = data.draw(strategies.programs_with_arguments(scalar=True, dtype=dtype))
    argnums = data.draw(strategies.argnums(program))
    inputs = chosen(argnums, args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense = torchjac.hessian(program, argnums, mode="reverse-over-reverse", chunk_size=1)(*args)
    H = flat(dense, inputs, inputs)
    assume(H.isfinite().all())
    op = torchjac.hessian_operator(program, argnums)(*args)
    assert op.T is op
    assert_same(op.value, program(*args))
    V, v = torch.randn(len(H), 3, dtype=dtype), like(inputs)
    assert_same(op @ V, H @ V)
    assert_same(vector(op.matvec(v)), H @ vector(v))
    assert flatten(op.matvec(v))[1] == flatten(inputs)[1]
    assert_same(op.to_dense(), H)
    assert_same(op.diagonal(), H.diagonal())
    assert_same(op.trace(), H.trace())
    assert_same(op.gram("inputs"), H @ H)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_closed_forms(case: Case) -> None:
    output, inputs = case.func(*case.args), chosen(case.argnums, case.args)
    J = flat(case.jacobian, output, inputs)
    op = torchjac.jac_operator(case.func, case.argnums)(*case.args)
    assert_same(op.to_dense(), J)
    v = like(inputs)
    assert_same(vector(op.matvec(v)), J @ vector(v))
    if case.hessian is not None:
        op = torchjac.hessian_operator(case.func, case.argnums)(*case.args)
        gradient = torchjac.jac(case.func, case.argnums)(*case.args)
        assert_same(op.to_dense(), flat(case.hessian, gradient, inputs))


def test_a_hessian_of_several_outputs_stacks_as_hessian_does() -> None:
    def func(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"a": x.prod() * y, "b": (x**3).sum()}

    x, y = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    op = torchjac.hessian_operator(func, (0, 1))(x, y)
    dense = torchjac.hessian(func, (0, 1))(x, y)
    assert op.shape == (3 * 5, 5)
    v = (torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64))
    got = op.matvec(v)
    for name in ("a", "b"):
        for i in (0, 1):
            rows = dense[name][i]
            assert_same(got[name][i], sum(torch.tensordot(rows[j], v[j], 1) for j in (0, 1)))
    assert_same(op.T @ (op @ vector(v)), op.gram("inputs") @ vector(v))


def test_parameters_of_a_module() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    module[0].bias.requires_grad_(False)
    x = torch.randn(5, 3, dtype=torch.float64)
    v = {name: torch.randn_like(p) for name, p in module.named_parameters() if p.requires_grad}
    with torch.no_grad():
        op = torchjac.jac_operator(module, "params")(x)
        J = flat(torchjac.jac(module, "params")(x), module(x), v)
    assert_same(vector(op.matvec(v)), J @ vector(v))
    assert list(op.T.matvec(module(x).detach())) == list(v)
    assert op.shape == (10, 12 + 8 + 2)
    for p in module.parameters():
        assert p.grad is None
    assert not (op @ vector(v)).requires_grad


def test_keyword_arguments_and_what_has_no_derivative() -> None:
    def func(x: Tensor, *, scale: float) -> tuple[Any, ...]:
        return x * scale, None, (x > 0)

    x = torch.tensor([1.0, -2.0])
    op = torchjac.jac_operator(func)(x, scale=3.0)
    assert_same(op.to_dense(), 3 * torch.eye(2))
    pushed, none, mask = op.matvec(x)
    assert none is None
    assert mask is None
    assert_same(pushed, 3 * x)
    assert_same(op.T.matvec((x, None, None)), 3 * x)
    assert op.value[2].tolist() == [True, False]


def test_leaves_of_several_dtypes() -> None:
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0], dtype=torch.float64)
    op = torchjac.jac_operator(lambda x, y: x * y, (0, 1))(x, y)
    assert op.dtype == torch.float64
    assert_same(op.to_dense(), torch.tensor([[3.0, 0.0, 1.0], [0.0, 3.0, 2.0]]).double())
    pulled = op.T.matvec(torch.ones(2, dtype=torch.float64))
    assert [leaf.dtype for leaf in pulled] == [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = torch.tensor([0.5, 1.0, 2.0], dtype=dtype)
    op = torchjac.jac_operator(lambda x: x**3)(x)
    torch.testing.assert_close(op @ x, 3 * x**3)
    torch.testing.assert_close(op @ torch.eye(3).to(dtype), torch.diag(3 * x**2))
    torch.testing.assert_close(op.T @ torch.eye(3).to(dtype), torch.diag(3 * x**2))


def test_what_comes_out_is_the_callers_own() -> None:
    v = torch.ones(3)
    for op in (torchjac.jac_operator(lambda x: x), torchjac.jac_operator(lambda x: x.sum())):
        made = op(torch.ones(3))
        product = made @ v
        product += 1
        assert v.tolist() == [1, 1, 1]
    op = torchjac.jac_operator(torch.exp)(torch.zeros(3))
    op.value.zero_()  # the graph has saved the value itself
    assert_same(op @ v, v)


def test_a_dropout_mask_is_one_for_all_products() -> None:
    x, eye = torch.ones(40, dtype=torch.float64), torch.eye(40, dtype=torch.float64)
    op = torchjac.jac_operator(lambda x: nn.functional.dropout(x, 0.5, True))(x)
    mask = op.value
    for product in (op @ x, op @ x, op.T @ x, (op @ eye).diagonal(), op.diagonal()):
        assert_same(product, mask)
    op = torchjac.hessian_operator(lambda x: nn.functional.dropout(x, 0.5, True).pow(3).sum())(x)
    assert_same(op @ x, op.diagonal())
    assert op.trace() == 6 * op.value


def test_the_text() -> None:
    op = torchjac.jac_operator(torch.diff)(torch.randn(4))
    assert repr(op) == "LinearOperator(3×4, torch.float32, cpu)"
    assert repr(op.T) == "LinearOperator(4×3, torch.float32, cpu)"
    hessian = torchjac.hessian_operator(lambda x: x.sum())(torch.randn(4))
    assert repr(hessian) == "LinearOperator(4×4, torch.float32, cpu, symmetric)"


VECTOR = r"jac_operator: operator @ v: got {}; expected a tensor \(4,\) or \(4, k\) of torch.float32 on cpu"


@pytest.mark.parametrize(
    ("v", "kind", "message"),
    [
        (torch.ones(3), ArgumentError, VECTOR.format(r"shape \(3,\)")),
        (torch.ones(1, 4), ArgumentError, VECTOR.format(r"shape \(1, 4\)")),
        (torch.ones(()), ArgumentError, VECTOR.format(r"shape \(\)")),
        (torch.ones(4).double(), ArgumentTypeError, VECTOR.format("torch.float64 on cpu")),
        (torch.ones(4).long(), ArgumentTypeError, VECTOR.format("torch.int64 on cpu")),
        (np.ones(4), ArgumentTypeError, VECTOR.format("a ndarray")),
        ([1.0, 2.0], ArgumentTypeError, VECTOR.format("a list")),
        (torch.eye(4).to_sparse(), ArgumentTypeError, VECTOR.format("a sparse or nested tensor")),
    ],
)
def test_a_vector_that_does_not_fit(v: Any, kind: type[Exception], message: str) -> None:
    op = torchjac.jac_operator(torch.diff)(torch.randn(4))
    with pytest.raises(kind, match=message):
        op @ v


def test_products_from_the_left() -> None:
    x = torch.randn(4, dtype=torch.float64)
    op = torchjac.jac_operator(lambda x: x.diff() * x.sum())(x)
    J = op.to_dense()
    u, U = torch.randn(3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    assert_same(u @ op, u @ J)
    assert_same(U @ op, U @ J)
    assert_same(x @ op.T, J @ x)
    assert_same(torch.func.vmap(lambda u: u @ op)(U), U @ J)
    hessian = torchjac.hessian_operator(lambda x: x.prod())(x)
    assert_same(x @ hessian, hessian @ x)


@pytest.mark.parametrize(
    ("u", "kind", "got"),
    [
        (torch.ones(4), ArgumentError, r"shape \(4,\)"),
        (torch.ones(3, 1), ArgumentError, r"shape \(3, 1\)"),
        (torch.ones(()), ArgumentError, r"shape \(\)"),
        (torch.ones(3).double(), ArgumentTypeError, "torch.float64 on cpu"),
        ([1.0, 2.0], ArgumentTypeError, "a list"),
    ],
)
def test_a_vector_that_does_not_fit_from_the_left(u: Any, kind: type[Exception], got: str) -> None:
    op = torchjac.jac_operator(torch.diff)(torch.randn(4))
    message = rf"jac_operator: u @ operator: got {got}; expected a tensor \(3,\) or \(k, 3\)"
    with pytest.raises(kind, match=message):
        u @ op


def test_operators_have_one_name() -> None:
    op = torchjac.jac_operator(torch.diff)(torch.randn(4))
    for operator in (op, op.T, torchjac.hessian_operator(torch.sum)(torch.randn(4))):
        with pytest.raises(TypeError, match="'LinearOperator'"):
            2 * operator  # type: ignore[operator]


def test_the_transpose_says_that_it_is_one() -> None:
    op = torchjac.jac_operator(torch.diff)(torch.randn(4))
    with pytest.raises(ArgumentError, match=r"jac_operator\.T: .* the operator being 4×3"):
        op.T @ torch.ones(4)


def test_a_tree_that_does_not_fit() -> None:
    op = torchjac.jac_operator(lambda t: t["a"].sum())({"a": torch.ones(2)})
    with pytest.raises(ArgumentError, match=r"matvec: expected a tree .*'a'.*, got"):
        op.matvec({"b": torch.ones(2)})
    with pytest.raises(ArgumentError, match=r"leaf 0 has shape \(3,\); expected .* \(2,\)"):
        op.matvec({"a": torch.ones(3)})
    with pytest.raises(ArgumentTypeError, match=r"leaf 0 is torch\.float64"):
        op.matvec({"a": torch.ones(2).double()})
    with pytest.raises(ArgumentTypeError, match="leaf 0 is a float"):
        op.matvec({"a": 1.0})


def test_what_a_matrix_must_be() -> None:
    op = torchjac.jac_operator(torch.diff)(torch.randn(4))
    for method in (op.diagonal, op.trace):
        with pytest.raises(ArgumentError, match=r"\(\) is of a square matrix; this one is 3×4"):
            method()
    with pytest.raises(OptionError, match="expected 'inputs' or 'outputs'"):
        op.gram("rows")
    with pytest.raises(ArgumentError, match=r"gram\(weights\): got shape \(4,\); .* \(3,\)"):
        op.gram("inputs", torch.ones(4))
    with pytest.raises(ArgumentTypeError, match=r"gram\(weights\): got a list"):
        op.gram("inputs", [1.0])
    with pytest.raises(ArgumentTypeError, match=r"gram\(weights\): got torch\.float64"):
        op.gram("inputs", torch.ones(3).double())


@pytest.mark.parametrize("transform", [torchjac.jac_operator, torchjac.hessian_operator])
def test_bad_use_is_refused_as_by_jac(transform: Any) -> None:
    with pytest.raises(
        OptionTypeError, match=rf"{transform.__name__}\(func\): expected a callable"
    ):
        transform(3)
    with pytest.raises(OptionTypeError, match=r"func must be an nn\.Module"):
        transform(torch.sin, "params")
    with pytest.raises(ArgumentError, match="there is no argument 1"):
        transform(torch.sin, 1)(torch.ones(2))
    with pytest.raises(ArgumentTypeError, match="integer"):
        transform(torch.sin)(torch.ones(2).long())
    with pytest.raises(OutputTypeError, match="a str in its output"):
        transform(lambda x: "x")(torch.ones(2))
    with pytest.raises(ZeroDivisionError):
        transform(lambda x: x / (1 // 0))(torch.ones(2))
