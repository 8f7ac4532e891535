"""The checks find wrong derivatives, name the place, and say what may be to blame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.func import jacfwd, jacrev

from tests.testing.checked import DOUBLE, MATRIX, X, by_torch, energy, every_argument, mix
from tests.testing.planted import WrongBackward, WrongJvp, WrongSecond, WrongVmap
from torchjac.errors import TorchjacError
from torchjac.foundations.pytree import flatten, unflatten
from torchjac.testing import DerivativeError, check_hessian, check_jac, strategies


class TestOneWrongEntry:
    """Whatever the program and wherever the entry: it is found, and named."""

    @given(
        st.data(),
        strategies.programs_with_arguments(smooth=True),
        st.sampled_from([1e-4, -0.1, 3.0]),
    )
    def test_of_a_jacobian(self, data: Any, case: Any, error: float) -> None:
        program, args = case
        argnums = every_argument(program)
        right = by_torch(jacrev(program, argnums), args)
        wrong, index, value = spoil(data, right, error)
        with pytest.raises(
            DerivativeError, match="check_jac: the Jacobian is wrong:\nat output"
        ) as caught:
            check_jac(program, *args, argnums=argnums, jac=wrong)
        (found,) = caught.value.mismatches
        assert found.output is not None
        assert found.output.index + found.inputs[0].index == index
        assert found.got == pytest.approx(value, rel=1e-12)
        assert set(found.expected) == {"reverse pass", "finite difference"}
        for expected in found.expected.values():
            assert value - expected == pytest.approx(error, rel=1e-2)

    @given(
        st.data(),
        strategies.programs_with_arguments(scalar=True, smooth=True),
        st.sampled_from([1e-4, -0.1, 3.0]),
    )
    def test_of_a_hessian(self, data: Any, case: Any, error: float) -> None:
        program, args = case
        right = by_torch(jacrev(jacrev(program)), args)
        wrong, index, value = spoil(data, right, error)
        with pytest.raises(
            DerivativeError, match="check_hessian: the Hessian is wrong:\nat output"
        ) as caught:
            check_hessian(program, *args, hessian=wrong)
        (found,) = caught.value.mismatches
        assert found.inputs[0].index + found.inputs[1].index == index
        assert found.got == pytest.approx(value, rel=1e-12)

    def test_in_a_tree_is_named_as_a_user_writes_it(self) -> None:
        def func(weights: Any, x: Any) -> Any:
            return {"out": (weights["w"] @ x, weights["b"] * 2)}

        weights = {"w": MATRIX, "b": X}
        wrong = jacrev(func, (0, 1))(weights, X)
        wrong["out"][0][0]["w"][1, 1, 2] += 1
        with pytest.raises(DerivativeError) as caught:
            check_jac(func, weights, X, argnums=(0, 1), jac=wrong)
        assert str(caught.value) == (
            "check_jac: the Jacobian is wrong:\n"
            "at output['out'][0] [1], by weights['w'] [1, 2]:\n"
            "    got                2.1\n"
            "    reverse pass       1.1\n"
            "    finite difference  1.1\n"
            f"    allowed difference {caught.value.mismatches[0].tolerance:.3g}; "
            "found by the adjoint probe, in 1 of 15 input entries"
        )

    def test_that_is_not_finite(self) -> None:
        for bad in (torch.nan, torch.inf):
            wrong = torch.diag(X.cos())
            wrong[1, 2] = bad
            with pytest.raises(DerivativeError, match=r"at output \[1\], by args\[0\] \[2\]:\n"):
                check_jac(torch.sin, X, jac=wrong)

    def test_is_an_assertion_error(self) -> None:
        with pytest.raises(AssertionError):
            check_jac(torch.sin, X, jac=torch.eye(3, dtype=DOUBLE))
        assert issubclass(DerivativeError, TorchjacError)


def spoil(data: Any, derivative: Any, error: float) -> tuple[Any, tuple[int, ...], float]:
    """Add ``error`` to one entry of a tree of tensors; return the tree, the entry, and its new value."""
    leaves, structure = flatten(derivative)
    leaves = [leaf.clone() for leaf in leaves]
    choices = [index for index, leaf in enumerate(leaves) if leaf.numel()]
    assume(choices)
    leaf = leaves[data.draw(st.sampled_from(choices))]
    index = tuple(data.draw(st.integers(0, side - 1)) for side in leaf.shape)
    leaf[index] += error
    return unflatten(leaves, structure), index, float(leaf[index])


class TestWrongRules:
    """Rules of a custom function that are wrong in one mode, and what is blamed for them."""

    def test_backward(self) -> None:
        for transform in (jacrev, None):
            jac = transform(WrongBackward.apply) if transform else None
            with pytest.raises(DerivativeError, match="the reverse pass agrees with it") as caught:
                check_jac(WrongBackward.apply, X, jac=jac)
            assert "difference probe, in 3 of 3 output entries" in str(caught.value)
            assert "all of it looks scaled by 1.1" in str(caught.value)

    def test_backward_where_the_checked_derivative_is_right(self) -> None:
        message = "the finite difference agrees with it: a backward rule"
        with pytest.raises(DerivativeError, match=message):
            check_jac(WrongBackward.apply, X, jac=jacfwd(WrongBackward.apply))

    def test_jvp(self) -> None:
        check_jac(WrongJvp.apply, X, jac=jacrev(WrongJvp.apply))
        with pytest.raises(DerivativeError, match=r"at output \[2\], by args\[0\] \[2\]") as caught:
            check_jac(WrongJvp.apply, X, jac=jacfwd(WrongJvp.apply))
        assert "adjoint probe, in 1 of 3 input entries" in str(caught.value)

    def test_vmap(self) -> None:
        with pytest.raises(DerivativeError, match="adjoint probe, in 2 of 3 input entries"):
            check_jac(WrongVmap.apply, X, jac=jacrev(WrongVmap.apply))

    def test_second_derivative(self) -> None:
        def cube(x: Any) -> Any:
            return WrongSecond.apply(x).sum()

        check_jac(cube, X)
        with pytest.raises(DerivativeError, match="reverse over reverse agrees with it"):
            check_hessian(cube, X, hessian=jacrev(jacrev(cube)))

    @pytest.mark.parametrize(
        "func",
        [
            lambda x: x * x.detach(),
            lambda x: x + torch.no_grad()(torch.sin)(x),
            lambda x: x * x[0].item(),
            lambda x: x + x.data.exp(),
            lambda x: torch.stack([x[0], torch.tensor(x[1].item(), dtype=DOUBLE)]),
        ],
        ids=["detach", "no_grad", "item", "data", "tensor"],
    )
    def test_dependencies_that_autograd_cannot_see(self, func: Any) -> None:
        def plain(x: Any) -> Any:
            leaf = x.detach().clone().requires_grad_()
            rows = [
                torch.autograd.grad(row, leaf, retain_graph=True, allow_unused=True)[0]
                for row in func(leaf)
                if row.requires_grad
            ]
            rows = [*rows, *[torch.zeros_like(x)] * (len(func(x)) - len(rows))]
            return torch.stack(rows)

        with pytest.raises(DerivativeError, match="func hides a dependency from autograd"):
            check_jac(func, X, jac=plain)
        check_jac(func, X, jac=plain, probes=["adjoint"])


class TestWrongAssembly:
    """Wrong Jacobians whose passes were right."""

    def test_transposed(self) -> None:
        with pytest.raises(DerivativeError, match="its transpose is right"):
            check_jac(mix, X, jac=lambda x: jacrev(mix)(x).T)

    def test_transposed_in_shape_too(self) -> None:
        def wide(x: Any) -> Any:
            return MATRIX[:2] @ x

        message = (
            r"check_jac: the block of output by x has shape \(3, 2\); expected \(2, 3\), the output's "
            "shape and then the input's; that is the transpose"
        )
        with pytest.raises(DerivativeError, match=message):
            check_jac(wide, X, jac=MATRIX[:2].T)

    @pytest.mark.parametrize("factor", [2.0, -1.0, 1.001])
    def test_scaled(self, factor: float) -> None:
        with pytest.raises(DerivativeError, match=f"all of it looks scaled by {factor:g}"):
            check_jac(mix, X, jac=factor * jacrev(mix)(X))
        with pytest.raises(DerivativeError, match=f"all of it looks scaled by {factor:g}"):
            check_hessian(energy, X, hessian=factor * jacrev(jacrev(energy))(X))

    def test_zero(self) -> None:
        with pytest.raises(DerivativeError, match="all of it looks like zero"):
            check_jac(mix, X, jac=torch.zeros(3, 3, dtype=DOUBLE))

    def test_a_missing_term(self) -> None:
        with pytest.raises(DerivativeError, match=r"by x \[0\]:\n"):
            check_jac(lambda x: mix(x) + x[0], X, jac=jacrev(mix))

    def test_the_sum_of_the_rows(self) -> None:
        def summed(x: Any) -> Any:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(mix(x).sum(), x)[0].expand(3, 3)

        with pytest.raises(DerivativeError, match="in 3 of 3 input entries"):
            check_jac(mix, X, jac=summed)

    def test_blocks_in_the_wrong_order(self) -> None:
        def func(x: Any, y: Any) -> Any:
            return x * y.sin()

        swapped = jacrev(func, (1, 0))(X, 2 * X)
        with pytest.raises(DerivativeError, match=r"by (x|y) \["):
            check_jac(func, X, 2 * X, argnums=(0, 1), jac=swapped)

    def test_another_tree(self) -> None:
        message = (
            r"check_jac: the result is the wrong tree: got \*; expected \{'a': \*, 'b': None\}: the tree "
            "of the outputs, in it the tree of the chosen inputs, and None for outputs that are not "
            "floating-point"
        )
        with pytest.raises(DerivativeError, match=message):
            check_jac(lambda x: {"a": x, "b": x.long()}, X, jac=torch.eye(3, dtype=DOUBLE))

    def test_another_dtype(self) -> None:
        jac = torch.diag(X.cos()).float()
        message = (
            "block of output by x has dtype torch.float32; expected torch.float64, the input's"
        )
        with pytest.raises(DerivativeError, match=message):
            check_jac(lambda x: x.sin(), X, jac=jac)
        check_jac(lambda x: x.sin(), X, jac=jac, check_dtype=False, rtol=1e-6)


class TestWrongHessians:
    def test_asymmetric(self) -> None:
        hessian = jacrev(jacrev(energy))(X)
        hessian[0, 2] += 1
        with pytest.raises(DerivativeError, match=r"at output, by x \[0\] and x \[2\]:\n"):
            check_hessian(energy, X, hessian=hessian)
        with pytest.raises(DerivativeError, match=r"mirror image .*\n.*symmetry probe, in 1 pair"):
            check_hessian(energy, X, hessian=hessian, probes=["symmetry"])

    def test_symmetric_but_wrong(self) -> None:
        hessian = jacrev(jacrev(energy))(X)
        hessian += torch.ones(3, 3, dtype=DOUBLE)
        check_hessian(energy, X, hessian=hessian, probes=["symmetry"])
        for probe in ("adjoint", "difference"):
            with pytest.raises(DerivativeError, match=f"found by the {probe} probe, in 3 of 3"):
                check_hessian(energy, X, hessian=hessian, probes=[probe])

    def test_of_the_wrong_output(self) -> None:
        def func(x: Any) -> Any:
            return {"a": x.sin().sum(), "b": (x**3).sum()}

        hessian = jacrev(jacrev(func))(X)
        hessian["b"][1, 1] += 0.5
        with pytest.raises(DerivativeError, match=r"at output\['b'\], by x \[1\] and x \[1\]:\n"):
            check_hessian(func, X, hessian=hessian)

    def test_the_gauss_newton_approximation(self) -> None:
        jacobian = jacrev(mix)(X)
        with pytest.raises(DerivativeError, match="in 3 of 3 input entries"):
            check_hessian(lambda x: mix(x).square().sum() / 2, X, hessian=jacobian.T @ jacobian)

    def test_zero_from_a_nested_forward_mode(self) -> None:
        with pytest.raises(DerivativeError, match="all of it looks like zero"):
            check_hessian(energy, X, hessian=torch.zeros(3, 3, dtype=DOUBLE))
