"""`sparsity="detect"`: the pattern is found, is never too small, and is found again when it has changed."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import torchjac
from tests.sparse import DETECTS, arrow, point, rosenbrock, tridiagonal
from torchjac import SparsityPattern
from torchjac.errors import StructureError, TorchjacFallbackWarning
from torchjac.foundations.pytree import flatten
from torchjac.testing import strategies
from torchjac.testing.programs import Program

pytestmark = pytest.mark.skipif(not DETECTS, reason="needs torch 2.1")

Case = tuple[Program, tuple[Any, ...]]
LAYOUTS = st.sampled_from([torch.strided, torch.sparse_coo])
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
EQUAL = {"rtol": 1e-7, "atol": 1e-9, "equal_nan": True}


@pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@given(strategies.programs_with_arguments(other_outputs=True), LAYOUTS)
def test_detected_equals_dense(case: Case, layout: torch.layout) -> None:
    program, args = case
    argnums = tuple(range(len(args)))
    outputs, _ = flatten(program(*args))
    assume(any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in outputs))
    expected, expected_spec = flatten(torchjac.jac(program, argnums)(*args))
    sparse = torchjac.jac(program, argnums, sparsity="detect", layout=layout)
    got, spec = flatten(sparse(*args))
    assert spec == expected_spec
    for one, other in zip(got, expected, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.layout is layout
        torch.testing.assert_close(one.to_dense(), other, **EQUAL)


@pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning")
@given(st.data(), strategies.scalar_programs(smooth=True))
def test_detected_hessian_equals_dense(data: st.DataObject, program: Program) -> None:
    args = data.draw(strategies.arguments(program))
    argnums = tuple(range(len(args)))
    expected, _ = flatten(torchjac.hessian(program, argnums)(*args))
    got, _ = flatten(torchjac.hessian(program, argnums, sparsity="detect")(*args))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **EQUAL)


def test_the_hessian_of_several_outputs() -> None:
    def func(x: Tensor) -> Tensor:
        return torch.stack([rosenbrock(x), (x**3).sum()])

    x = point(5)
    got = torchjac.hessian(func, sparsity="detect")(x)
    torch.testing.assert_close(got, torch.func.hessian(func)(x), **CLOSE)


def test_trees_are_blocks_of_one_pattern() -> None:
    def func(p: dict[str, Tensor], scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        a, b = p["a"], p["b"]
        return a.sin() * scale, {"sum": (b[0] * a).cumsum(0), "none": b.square()}

    args = ({"a": point(4), "b": point(6).reshape(2, 3)[:, :1]}, torch.tensor(2.0).double())
    for argnums in (0, (0, 1), (1,)):
        expected, expected_spec = flatten(torchjac.jac(func, argnums)(*args))
        for layout in (torch.strided, torch.sparse_coo):
            sparse = torchjac.jac(func, argnums, sparsity="detect", layout=layout)
            got, spec = flatten(sparse(*args))
            assert spec == expected_spec
            for one, other in zip(got, expected, strict=True):
                assert one.shape == other.shape
                torch.testing.assert_close(one.to_dense(), other, **CLOSE)


def test_a_hessian_over_a_tree_is_read_across_the_diagonal() -> None:
    def func(p: tuple[Tensor, Tensor]) -> Tensor:
        head, tail = p
        return (head * tail.square()).sum() + head.sum() ** 3 + tail.sin().sum()

    x = (point(1), point(7))
    expected, _ = flatten(torchjac.hessian(func)(x))
    got, _ = flatten(torchjac.hessian(func, sparsity="detect")(x))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_rows_and_columns_together() -> None:
    x = point(12)
    got = torchjac.jac(arrow, sparsity="detect", layout=torch.sparse_csr)(x)
    torch.testing.assert_close(got.to_dense(), torchjac.jac(arrow)(x), **CLOSE)


def test_value_and_aux_come_along() -> None:
    def func(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return arrow(x), {"double": 2 * x}

    x = point(6)
    options = {"has_aux": True, "return_value": True, "sparsity": "detect"}
    value, jacobian, aux = torchjac.jac(func, **options)(x)
    torch.testing.assert_close(value, arrow(x))
    torch.testing.assert_close(jacobian, torchjac.jac(arrow)(x), **CLOSE)
    torch.testing.assert_close(aux["double"], 2 * x)


def test_a_jacobian_without_entries() -> None:
    x = point(3)
    for func in (torch.sign, lambda x: torch.ones(2).double() + 0 * x.sum().detach()):
        for layout in (torch.strided, torch.sparse_coo, torch.sparse_csr):
            got = torchjac.jac(func, sparsity="detect", layout=layout)(x)
            assert got.to_dense().count_nonzero() == 0
            assert got.shape == torchjac.jac(func)(x).shape


@pytest.mark.parametrize("func", [lambda x: x.sin(), lambda x: x.sum() * x[:0]])
def test_empty_inputs_and_outputs(func: Any) -> None:
    x = torch.ones(0, dtype=torch.float64)
    got = torchjac.jac(func, sparsity="detect")(x)
    torch.testing.assert_close(got, torchjac.jac(func)(x))


def test_a_module_by_its_parameters() -> None:
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(point(5))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight.exp() * x

    module, x = Scale(), point(5)
    expected = torchjac.jac(module, argnums="params")(x)["weight"]
    sparse = torchjac.jac(module, argnums="params", sparsity="detect", layout=torch.sparse_coo)
    got = sparse(x)["weight"]
    assert got._nnz() == 5
    torch.testing.assert_close(got.to_dense(), expected)


def test_a_straight_through_estimator_is_diagonal() -> None:
    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.round()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    pattern = torchjac.jac_sparsity(lambda x: Round.apply(x) * 3)(point(5))
    assert pattern == SparsityPattern.from_dense(torch.eye(5, dtype=torch.bool))


def shifted(shift: int) -> Any:
    return lambda x: x.roll(shift) * x


def test_numbers_in_a_closure_are_told_apart() -> None:
    x = point(7)
    for shift in (1, 2, 3):
        got = torchjac.jac(shifted(shift), sparsity="detect")(x)
        torch.testing.assert_close(got, torchjac.jac(shifted(shift))(x), **CLOSE)
    for shift in (1, 2, 3):
        got = torchjac.jac(lambda x, k: x.roll(k) * x, sparsity="detect")(x, shift)
        torch.testing.assert_close(got, torchjac.jac(shifted(shift))(x), **CLOSE)


def test_a_captured_tensor_that_is_changed_in_place_is_noticed() -> None:
    mask, x = torch.eye(4, dtype=torch.float64), point(4)
    sparse = torchjac.jac(lambda x: mask @ x.sin(), sparsity="detect", layout=torch.sparse_coo)
    assert sparse(x)._nnz() == 4
    mask[0, 3] = 2.0
    assert sparse(x)._nnz() == 5
    torch.testing.assert_close(sparse(x).to_dense(), mask * x.cos())


def test_the_values_of_other_arguments_are_not_believed() -> None:
    def func(x: Tensor, weight: Tensor, at: Tensor) -> Tensor:
        return (weight @ x)[at]

    x, at = point(3), torch.tensor([0, 1, 2])
    sparse = torchjac.jac(func, sparsity="detect")
    for weight in (torch.eye(3).double(), torch.ones(3, 3).double()):
        torch.testing.assert_close(sparse(x, weight, at), weight)
        torch.testing.assert_close(sparse(x, weight, at.flip(0)), weight.flip(0))


def test_a_parameter_with_zeros_is_dense() -> None:
    linear = torch.nn.Linear(3, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3))
    assert torchjac.jac_sparsity(linear)(point(3)).nnz == 9


def test_it_is_detected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    from torchjac.structure import detection

    detect = detection.linear_pattern
    monkeypatch.setattr(
        detection, "linear_pattern", lambda *args: (calls.append(1), detect(*args))[1]
    )
    for _ in range(3):
        torchjac.jac(tridiagonal, sparsity="detect")(point(6))
    assert len(calls) == 1
    torchjac.jac(tridiagonal, sparsity="detect")(point(7))
    assert len(calls) == 2


def test_an_op_without_a_forward_rule_takes_rows() -> None:
    def func(x: Tensor) -> Tensor:
        return torch.cdist(x.reshape(-1, 1, 2), corners).reshape(-1)

    x, corners = point(8), torch.randn(1, 5, 2, dtype=torch.float64)
    with pytest.warns(TorchjacFallbackWarning, match="forward AD"):
        got = torchjac.jac(func, sparsity="detect", chunk_size=1)(x)
    torch.testing.assert_close(got, torchjac.jac(func, mode="reverse", chunk_size=1)(x))


def test_rows_are_taken_where_they_are_fewer() -> None:
    jacobian = torchjac.jac(lambda x: x.reshape(-1, 4).sum(1), sparsity="detect")(point(12))
    assert torch.equal(jacobian, torch.eye(3).double().repeat_interleave(4, 1))


def test_one_mask_for_rows_and_columns() -> None:
    def func(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(arrow(x), 0.5)

    x = point(10)
    torch.manual_seed(3)
    value, jacobian = torchjac.jac(func, sparsity="detect", return_value=True)(x)
    expected = torchjac.jac(arrow)(x) * (value / arrow(x))[:, None]
    torch.testing.assert_close(jacobian, expected, **CLOSE)


def test_a_branch_on_values() -> None:
    def func(x: Tensor) -> Tensor:
        return x.sin() if x.sum() > 0 else x

    with pytest.raises(StructureError, match="sparsity=None"):
        torchjac.jac(func, sparsity="detect")(point(3))
    torch.testing.assert_close(
        torchjac.jac(func, sparsity=torch.eye(3, dtype=torch.bool))(point(3)),
        torchjac.jac(func)(point(3)),
    )


class Shifts:
    """An attribute of a class, which no signature looks at."""

    by = 1


def opaque_functions() -> dict[str, tuple[Any, Any]]:
    """Functions of one code whose pattern changes with something that a signature cannot tell."""
    shifts, weights = Shifts(), np.eye(6)
    captured = torch.from_numpy(weights)
    order, mask = np.arange(6), torch.eye(6, dtype=torch.float64)

    class Rolled(torch.nn.Module):
        by = 1

        def forward(self, x: Tensor) -> Tensor:
            return x.roll(self.by) * x

    module = Rolled()

    def change_order() -> None:
        order[:] = order[::-1].copy()

    return {
        "attribute of a class": (lambda x: x.roll(shifts.by) * x, lambda: setattr(Shifts, "by", 2)),
        "array": (lambda x: x[order] * x, change_order),
        "attribute of a module": (module, lambda: setattr(module, "by", 3)),
        "memory of a captured tensor": (
            lambda x: captured @ x,
            lambda: weights.__setitem__((0, 3), 2.0),
        ),
        "data of a captured tensor": (
            lambda x: mask @ x,
            lambda: mask.data.__setitem__((0, 3), 2.0),
        ),
    }


@pytest.mark.parametrize("name", list(opaque_functions()))
def test_what_a_signature_cannot_tell_is_checked_at_every_call(name: str) -> None:
    func, change = opaque_functions()[name]
    Shifts.by = 1
    x, sparse = point(6), torchjac.jac(func, sparsity="detect")
    torch.testing.assert_close(sparse(x), torchjac.jac(func, mode="forward")(x), **CLOSE)
    change()
    torch.testing.assert_close(sparse(x), torchjac.jac(func, mode="forward")(x), **CLOSE)


def test_slices_and_ranges_are_told_apart() -> None:
    x = point(8)
    for part in (slice(0, 4), slice(4, 8)):
        got = torchjac.jac(lambda x, part=part: x[part] * 2, sparsity="detect")(x)
        torch.testing.assert_close(got, 2 * torch.eye(8, dtype=torch.float64)[part])
    for order in (range(8), range(7, -1, -1)):
        got = torchjac.jac(lambda x, order=order: x[list(order)] * 2, sparsity="detect")(x)
        torch.testing.assert_close(got, 2 * torch.eye(8, dtype=torch.float64)[list(order)])


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        x = point(6)
        assert torchjac.jac_sparsity(tridiagonal)(x).nnz == 16
        got = torchjac.jac(tridiagonal, sparsity="detect")(x)
    torch.testing.assert_close(got, torchjac.jac(tridiagonal)(point(6)), **CLOSE)


STRIDED: dict[str, Any] = {
    "asked for": lambda X: (X if X.is_contiguous() else X.T).reshape(-1) ** 2,
    "set": lambda X: X.as_strided((4, 4), (1, 4)) ** 2 * X[0, 0],
    "needed": lambda X: X.T.view(-1).sin() if not X.is_contiguous() else X.view(-1).sin(),
}


@pytest.mark.parametrize("func", STRIDED.values(), ids=STRIDED)
def test_what_depends_on_strides_is_followed_with_these(func: Any) -> None:
    one = torch.randn(4, 4, dtype=torch.float64)
    detecting = torchjac.jac(func, sparsity="detect")
    for x in (one, one.T, one):
        torch.testing.assert_close(detecting(x), torch.func.jacrev(func)(x))


def test_what_cannot_run_without_values_is_named() -> None:
    """PyTorch's gradient of this index_put is of the wrong shape where a 0-dim index has no value."""
    rows = torch.tensor([0, 3, 1])

    def func(x: Tensor) -> Tensor:
        return x.index_put((rows, torch.tensor(1)), x[:3, 0] ** 2).sum()

    with pytest.raises(StructureError, match="cannot be followed on tensors without values"):
        torchjac.hessian(func, sparsity="detect")(torch.randn(8, 3))


def test_finding_a_pattern_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    torchjac.jac_sparsity(torch.nn.functional.dropout)(point(6))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_pattern_of_a_sparse_jacobian() -> None:
    pattern = torchjac.jac_sparsity(tridiagonal)(point(4))
    again = torchjac.jac_sparsity(torchjac.jac(tridiagonal, sparsity=pattern))(point(4))
    dense = torchjac.jac_sparsity(torchjac.jac(tridiagonal))(point(4))
    assert dense.covers(again)
    assert again.nnz


def test_a_captured_tensor_of_a_surrounding_transform() -> None:
    def scaled(x: Tensor, scale: Tensor) -> Tensor:
        return torchjac.jac(lambda x: tridiagonal(x) * scale, sparsity="detect")(x)

    xs = torch.randn(2, 5, dtype=torch.float64)
    with pytest.raises(StructureError, match="pass that as an argument"):
        torch.func.vmap(scaled)(xs, xs)


def test_within_another_detection() -> None:
    sparse = torchjac.jac(torchjac.jac(tridiagonal, sparsity="detect"), sparsity="detect")
    expected = torchjac.jac(torchjac.jac(tridiagonal))(point(5))
    torch.testing.assert_close(sparse(point(5)), expected, **CLOSE)
    # PyTorch's own transforms still work: no layer or mode was left behind.
    torch.func.grad(lambda x: (x.sin() * x).sum())(point(5))


def test_an_op_without_a_rule_is_named() -> None:
    def func(x: Tensor) -> Tensor:
        return torch.nn.functional.multi_margin_loss(
            x.reshape(2, 3), torch.tensor([0, 2]), reduction="none"
        )

    with pytest.warns(TorchjacFallbackWarning, match="no rule for aten"):
        pattern = torchjac.jac_sparsity(func)(point(6))
    assert pattern.nnz == 12
