"""What the checks refuse, and what they leave out and say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import jacrev

from tests.testing.checked import DOUBLE, X, energy
from torchjac.errors import ArgumentTypeError, OptionError, UnsupportedError
from torchjac.testing import DerivativeError, check_hessian, check_jac


class TestRefusals:
    @pytest.mark.parametrize(
        ("check", "options", "message"),
        [
            (
                check_jac,
                {"probes": ["adjiont"]},
                r"probes=\['adjiont'\]; expected some of \('adjoint', 'diff",
            ),
            (check_jac, {"probes": []}, r"probes=\[\]; expected some of"),
            (check_jac, {"probes": ["symmetry"]}, "probes="),
            (check_jac, {"samples": 0}, "check_jac: samples=0; expected a positive int"),
            (check_hessian, {"samples": 0}, "check_hessian: samples=0; expected a positive int"),
        ],
    )
    def test_options(self, check: Any, options: Any, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            check(energy, X, **options)

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
