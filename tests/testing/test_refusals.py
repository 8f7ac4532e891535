"""What the checks refuse, and what they leave out and say so."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.func import jacrev

from tests.testing.checked import DOUBLE, X, energy
from torchjac.errors import ArgumentTypeError, OptionError, OptionTypeError, UnsupportedError
from torchjac.testing import DerivativeError, check_hessian, check_jac

CHECKS = {"check_jac": check_jac, "check_hessian": check_hessian}
# Each with the error and what is said to be expected.
OPTIONS: list[tuple[str, object, type[Exception], str]] = [
    ("argnums", "x", OptionError, "an int, a tuple of ints, or 'params'"),
    ("argnums", (), OptionError, "an int, a tuple of ints, or 'params'"),
    ("argnums", True, OptionTypeError, "an int, a tuple of ints, or 'params'"),
    ("argnums", [0], OptionTypeError, "an int, a tuple of ints, or 'params'"),
    ("kwargs", [1], OptionTypeError, "a dict of keyword arguments"),
    ("kwargs", {1: 2}, OptionError, "a dict of keyword arguments"),
    ("has_aux", 1, OptionTypeError, "True or False"),
    ("check_dtype", None, OptionTypeError, "True or False"),
    ("samples", 0, OptionError, "a positive int"),
    ("samples", 1.5, OptionTypeError, "a positive int"),
    ("samples", True, OptionTypeError, "a positive int"),
    ("rtol", -1, OptionError, "a finite number that is not negative"),
    ("rtol", float("nan"), OptionError, "a finite number that is not negative"),
    ("rtol", float("inf"), OptionError, "a finite number that is not negative"),
    ("atol", "a", OptionTypeError, "a finite number that is not negative"),
    ("step", 0, OptionError, "a positive number"),
    ("step", float("inf"), OptionError, "a positive number"),
    ("step", "a", OptionTypeError, "a positive number"),
    ("seed", "a", OptionTypeError, "an int that is not negative"),
    ("seed", -1, OptionError, "an int that is not negative"),
    ("probes", ["adjiont"], OptionError, "some of ["),
    ("probes", "adjoint", OptionError, "some of ["),
    ("probes", 3, OptionError, "some of ["),
    ("probes", [], OptionError, "some of ["),
]


class TestRefusals:
    @pytest.mark.parametrize("call", CHECKS)
    @pytest.mark.parametrize(("option", "value", "error", "expected"), OPTIONS)
    def test_options(
        self, call: str, option: str, value: object, error: type[Exception], expected: str
    ) -> None:
        message = re.escape(f"{call}({option}={value!r}): expected {expected}")
        with pytest.raises(error, match=message):
            CHECKS[call](energy, X, **{option: value})

    @pytest.mark.parametrize("call", CHECKS)
    def test_functions(self, call: str) -> None:
        with pytest.raises(OptionTypeError, match=rf"{call}\(func\): expected a callable, got int"):
            CHECKS[call](3, X)
        message = rf"{call}\(argnums='params'\): func must be an nn.Module, .* got function"
        with pytest.raises(OptionTypeError, match=message):
            CHECKS[call](energy, X, argnums="params")

    def test_probes_of_the_other_order(self) -> None:
        with pytest.raises(OptionError, match=r"expected some of \['adjoint', 'difference'\]\."):
            check_jac(energy, X, probes=["symmetry"])

    def test_results_without_values(self) -> None:
        with pytest.raises(DerivativeError, match="is on the meta device, and has no values"):
            check_jac(torch.sin, X, jac=torch.eye(3, dtype=DOUBLE, device="meta"))

    def test_integer_inputs(self) -> None:
        with pytest.raises(ArgumentTypeError, match=r"check_jac: x has dtype torch\.int64"):
            check_jac(lambda x: x, torch.tensor([1]))

    def test_a_reverse_pass_that_torch_refuses_is_noted(self) -> None:
        class OneWay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Any) -> Any:
                return 2 * x

            @staticmethod
            def backward(ctx: Any, grad: Any) -> Any:
                raise NotImplementedError("no way back")

        report = check_jac(OneWay.apply, X, jac=2 * torch.eye(3, dtype=DOUBLE))
        assert report.notes == ("no reverse pass: no way back",)
        with pytest.raises(
            DerivativeError, match=r"at output \[\d\], by \S+ \[\d\]:\n    got .*\n    finite"
        ):
            check_jac(OneWay.apply, X, jac=torch.eye(3, dtype=DOUBLE))
        with pytest.raises(
            UnsupportedError, match="nothing to compare with: no reverse pass: no way back"
        ):
            check_jac(OneWay.apply, X, jac=2 * torch.eye(3, dtype=DOUBLE), probes=["adjoint"])

    def test_differences_in_16_bits_are_not_trusted(self) -> None:
        report = check_jac(torch.sin, X.bfloat16(), jac=jacrev(torch.sin))
        assert report.notes == ("no finite difference: the dtype is too coarse; use float64",)

    def test_an_exception_of_func_comes_out_as_it_is(self) -> None:
        def func(x: Any) -> Any:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            check_jac(func, X)
