"""out=: the derivative is written into memory of the caller's, and is the same as without."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import torchjac
from tests.trees import pairs
from torchjac.errors import (
    ArgumentError,
    ArgumentTypeError,
    DerivativeMismatchWarning,
    OptionError,
    OptionTypeError,
    PlanError,
    UnsupportedError,
)
from torchjac.foundations.pytree import flatten, map_tree
from torchjac.testing import strategies

X = torch.linspace(-1, 1, 6, dtype=torch.float64)
MATRIX = torch.linspace(-1, 2, 24, dtype=torch.float64).reshape(4, 6)
BAND = torch.eye(6).bool()[1:] | torch.eye(6).bool()[:-1]  # of torch.diff

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def func(x: Tensor) -> Tensor:
    return (MATRIX @ x.reshape(-1)).tanh().reshape(2, 2)


def spoiled(leaf: Any) -> Any:
    return None if leaf is None else torch.full_like(leaf, torch.nan)


def assert_written(transform: Any, args: Any, **options: Any) -> None:
    expected = transform(**options)(*args)
    out = map_tree(spoiled, expected)
    got = transform(**options, out=out)(*args)
    for one, other in zip(flatten(got)[0], flatten(out)[0], strict=True):
        assert one is other
    for one, other in pairs(out, expected):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9, equal_nan=True)
        assert not one.requires_grad


@given(
    strategies.programs_with_arguments(other_outputs=True),
    st.sampled_from(["auto", "forward", "reverse"]),
    st.sampled_from(["auto", None, 1, 2, 3]),
)
def test_a_jacobian_is_the_same_as_without(case: Any, mode: str, chunk_size: Any) -> None:
    program, args = case
    outputs, _ = flatten(program(*args))
    assume(any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in outputs))

    def transform(**options: Any) -> Any:
        return torchjac.jac(program, tuple(range(len(args))), **options)

    assert_written(transform, args, mode=mode, chunk_size=chunk_size)


@pytest.mark.parametrize("mode", ["forward-over-reverse", "reverse-over-reverse"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_a_hessian_is_the_same_as_without(mode: str, chunk_size: Any) -> None:
    def scalars(tree: dict[str, Tensor]) -> dict[str, Any]:
        a, b = tree["a"], tree["b"]
        return {"s": (a.sin() @ a) * b.prod(), "none": None, "v": a * b[0, 0]}

    args = ({"a": X, "b": X[:2].reshape(1, 2)},)

    def transform(**options: Any) -> Any:
        return torchjac.hessian(scalars, **options)

    assert_written(transform, args, mode=mode, chunk_size=chunk_size)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("per_sample", [True, False])
def test_a_batch_is_the_same_as_without(mode: str, chunk_size: Any, per_sample: bool) -> None:
    def samples(x: Tensor) -> Tensor:
        return x.tanh() @ MATRIX[:, :3].T

    def transform(**options: Any) -> Any:
        return torchjac.batched_jac(samples, per_sample=per_sample, **options)

    batch = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 2, 3)
    assert_written(transform, (batch,), mode=mode, chunk_size=chunk_size)


def test_a_compressed_jacobian_is_the_same_as_without() -> None:
    def transform(**options: Any) -> Any:
        return torchjac.jac(lambda x: torch.diff(x) ** 2, sparsity=BAND, **options)

    assert_written(transform, (X,))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_any_strides_will_do(order: tuple[int, ...], mode: str) -> None:
    shape = torch.Size((2, 2, 6))
    sizes = [shape[dim] for dim in order]
    inverse = [order.index(dim) for dim in range(3)]
    out = torch.full(sizes, torch.nan, dtype=torch.float64).permute(inverse)
    assert out.shape == shape
    assert torchjac.jac(func, mode=mode, chunk_size=2, out=out)(X) is out
    torch.testing.assert_close(out, torchjac.jac(func)(X))


def test_chunks_go_straight_into_contiguous_memory() -> None:
    """A chunk is there before the next one is made: no second Jacobian is held."""
    out = torch.full((64, 64), torch.nan, dtype=torch.float64)
    filled = []

    class Watched(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            filled.append(int(out.isfinite().all(1).sum()))
            return cotangent * 2

    x = torch.ones(64, dtype=torch.float64)
    options: dict[str, Any] = {"mode": "reverse", "chunk_size": 16, "check": "never"}
    torchjac.jac(lambda x: Watched.apply(x), out=out, **options)(x)
    assert filled == [0, 16, 32, 48]
    torch.testing.assert_close(out, 2 * torch.eye(64, dtype=torch.float64))


def test_memory_mapped_arrays(tmp_path: Any) -> None:
    path = tmp_path / "jacobian.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float64, (2, 2, 6))
    torchjac.jac(func, out=torch.from_numpy(array))(X)
    array.flush()
    torch.testing.assert_close(torch.from_numpy(np.load(path)), torchjac.jac(func)(X))


def test_slices_of_one_tensor() -> None:
    whole = torch.zeros(3, 2, 2, 6, dtype=torch.float64)
    torchjac.jac(func, out=whole[1])(X)
    torch.testing.assert_close(whole[1], torchjac.jac(func)(X))
    assert not whole[0].any()
    assert not whole[2].any()


def test_values_and_aux_are_handed_out_beside_it() -> None:
    out = torch.empty(2, 2, 6, dtype=torch.float64)
    transform = torchjac.jac(lambda x: (func(x), x + 1), has_aux=True, return_value=True, out=out)
    value, jacobian, aux = transform(X)
    assert jacobian is out
    torch.testing.assert_close((value, aux), (func(X), X + 1))


def test_inputs_and_parameters_that_require_grad_are_no_matter() -> None:
    module = torch.nn.Linear(3, 2)
    expected = {
        name: leaf.detach() for name, leaf in torchjac.jac(module, "params")(X[:3].float()).items()
    }
    out = map_tree(spoiled, expected)
    torchjac.jac(module, "params", out=out)(X[:3].float())
    for one, other in pairs(out, expected):
        torch.testing.assert_close(one, other)
        assert not one.requires_grad


def test_a_wrong_answer_is_not_left_there() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return cotangent * 2

        @staticmethod
        def vmap(info: Any, dims: Any, x: Tensor) -> Any:
            return x * 3, dims[0]

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return tangent * 5

    out = torch.empty(6, 6, dtype=torch.float64)
    transform = torchjac.jac(lambda x: Wrong.apply(x), mode="forward", out=out)
    with pytest.warns(DerivativeMismatchWarning, match="made again"):
        transform(X)
    torch.testing.assert_close(out, 2 * torch.eye(6, dtype=torch.float64))


TREE = {"a": X[:2], "b": X[:3]}


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (torch.empty(2, 2, 6), ArgumentTypeError, r"\(2, 2, 6\) of torch.float64 on cpu, got torch.float32"),
        (torch.empty(4, 6).double(), ArgumentError, r"expected a tensor \(2, 2, 6\) .*, got shape \(4, 6\)"),
        ([torch.empty(2, 2, 6).double()], ArgumentError, r"expected the tree of the result, \*; got"),
        (np.empty((2, 2, 6)), ArgumentTypeError, "got a ndarray"),
        (torch.empty(2, 2, 6).double().requires_grad_(), ArgumentError, r"requires grad.*out.detach\(\)"),
        (torch.empty(1, 1, 1).double().expand(2, 2, 6), ArgumentError, r"Pass out.contiguous\(\)"),
        (torch.empty(27).double().unfold(0, 6, 1)[:4].view(2, 2, 6), ArgumentError, "share memory"),
        (torch.zeros(2, 2, 6).double().to_sparse(), ArgumentTypeError, "got one of torch.sparse_coo"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(
    out: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        torchjac.jac(func, out=out)(X)


def test_a_later_leaf_that_does_not_fit_leaves_the_first_alone() -> None:
    out = {"a": torch.zeros(5, 2).double(), "b": torch.zeros(5, 2).double()}
    with pytest.raises(ArgumentError, match="got shape"):
        torchjac.jac(lambda t: torch.cat([t["a"], t["b"]]), out=out)(TREE)
    assert not out["a"].any()


def test_memory_of_an_input_is_refused() -> None:
    x = torch.ones(4, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="shares its memory with an input"):
        torchjac.jac(torch.sum, out=x)(x)
    # In forward mode a second chunk would read what the first has written.
    factors = torch.ones(4, 4, dtype=torch.float64)
    for args, kwargs in (((x, factors), {}), ((x,), {"factors": factors})):
        with pytest.raises(ArgumentError, match="shares its memory with an input"):
            torchjac.jac(lambda x, factors: factors @ x, out=factors)(*args, **kwargs)
    assert x.eq(1).all()
    assert factors.eq(1).all()


def test_memory_of_a_captured_tensor_is_refused() -> None:
    x = torch.ones(4, dtype=torch.float64)
    matrix, net = torch.ones(4, 4, dtype=torch.float64), torch.nn.Linear(4, 4).double()
    before = net.weight.detach().clone()
    message = "shares its memory with one that func captures"
    with pytest.raises(ArgumentError, match=message):
        torchjac.jac(lambda x: (matrix @ x).tanh(), out=matrix)(x)
    with pytest.raises(ArgumentError, match=message):
        torchjac.hessian(lambda x: (matrix @ x).tanh().sum(), out=matrix.T)(x)
    for func in (net, lambda x: net(x), net.forward):
        with pytest.raises(ArgumentError, match=message):
            torchjac.jac(func, out=net.weight.data)(x)
    assert matrix.eq(1).all()
    assert net.weight.eq(before).all()


def test_memory_that_an_object_holds_for_its_results() -> None:
    class Solver:
        def __init__(self) -> None:
            self.matrix = torch.zeros(3, 3, dtype=torch.float64)

        def residuals(self, x: Tensor) -> Tensor:
            return x**2

        def linearize(self, x: Tensor) -> Tensor:
            return torchjac.jac(self.residuals, out=self.matrix)(x)

    solver = Solver()
    assert solver.linearize(torch.ones(3, dtype=torch.float64)) is solver.matrix
    torch.testing.assert_close(solver.matrix, 2 * torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("n", [1, 4])
def test_a_side_of_one_has_any_stride(mode: Any, n: int) -> None:
    x = torch.linspace(1, 2, n, dtype=torch.float64)
    tall = torch.zeros(n, 1, dtype=torch.float64)
    torchjac.jac(lambda x: x.square().sum()[None], mode=mode, out=tall.T)(x)
    torch.testing.assert_close(tall[:, 0], 2 * x)
    cube = torch.zeros(n, n, 1, dtype=torch.float64)
    torchjac.batched_jac(lambda x: x**2, mode=mode, out=cube.permute(2, 1, 0))(x[None])
    torch.testing.assert_close(cube[:, :, 0], (2 * x).diag())


def test_memory_beside_that_of_an_input() -> None:
    buffer = torch.ones(42, dtype=torch.float64)
    x, out = buffer[:6], buffer[6:].view(6, 6)
    torchjac.jac(torch.sin, out=out)(x)
    torch.testing.assert_close(out, torch.ones_like(x).cos().diag())


def test_leaves_that_share_memory_are_refused() -> None:
    def two(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.cos()

    whole = torch.zeros(8, 6, dtype=torch.float64)
    for out in ((whole[:6], whole[:6]), (whole[:6], whole[2:])):
        with pytest.raises(ArgumentError, match="two tensors share memory"):
            torchjac.jac(two, out=out)(X)
    assert not whole.any()


def test_leaves_that_are_columns_of_one_matrix() -> None:
    whole = torch.empty(4, 8, dtype=torch.float64)
    args = (X, X[:2])

    def product(x: Tensor, y: Tensor) -> Tensor:
        return (MATRIX @ x).sin() * y.prod()

    torchjac.jac(product, (0, 1), out=(whole[:, :6], whole[:, 6:]))(*args)
    expected = torchjac.jac(product, (0, 1))(*args)
    torch.testing.assert_close(whole, torch.cat(expected, 1))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_tensors_of_inference_mode(chunk_size: Any) -> None:
    with torch.inference_mode():
        out = torch.empty(2, 2, 6, dtype=torch.float64)
        torchjac.jac(func, chunk_size=chunk_size, out=out)(X)
    torch.testing.assert_close(out.clone(), torchjac.jac(func)(X))
    sparse = torch.inference_mode()(lambda: torch.empty(5, 6, dtype=torch.float64))()
    torchjac.jac(torch.diff, sparsity=BAND, out=sparse)(X)
    torch.testing.assert_close(sparse.clone(), torchjac.jac(torch.diff)(X))


def test_what_does_not_fit_is_said_after_a_refusal_too() -> None:
    class Looks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return cotangent * (2 if cotangent.sum().item() < 9 else 3)  # no vmap gets by that

    with pytest.raises(ArgumentError, match="got shape"):
        torchjac.jac(lambda x: Looks.apply(x), mode="reverse", out=torch.empty(6, 5).double())(X)


def test_derivatives_do_not_end_there_unseen() -> None:
    """As for the functions of PyTorch that take out=."""
    out = torch.empty(2, 2, 6, dtype=torch.float64)
    transform = torchjac.jac(func, out=out)
    with pytest.raises(UnsupportedError, match=r"derivatives would end here. Pass x.detach\(\)"):
        transform(X.clone().requires_grad_() * 1)
    with pytest.raises(UnsupportedError, match="derivatives would end here"):
        torchjac.jac(transform, mode="reverse")(X)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, X)
        with pytest.raises(UnsupportedError, match="a dual number"):
            transform(dual)
    with torch.no_grad():
        transform(X.clone().requires_grad_() * 1)


def test_where_it_cannot_be() -> None:
    out = torch.empty(6, 6, dtype=torch.float64)
    with pytest.raises(OptionError, match="only dense results"):
        torchjac.jac(torch.sin, sparsity="detect", layout=torch.sparse_coo, out=out)
    with pytest.raises(PlanError, match=r"jac\(out=...\).plan: a plan returns results of its own"):
        torchjac.jac(torch.sin, out=out).plan(X)
    with pytest.raises(UnsupportedError, match="Leave out away there"):
        torch.func.vmap(torchjac.jac(torch.sin, out=out))(X.expand(2, 6))
    with pytest.raises(OptionTypeError, match="progress='yes'"):
        torchjac.jac(torch.sin, progress="yes")
