"""`finite_difference_jac` against closed forms: value, error estimate, structure, manners."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjac.errors import (
    ArgumentError,
    ArgumentTypeError,
    OptionError,
    OptionTypeError,
    OutputTypeError,
    UnsupportedError,
)
from torchjac.testing import finite_difference_jac, strategies

DOUBLE = torch.float64


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


# Functions of a scale a and a number x, with their derivatives by x.
FAMILY = {
    "sine": (lambda a, x: torch.sin(a * x), lambda a, x: a * math.cos(a * x)),
    "exponential": (lambda a, x: torch.exp(a * x), lambda a, x: a * math.exp(a * x)),
    "tanh": (lambda a, x: torch.tanh(a * x), lambda a, x: a / math.cosh(a * x) ** 2),
    "pole": (
        lambda a, x: 1 / (1 + (a * x) ** 2),
        lambda a, x: -2 * a * a * x / (1 + (a * x) ** 2) ** 2,
    ),
    "power": (lambda a, x: (a * x) ** 5, lambda a, x: 5 * a**5 * x**4),
    "logarithm": (lambda a, x: torch.log(a * a + x * x), lambda a, x: 2 * x / (a * a + x * x)),
    "linear": (lambda a, x: a * x, lambda a, x: a),
    "constant": (lambda a, x: torch.full_like(x, a), lambda a, x: 0.0),
}
scales = st.sampled_from([0.1, 0.3, 1.0, 2.0, 7.0])
# Some builds of PyTorch set the processor to take subnormal numbers for zeros.
normal = functools.partial(st.floats, allow_subnormal=False)
points = st.sampled_from([0.0, 1.0, -1.0, 1e-3]) | normal(-2, 2)


@given(st.sampled_from(sorted(FAMILY)), scales, points)
def test_the_true_error_is_within_the_estimate(name: str, a: float, x: float) -> None:
    func, derivative = FAMILY[name]
    value, error = finite_difference_jac(lambda t: func(a, t), return_error=True)(double(x)[0])
    true = derivative(a, x)
    # Beyond the estimate, the closed form itself is rounded.
    assert abs(float(value) - true) <= float(error) + 4e-16 * abs(true)


@given(st.sampled_from(sorted(FAMILY)), st.sampled_from([0.5, 1.0, 2.0]), normal(-1, 1))
def test_the_estimate_is_small_for_functions_that_vary_over_lengths_of_one(
    name: str, a: float, x: float
) -> None:
    func, derivative = FAMILY[name]
    _, error = finite_difference_jac(lambda t: func(a, t), return_error=True)(double(x)[0])
    assert float(error) <= 1e-6 * max(1.0, abs(derivative(a, x)))


@given(normal(-1e-2, 1e-2), normal(0.5, 2))
def test_near_a_kink_the_estimate_spans_both_slopes_or_the_value_is_right(
    x: float, a: float
) -> None:
    value, error = finite_difference_jac(lambda t: torch.abs(a * t), return_error=True)(
        double(x)[0]
    )
    true = math.copysign(a, x) if x else 0.0
    assert abs(float(value) - true) <= float(error) + 1e-9


def test_at_a_kink_every_subgradient_is_within_the_estimate() -> None:
    value, error = finite_difference_jac(torch.relu, return_error=True)(double(0.0))
    assert float(value) == pytest.approx(0.5)
    assert 0.5 <= float(error) <= 0.51


def test_where_the_function_is_undefined_nearby_the_error_is_infinite() -> None:
    value, error = finite_difference_jac(torch.sqrt, return_error=True)(double(0.0, 1.0))
    assert math.isinf(error[0, 0])
    assert float(value[1, 1]) == pytest.approx(0.5, abs=1e-9)


def test_a_jump_is_not_taken_for_a_slope() -> None:
    _, error = finite_difference_jac(torch.sign, return_error=True)(double(0.0))
    assert float(error) > 1


@pytest.mark.parametrize("method", ["central", "complex", "auto"])
def test_equals_the_closed_form_of_a_vector_function(method: str) -> None:
    matrix = double(*range(6)).reshape(2, 3) / 4
    x = double(0.5, -1.0, 2.0)
    jacobian = finite_difference_jac(lambda x, matrix: torch.sin(matrix @ x), method=method)(
        x, matrix
    )
    expected = torch.cos(matrix @ x)[:, None] * matrix
    torch.testing.assert_close(jacobian, expected, rtol=1e-9, atol=1e-11)


class TestMethods:
    def test_complex_steps_are_right_to_rounding(self) -> None:
        x = double(0.7, 1.3)
        jacobian = finite_difference_jac(torch.exp, method="complex")(x)
        torch.testing.assert_close(jacobian, torch.diag(x.exp()), rtol=4e-16, atol=0)

    @pytest.mark.parametrize(
        "func", [torch.abs, torch.relu, lambda x: x.norm(), lambda x: x.conj() * x]
    )
    def test_complex_steps_are_refused_where_they_would_be_wrong(self, func: Any) -> None:
        with pytest.raises(UnsupportedError, match="not analytic in complex arithmetic"):
            finite_difference_jac(func, method="complex")(double(0.7, 1.3))

    @pytest.mark.parametrize(
        "func", [torch.abs, torch.relu, lambda x: x.norm(), lambda x: x.conj() * x]
    )
    def test_auto_falls_back_to_central_differences(self, func: Any) -> None:
        x = double(0.7, 1.3)
        torch.testing.assert_close(
            finite_difference_jac(func, method="auto")(x),
            finite_difference_jac(func)(x),
            rtol=0,
            atol=0,
        )

    def test_the_error_of_complex_steps_says_what_was_verified(self) -> None:
        x = double(0.7, 1.3)
        jacobian, error = finite_difference_jac(torch.exp, method="auto", return_error=True)(x)
        assert bool(((jacobian - torch.diag(x.exp())).abs() <= error).all())
        assert float(error.max()) < 1e-8

    def test_random_functions_are_never_taken_for_analytic(self) -> None:
        torch.manual_seed(0)
        x = double(0.7, 1.3)
        jacobian = finite_difference_jac(lambda x: x * torch.rand_like(x), method="auto")(x)
        torch.manual_seed(0)
        torch.testing.assert_close(jacobian, torch.diag(torch.rand_like(x)), rtol=1e-9, atol=1e-9)

    def test_a_shorter_step_reaches_where_the_default_leaves_the_domain(self) -> None:
        x = double(1e-7)
        _, far = finite_difference_jac(torch.sqrt, return_error=True)(x)
        near, error = finite_difference_jac(torch.sqrt, return_error=True, step=1e-8)(x)
        assert math.isinf(far)
        assert float(near) == pytest.approx(0.5 / math.sqrt(1e-7), rel=1e-5)
        assert float(error) < 1e-2 * float(near)


class Pair(NamedTuple):
    first: Any
    second: Any


class TestStructure:
    def test_trees_of_outputs_hold_trees_of_inputs(self) -> None:
        def func(args: Any, other: Any) -> Any:
            return {
                "sum": args["a"].sum() + other,
                "pair": (args["b"][0] ** 2, None),
                "int": other.long(),
            }

        args = {"a": double(1, 2), "b": [double(3)]}
        jacobian = finite_difference_jac(func, (0, 1))(args, double(4)[0])
        assert jacobian["int"] is None
        assert jacobian["pair"][1] is None
        by_args, by_other = jacobian["sum"]
        assert by_args["a"].shape == (2,)
        assert by_args["b"][0].shape == (1,)
        assert by_other.shape == ()
        assert jacobian["pair"][0][0]["a"].shape == (1, 2)
        assert float(jacobian["pair"][0][0]["b"][0]) == pytest.approx(6)

    @pytest.mark.parametrize("argnums", [0, 1, -1, (0,), (1, 0), (-1, 0)])
    def test_has_the_tree_that_jacrev_has(self, argnums: Any) -> None:
        def func(x: Any, y: Any) -> Any:
            return [x * y, Pair(x.sin(), OrderedDict(z=y.sum()))]

        args = double(1, 2), double(3, 4)
        plain = tuple(i % 2 for i in argnums) if isinstance(argnums, tuple) else argnums % 2
        expected = torch.func.jacrev(func, plain)(*args)
        torch.testing.assert_close(finite_difference_jac(func, argnums)(*args), expected)

    @given(strategies.programs_with_arguments(smooth=True, other_outputs=True, strided=True))
    def test_every_leaf_is_output_shape_then_input_shape(self, case: Any) -> None:
        program, args = case
        jacobian = finite_difference_jac(program)(*args)
        value = program(*args)
        out_leaves, in_leaves = torch_leaves(value), torch_leaves(args[0])
        shapes = [tuple(leaf.shape) for leaf in torch_leaves(jacobian) if leaf is not None]
        assert shapes == [
            (*out.shape, *leaf.shape)
            for out in out_leaves
            if out is not None and out.is_floating_point()
            for leaf in in_leaves
        ]

    def test_empty_inputs_and_outputs(self) -> None:
        assert finite_difference_jac(torch.sum)(torch.zeros(0, 3, dtype=DOUBLE)).shape == (0, 3)
        assert finite_difference_jac(lambda x: x[:0])(double(1, 2)).shape == (0, 2)

    def test_aux_follows_the_jacobian_and_its_error(self) -> None:
        def func(x: Any) -> Any:
            return x * 2, {"seen": x}

        x = double(1.0)
        jacobian, error, aux = finite_difference_jac(func, has_aux=True, return_error=True)(x)
        assert jacobian.shape == error.shape == (1, 1)
        assert torch.equal(aux["seen"], x)
        assert len(finite_difference_jac(func, has_aux=True)(x)) == 2

    def test_parameters_of_a_module(self) -> None:
        module = torch.nn.Sequential(
            torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)
        ).double()
        module[0].bias.requires_grad_(False)
        before = [parameter.clone() for parameter in module.parameters()]
        x = double(0.3, -0.4)
        jacobian = finite_difference_jac(module, "params")(x)
        assert list(jacobian) == ["0.weight", "2.weight", "2.bias"]
        module(x).sum().backward()
        for name, leaf in jacobian.items():
            torch.testing.assert_close(leaf[0], module.get_parameter(name).grad)
        for parameter, old in zip(module.parameters(), before, strict=True):
            assert torch.equal(parameter, old)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_func_sees_its_own_dtype_and_the_result_has_it(self, dtype: torch.dtype) -> None:
        seen = set()

        def func(x: Any) -> Any:
            seen.add(x.dtype)
            return x * x

        x = torch.tensor([0.5, 1.5], dtype=dtype)
        jacobian, error = finite_difference_jac(func, return_error=True)(x)
        assert seen == {dtype}
        assert jacobian.dtype == error.dtype == dtype
        assert bool(((jacobian - torch.diag(2 * x)).abs() <= error).all())


def torch_leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in torch_leaves(value)]
    if isinstance(tree, (tuple, list)):
        return [leaf for value in tree for leaf in torch_leaves(value)]
    return [tree]


class TestManners:
    def test_counts_of_evaluations(self) -> None:
        calls = 0

        def func(x: Any) -> Any:
            nonlocal calls
            calls += 1
            return x.sin()

        finite_difference_jac(func)(double(1, 2, 3))
        assert calls == 10 * 3 + 1
        calls = 0
        finite_difference_jac(func, method="complex")(double(1, 2, 3))
        assert calls == 3 + 12

    def test_a_random_function_is_evaluated_at_one_draw(self) -> None:
        x = torch.ones(8, dtype=DOUBLE)
        torch.manual_seed(7)
        mask = torch.nn.functional.dropout(x, 0.5)
        state = torch.get_rng_state()
        torch.manual_seed(7)
        jacobian = finite_difference_jac(lambda x: torch.nn.functional.dropout(x, 0.5))(x)
        torch.testing.assert_close(jacobian, torch.diag(mask))
        assert torch.equal(torch.get_rng_state(), state)

    def test_arguments_are_never_changed(self) -> None:
        def func(x: Any, y: Any, *, z: Any) -> Any:
            return x.mul_(2) + y.add_(1) + z.sub_(1)

        x, y, z = double(1, 2), double(3, 4), double(5, 6)
        jacobian = finite_difference_jac(func)(x, y, z=z)
        torch.testing.assert_close(jacobian, 2 * torch.eye(2, dtype=DOUBLE))
        assert x.tolist() == [1, 2]
        assert y.tolist() == [3, 4]
        assert z.tolist() == [5, 6]

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_functions_that_differentiate_inside(self, mode: Any) -> None:
        def slope(x: Any) -> Any:
            return torch.autograd.grad((x**3).sum(), x, create_graph=True)[0]

        with mode():
            x = double(1, 2)
            torch.testing.assert_close(finite_difference_jac(slope)(x), torch.diag(6 * x))

    def test_functions_that_leave_torch(self) -> None:
        def func(x: Any) -> Any:
            return torch.tensor([math.sin(value) for value in x.tolist()], dtype=DOUBLE)

        x = double(1, 2)
        torch.testing.assert_close(finite_difference_jac(func)(x), torch.diag(x.cos()))

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_whatever_grad_mode_the_caller_is_in(self, mode: Any) -> None:
        with mode():
            x = double(1, 2).requires_grad_()
            jacobian = finite_difference_jac(torch.exp)(x)
            assert not jacobian.requires_grad
            assert torch.allclose(jacobian, torch.diag(x.exp()), rtol=1e-9, atol=1e-9)

    def test_an_exception_of_func_comes_out_as_it_is(self) -> None:
        def func(x: Any) -> Any:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            finite_difference_jac(func)(double(1))

    def test_keeps_the_name_of_func(self) -> None:
        def spring(x: Any) -> Any:
            return x

        assert finite_difference_jac(spring).__name__ == "spring"


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"method": "forward"}, OptionError, r"method='forward'\): expected one of 'central'"),
            ({"method": 1}, OptionError, r"method=1\): expected one of 'central'"),
            ({"step": 0.0}, OptionError, r"step=0.0\): expected a positive number"),
            ({"step": math.inf}, OptionError, r"step=inf\): expected a positive number"),
            ({"step": "a"}, OptionTypeError, r"step='a'\): expected a positive number"),
            ({"return_error": 1}, OptionTypeError, r"return_error=1\): expected True or False"),
            ({"argnums": ()}, OptionError, r"argnums=\(\)\): expected an int, a tuple"),
            ({"argnums": True}, OptionTypeError, r"argnums=True\): expected an int"),
            ({"argnums": "params"}, OptionTypeError, r"argnums='params'\): func must be an nn"),
        ],
    )
    def test_options_when_the_transform_is_built(
        self, options: Any, error: Any, message: str
    ) -> None:
        with pytest.raises(error, match=message):
            finite_difference_jac(torch.sin, **options)

    def test_func_that_is_no_function(self) -> None:
        with pytest.raises(OptionTypeError, match=r"\(func\): expected a callable, got int"):
            finite_difference_jac(3)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("func", "argnums", "arg", "error", "message"),
        [
            (torch.sin, 1, double(1), ArgumentError, "argnums=1 is out of range: there are 1"),
            (
                torch.sin,
                (0, 0),
                double(1),
                OptionError,
                "an argument is chosen twice; name it once",
            ),
            (torch.sin, (0, -1), double(1), ArgumentError, "must name each argument once"),
            (lambda x: x, 0, torch.tensor(1), ArgumentTypeError, "x has dtype torch.int64"),
            (lambda x: x, 0, torch.tensor(1j), ArgumentTypeError, "x has dtype torch.complex64"),
            (lambda x: x, 0, [1.0], ArgumentTypeError, r"x\[0\] is a float; expected a tensor"),
            (lambda x: {"a": 1.0}, 0, double(1), OutputTypeError, r"output\['a'\] has type float"),
            (lambda x: (None, x.long()), 0, double(1), OutputTypeError, "no floating-point tensor"),
            (lambda x: x + 1j, 0, double(1), OutputTypeError, "output has dtype torch.complex128"),
            (
                lambda x: [x] * (2 if x > 1 else 1),
                0,
                double(1)[0],
                OutputTypeError,
                "changes its structure",
            ),
        ],
    )
    def test_arguments_and_outputs(
        self, func: Any, argnums: Any, arg: Any, error: Any, message: str
    ) -> None:
        with pytest.raises(error, match=message):
            finite_difference_jac(func, argnums)(arg)

    def test_aux_that_is_missing(self) -> None:
        with pytest.raises(
            OutputTypeError, match=r"must return \(output, aux\); it returned a Tensor"
        ):
            finite_difference_jac(torch.sin, has_aux=True)(double(1))
