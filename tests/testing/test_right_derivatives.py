"""The checks accept right derivatives, of whatever function, at kinks, and in every dtype and layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from tests.testing.checked import DOUBLE, X, by_torch, energy, every_argument, mix
from torchjac.testing import DerivativeError, check_hessian, check_jac, strategies


class TestRightDerivatives:
    @given(strategies.programs_with_arguments(smooth=True, other_outputs=True))
    def test_of_programs_are_accepted_in_float64(self, case: Any) -> None:
        program, args = case
        report = check_jac(program, *args, argnums=every_argument(program))
        assert set(report.closeness) == {"adjoint", "difference"}
        assert all(ratio <= 0.1 for ratio in report.closeness.values())
        assert report.notes == ()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @given(data=st.data())
    def test_of_programs_are_accepted_in_low_precision(self, dtype: torch.dtype, data: Any) -> None:
        program, args = data.draw(strategies.programs_with_arguments(smooth=True, dtype=dtype))
        argnums = every_argument(program)
        right = by_torch(jacrev(program, argnums), args)
        check_jac(program, *args, argnums=argnums, jac=right)

    @given(strategies.programs_with_arguments(scalar=True, smooth=True))
    def test_of_second_order_are_accepted(self, case: Any) -> None:
        program, args = case
        report = check_hessian(program, *args, argnums=every_argument(program))
        assert set(report.closeness) == {"adjoint", "difference", "symmetry"}

    @given(strategies.programs_with_arguments(smooth=True))
    def test_of_second_order_of_many_outputs_are_accepted(self, case: Any) -> None:
        program, args = case
        check_hessian(program, *args, hessian=by_torch(jacrev(jacrev(program)), args))

    @given(strategies.programs_with_arguments())
    def test_at_kinks_are_accepted_by_the_adjoint_probe(self, case: Any) -> None:
        program, args = case
        check_jac(program, *args, probes=["adjoint"])

    @pytest.mark.parametrize(
        "func", [torch.abs, torch.relu, lambda x: x.clamp(0, 1), lambda x: x.amax()]
    )
    def test_at_a_kink_any_subgradient_is_accepted(self, func: Any) -> None:
        x = torch.tensor([0.0, 1.0, 0.0], dtype=DOUBLE)
        check_jac(func, x, jac=jacrev(func))

    def test_where_kinks_meet_the_report_says_so(self) -> None:
        def func(x: Any) -> Any:
            return torch.relu(x).cumsum(0) - torch.relu(x).sum() / 3

        report = check_jac(func, torch.zeros(4, dtype=DOUBLE), jac=jacrev(func), samples=4)
        assert any("not differentiable here: slopes of output" in note for note in report.notes)

    def test_keywords_aux_and_modules(self) -> None:
        check_jac(lambda x, *, k: k * x.sin(), X, kwargs={"k": 3.0})
        check_jac(lambda x: (x.sin(), "aux"), X, has_aux=True)
        check_hessian(lambda x, *, k: k * x.sin().sum(), X, kwargs={"k": 3.0})
        check_hessian(lambda x: (x.sin().sum(), "aux"), X, has_aux=True)
        module = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ).double()
        assert check_jac(module, X, argnums="params").shape == (2, 26)
        assert check_jac(module, X).shape == (2, 3)

    def test_random_functions_are_checked_at_one_draw(self) -> None:
        def func(x: Any) -> Any:
            return torch.nn.functional.dropout(x, 0.5).sin()

        func(X)
        state = torch.get_rng_state()
        torch.manual_seed(0)
        check_jac(func, X)
        assert torch.equal(torch.get_rng_state(), state)

    def test_the_derivative_itself_may_be_given_in_any_layout(self) -> None:
        check_jac(torch.sin, X, jac=torch.diag(X.cos()))
        check_jac(torch.sin, X, jac=torch.diag(X.cos()).to_sparse())
        check_hessian(lambda x: x.sin().sum(), X, hessian=torch.diag(-X.sin()))

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_whatever_grad_mode_the_caller_is_in(self, mode: Any) -> None:
        with mode():
            x = X.clone()
            check_jac(mix, x)
            check_hessian(energy, x)

    def test_functions_that_change_their_input(self) -> None:
        x = X.clone()
        check_jac(lambda x: x.mul_(2).sin(), x, jac=torch.diag(2 * (2 * x).cos()))
        assert torch.equal(x, X)

    @pytest.mark.parametrize("scale", [1e3, 1e-3])
    @pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
    def test_inputs_of_other_scales(self, scale: float, dtype: torch.dtype) -> None:
        x = (scale * X).to(dtype)
        check_jac(lambda x: (x / scale).sin() * scale, x)

    def test_undefined_entries_are_noted_and_the_rest_is_checked(self) -> None:
        x = torch.tensor([0.0, 1.0], dtype=DOUBLE)
        right = torch.diag(torch.tensor([torch.inf, 0.5], dtype=DOUBLE))
        report = check_jac(torch.sqrt, x, jac=right)
        assert report.notes == ("the finite difference is undefined in 1 of 2 entries",)
        right[1, 1] += 0.1
        with pytest.raises(DerivativeError, match=r"at output \[1\], by args\[0\] \[1\]:\n"):
            check_jac(torch.sqrt, x, jac=right)

    def test_a_nan_where_differences_are_finite_is_found(self) -> None:
        def safe_root(x: Any) -> Any:
            return torch.where(x > 0, x.sqrt(), 0.0)

        x = torch.tensor([-1.0, 1.0], dtype=DOUBLE)
        with pytest.raises(DerivativeError, match=r"at output \[0\], by x \[0\]:\n    got +nan"):
            check_jac(safe_root, x, jac=jacrev(safe_root))

    def test_the_report_reads(self) -> None:
        report = check_jac(mix, X)
        assert str(report).startswith("check_jac: 3 x 3 right; difference / allowed: adjoint ")
        assert report.shape == (3, 3)
        assert check_hessian(energy, X).shape == (1, 3, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@given(strategies.programs_with_arguments(smooth=True, device="cuda"))
def test_right_derivatives_are_accepted_on_a_gpu(case: Any) -> None:
    program, args = case
    check_jac(program, *args, argnums=every_argument(program))
