"""The strategies generate what they promise: every operator, every edge, programs that run."""

from __future__ import annotations

import copy
import math
import pickle
import random
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch.func import jacfwd, jacrev

from torchjac.errors import OptionError
from torchjac.foundations.pytree import flatten
from torchjac.testing import check_hessian, check_jac, strategies
from torchjac.testing.operators import Operator
from torchjac.testing.programs import Builder, Program, TensorSpec
from torchjac.testing.registry import OPERATORS

T = TypeVar("T")
DOUBLE = torch.float64

each_operator = pytest.mark.parametrize(
    "operator", OPERATORS, ids=[each.name for each in OPERATORS]
)


def single(operator: Operator, seed: int) -> tuple[Program, tuple[Any, ...]]:
    """A program of one operator, and arguments with zeros and ties, by a plain random generator."""
    chance = random.Random(seed)

    def pick(options: Sequence[T]) -> T:
        return chance.choice(options)

    shapes = [(2,), (3,), (1,), (), (2, 2), (2, 3), (3, 2), (2, 1), (1, 2, 2)]
    while True:
        specs = tuple(TensorSpec(pick(shapes)) for _ in range(pick((1, 2))))
        builder = Builder(specs)
        if builder.apply(operator, pick):
            program = builder.finish(builder.variables[0])
            return program, tuple(values(chance, spec.shape) for spec in specs)


def values(chance: random.Random, shape: tuple[int, ...]) -> torch.Tensor:
    entries = [
        chance.choice([0, 64, -64, chance.randint(-128, 128)]) for _ in range(math.prod(shape))
    ]
    return (torch.tensor(entries, dtype=DOUBLE) / 64).reshape(shape)


class TestRegistry:
    def test_names_are_unique(self) -> None:
        names = [operator.name for operator in OPERATORS]
        assert len(names) == len(set(names)) > 80

    @each_operator
    def test_first_derivatives_are_right_in_both_modes(self, operator: Operator) -> None:
        probes = ["adjoint", "difference"] if operator.smooth else ["adjoint"]
        for seed in range(3):
            program, args = single(operator, seed)
            argnums = tuple(range(len(args)))
            assert program.operators == (operator.name,)
            assert program.smooth == operator.smooth
            modes = [jacrev, jacfwd] if operator.trap != 1 else []
            for mode in modes:
                check_jac(
                    program, *args, argnums=argnums, jac=mode(program, argnums), probes=probes
                )

    @each_operator
    def test_second_derivatives_are_right_in_all_modes(self, operator: Operator) -> None:
        if operator.trap or not operator.smooth:
            pytest.skip("not promised")
        program, args = single(operator, 0)
        argnums = tuple(range(len(args)))

        def func(*args: Any) -> Any:
            return program(*args).sin().sum()

        for outer in (jacrev, jacfwd):
            for inner in (jacrev, jacfwd):
                hessian = outer(inner(func, argnums), argnums)
                check_hessian(func, *args, argnums=argnums, hessian=hessian, samples=1)

    @each_operator
    def test_results_stay_within_their_bound(self, operator: Operator) -> None:
        for seed in range(5):
            chance = random.Random(seed)
            program, args = single(operator, seed)
            extreme = [torch.full_like(arg, chance.choice([-2.0, 2.0])) for arg in args]
            for point in (args, extreme):
                (value,) = flatten(program(*point))[0]
                assert value.isfinite().all()
                assert value.numel() == 0 or float(value.abs().max()) <= 1000

    @each_operator
    def test_any_strides_give_the_same_result(self, operator: Operator) -> None:
        for seed in range(5):
            program, args = single(operator, seed)
            expected = program(*args)
            for layout in strategies._LAYOUTS[:4]:
                torch.testing.assert_close(program(*map(layout, args)), expected)

    @each_operator
    def test_is_drawn(self, operator: Operator) -> None:
        drawn = find(
            strategies.programs(operators=[operator.name], max_operators=2),
            lambda program: operator.name in program.operators,
            settings=settings(phases=[Phase.generate], database=None, max_examples=500),
        )
        assert operator.name in drawn.operators


class TestPrograms:
    @given(strategies.programs_with_arguments(traps=True, other_outputs=True, strided=True))
    def test_run_without_overflow_and_are_deterministic(self, case: Any) -> None:
        program, args = case
        before = [leaf.clone() for leaf in flatten(args)[0]]
        once, again = flatten(program(*args))[0], flatten(program(*args))[0]
        for one, other in zip(once, again, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
            assert one is None or one.isfinite().all()
        assert all(map(torch.equal, before, flatten(args)[0]))

    @given(strategies.programs())
    def test_print_as_source_that_makes_them_again(self, program: Program) -> None:
        namespace: dict[str, Any] = {"torch": torch}
        exec(repr(program), namespace)
        value, again = program(*program.example_args), namespace["program"](*program.example_args)
        for one, other in zip(flatten(value)[0], flatten(again)[0], strict=True):
            assert torch.equal(one, other)

    @given(strategies.programs())
    def test_survive_copies_and_pickles(self, program: Program) -> None:
        for twin in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
            assert twin == program
            assert hash(twin) == hash(program)
            assert repr(twin) == repr(program)

    @given(strategies.programs())
    def test_example_arguments_have_no_zeros(self, program: Program) -> None:
        for leaf in flatten(program.example_args)[0]:
            assert leaf.dtype == DOUBLE
            assert bool((leaf.abs() > 0.2).all())

    @given(strategies.programs(smooth=True))
    def test_smooth_ones_have_no_kinks(self, program: Program) -> None:
        assert program.smooth

    @given(strategies.scalar_programs())
    def test_scalar_ones_have_one_number_for_output(self, program: Program) -> None:
        assert program(*program.example_args).shape == ()

    @given(st.data(), strategies.programs())
    def test_argnums_are_in_range(self, data: Any, program: Program) -> None:
        chosen = data.draw(strategies.argnums(program))
        numbers = chosen if isinstance(chosen, tuple) else (chosen,)
        assert numbers
        assert all(0 <= number < len(program.specs) for number in numbers)

    def test_unknown_operators_are_refused(self) -> None:
        with pytest.raises(
            OptionError, match=r"programs\(operators=...\): no operator is called sine"
        ):
            find(strategies.programs(operators=["sine"]), lambda program: True)

    @pytest.mark.parametrize(
        ("order", "traps", "there", "absent"),
        [(1, False, "solve", "cdist"), (2, False, "sin", "solve"), (2, True, "cdist", None)],
    )
    def test_traps_are_left_out_up_to_the_order(
        self, order: int, traps: bool, there: str, absent: str | None
    ) -> None:
        names = {each.name for each in strategies._allowed(None, False, 0 if traps else order)}
        assert there in names
        assert absent not in names

    def test_shrink_to_the_operator_that_matters(self) -> None:
        program = find(strategies.programs(operators=["sin"]), lambda program: program.operators)
        assert repr(program) == "def program(x0):\n    v1 = torch.sin(x0)\n    return v1"

    def test_unused_steps_and_arguments_do_not_print(self) -> None:
        builder = Builder((TensorSpec((2,)), {"a": TensorSpec((2,))}))
        sin, cos = OPERATORS[:2]

        def newest(options: Sequence[T]) -> T:
            return options[0]

        for operator in (sin, cos, sin):
            assert builder.apply(operator, newest)
        assert repr(builder.finish("v3")) == (
            "def program(x0, x1):\n"
            "    v1 = x1['a']\n"
            "    v2 = torch.sin(v1)\n"
            "    v3 = torch.cos(v2)\n"
            "    return v3"
        )


EDGES = {
    "0-dim input": lambda p, args: any(leaf.dim() == 0 for leaf in flatten(args)[0]),
    "empty input": lambda p, args: any(leaf.numel() == 0 for leaf in flatten(args)[0]),
    "singleton input": lambda p, args: any(tuple(leaf.shape) == (1,) for leaf in flatten(args)[0]),
    "empty output": lambda p, args: any(v is not None and v.numel() == 0 for v in out(p, args)),
    "0-dim output": lambda p, args: any(v is not None and v.dim() == 0 for v in out(p, args)),
    "None output": lambda p, args: any(v is None for v in out(p, args)),
    "integer output": lambda p, args: any(
        v is not None and v.dtype == torch.int64 for v in out(p, args)
    ),
    "boolean output": lambda p, args: any(
        v is not None and v.dtype == torch.bool for v in out(p, args)
    ),
    "dict output": lambda p, args: isinstance(p(*args), dict),
    "list output": lambda p, args: isinstance(p(*args), list),
    "nested output": lambda p, args: any(isinstance(v, tuple) for v in items(p(*args))),
    "dict input": lambda p, args: isinstance(args[0], dict),
    "nested input": lambda p, args: any(isinstance(v, (list, dict)) for v in items(args[0])),
    "an input ignored": lambda p, args: "x1" in p.source.split(":")[0] and "x1" not in body(p),
    "an input returned": lambda p, args: "x0" in returned(p),
    "an output twice": lambda p, args: len(returned(p)) > len(set(returned(p))),
    "exact zeros": lambda p, args: any(bool((leaf == 0).any()) for leaf in flatten(args)[0]),
    "ties": lambda p, args: any(leaf.numel() > len(leaf.unique()) for leaf in flatten(args)[0]),
    "strides": lambda p, args: any(not leaf.is_contiguous() for leaf in flatten(args)[0]),
    "expanded": lambda p, args: any(
        0 in leaf.stride() and leaf.numel() > 1 for leaf in flatten(args)[0]
    ),
    "offset": lambda p, args: any(leaf.storage_offset() for leaf in flatten(args)[0]),
    "in place": lambda p, args: "_(" in p.source and "clone" in p.source,
    "long": lambda p, args: len(p.operators) >= 4,
}


def out(program: Program, args: Any) -> list[Any]:
    return flatten(program(*args))[0]


def items(tree: Any) -> Any:
    return (
        tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    )


def returned(program: Program) -> list[str]:
    return re.findall(r"\b[vx]\d+\b", program.source.rsplit("return", 1)[1])


def body(program: Program) -> str:
    return program.source.split("\n", 1)[1]


@pytest.mark.parametrize("edge", EDGES)
def test_every_edge_is_generated(edge: str) -> None:
    find(
        strategies.programs_with_arguments(other_outputs=True, strided=True),
        lambda case: EDGES[edge](*case),
        settings=settings(
            phases=[Phase.generate],
            database=None,
            max_examples=3000,
            derandomize=True,
            deadline=None,
        ),
    )


class TestPieces:
    @given(strategies.shapes(max_dims=2, max_side=5, max_size=12))
    def test_shapes_keep_their_limits(self, shape: tuple[int, ...]) -> None:
        assert len(shape) <= 2
        assert math.prod(shape) <= 12
        assert all(0 <= side <= 5 for side in shape)

    def test_shapes_reach_their_limits(self) -> None:
        assert find(strategies.shapes(max_side=5), lambda shape: 5 in shape) == (5,)
        assert find(strategies.shapes(), lambda shape: len(shape) == 3) == (2, 2, 2)

    @given(strategies.tensors(strided=True, dtype=torch.float16))
    def test_tensors_are_exact_in_every_dtype(self, tensor: torch.Tensor) -> None:
        assert tensor.dtype == torch.float16
        assert tensor.isfinite().all()
        assert torch.equal((tensor.double() * 64).round(), tensor.double() * 64)

    @given(strategies.tensors((2, 0, 1)))
    def test_tensors_of_a_given_shape(self, tensor: torch.Tensor) -> None:
        assert tensor.shape == (2, 0, 1)

    @given(strategies.tensors(st.sampled_from([(2,), (3,)])))
    def test_tensors_of_drawn_shapes(self, tensor: torch.Tensor) -> None:
        assert tuple(tensor.shape) in {(2,), (3,)}

    @given(strategies.trees(st.integers()))
    def test_trees_are_never_empty(self, tree: Any) -> None:
        assert flatten(tree)[0]
