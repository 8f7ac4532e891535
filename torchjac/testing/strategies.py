"""Hypothesis strategies: tensors, trees, random programs, and arguments for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchjac.errors import OptionError
from torchjac.foundations.pytree import flatten, unflatten
from torchjac.testing.operators import Operator, Shape
from torchjac.testing.programs import Builder, Program, TensorSpec
from torchjac.testing.registry import OPERATORS

try:
    from hypothesis import strategies as st
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "torchjac.testing.strategies needs Hypothesis, which is not installed: "
        "pip install 'torchjac[testing]'"
    ) from error

__all__ = [
    "argnums",
    "arguments",
    "programs",
    "programs_with_arguments",
    "scalar_programs",
    "shapes",
    "tensors",
    "trees",
]

Leaf = TypeVar("Leaf")
T = TypeVar("T")
LARGEST_LEAF = 9


def shapes(
    *, max_dims: int = 3, max_side: int = 3, max_size: int = LARGEST_LEAF
) -> st.SearchStrategy[Shape]:
    """Shapes of small tensors: 0-dim, singleton and empty ones among them.

    Args:
        max_dims: the most dimensions.
        max_side: the longest side.
        max_size: the most entries.

    Example:
        >>> from hypothesis import find
        >>> from torchjac.testing import strategies
        >>> find(strategies.shapes(), lambda shape: 0 in shape)
        (0,)
    """
    sides = st.sampled_from(
        [side for side in (2, 1, 3, 0, *range(4, max_side + 1)) if side <= max_side]
    )
    return (
        st.lists(sides, max_size=max_dims)
        .map(tuple)
        .filter(lambda shape: math.prod(shape) <= max_size)
    )


@st.composite
def tensors(  # noqa: D417 - Hypothesis passes draw
    draw: st.DrawFn,
    /,
    shape: Shape | st.SearchStrategy[Shape] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    strided: bool = False,
) -> Tensor:
    """Tensors with entries between -2 and 2, among them exact zeros, ones and ties.

    Entries are multiples of 1/64, exact in every floating-point dtype.

    Args:
        shape: a shape, or a strategy of shapes; by default `shapes`.
        dtype: floating-point.
        device: where they live.
        strided: also draw transposed, sliced, offset and expanded tensors of the same shape.

    Example:
        >>> from hypothesis import given
        >>> from torchjac.testing import strategies
        >>> @given(strategies.tensors((2, 3)))
        ... def test_of_mine(x):
        ...     assert x.abs().max() <= 2
        >>> test_of_mine()
    """
    if shape is None:
        shape = shapes()
    sides = draw(shape) if isinstance(shape, st.SearchStrategy) else tuple(shape)
    entries = st.sampled_from([0, 64, -64, 32]) | st.integers(-128, 128)
    size = math.prod(sides)
    values = draw(st.lists(entries, min_size=size, max_size=size))
    tensor = torch.tensor(values, dtype=torch.float64).div(64).reshape(sides)
    tensor = tensor.to(device, dtype)
    return draw(st.sampled_from(_LAYOUTS))(tensor) if strided else tensor


def _transposed(tensor: Tensor) -> Tensor:
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def _sliced(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]


def _offset(tensor: Tensor) -> Tensor:
    return torch.stack([tensor + 1, tensor])[1]


def _expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor) if tensor.dim() else tensor


_LAYOUTS: Sequence[Callable[[Tensor], Tensor]] = (
    torch.clone,
    _transposed,
    _sliced,
    _offset,
    _expanded,
)


def trees(leaves: st.SearchStrategy[Leaf], *, max_leaves: int = 3) -> st.SearchStrategy[Any]:
    """Nested tuples, lists and dicts of what ``leaves`` draws, or a lone leaf; never empty.

    Args:
        leaves: a strategy for the leaves.
        max_leaves: about the most leaves in a tree.

    Example:
        >>> from hypothesis import find, strategies as st
        >>> from torchjac.testing import strategies
        >>> find(strategies.trees(st.just(1)), lambda tree: isinstance(tree, dict))
        {'a': 1}
    """
    return st.recursive(
        leaves,
        lambda children: st.one_of(
            st.lists(children, min_size=1, max_size=3).map(tuple),
            st.lists(children, min_size=1, max_size=3),
            st.dictionaries(st.sampled_from("abc"), children, min_size=1, max_size=3),
        ),
        max_leaves=max_leaves,
    )


@st.composite
def programs(  # noqa: D417 - Hypothesis passes draw
    draw: st.DrawFn,
    /,
    *,
    smooth: bool = False,
    order: int = 1,
    traps: bool = False,
    other_outputs: bool = False,
    operators: Iterable[str] | None = None,
    max_operators: int = 5,
    max_arguments: int = 2,
    dtype: torch.dtype = torch.float64,
) -> Program:
    """Random functions of tensors: compositions of operators over trees of inputs and outputs.

    Shapes are small, and among them 0-dim, singleton and empty. An input may go unused, an output
    may be an input itself, appear twice, or depend on nothing. Values never overflow, whatever
    the arguments between -2 and 2.

    Args:
        smooth: only operators without kinks, so that finite differences can judge the program at
            any arguments.
        order: how many derivatives will be taken, for ``traps`` to know.
        traps: also operators whose derivatives, up to that order, PyTorch gets wrong or refuses in
            some mode.
        other_outputs: also None, integer and boolean leaves in the output.
        operators: names of the only operators to use, as in `torchjac.testing.registry`.
        max_operators: the longest composition.
        max_arguments: the most arguments.
        dtype: of the arguments.

    Example:
        >>> from hypothesis import find
        >>> from torchjac.testing import strategies
        >>> find(strategies.programs(), lambda program: "matmul" in program.operators)
        def program(x0):
            v1 = x0 @ x0
            return v1
    """
    allowed = _allowed(operators, smooth, 0 if traps else order)
    builder = _composed(draw, allowed, max_operators, max_arguments, dtype)
    values = st.sampled_from(builder.variables)
    leaves = values
    if other_outputs:
        other = st.sampled_from(("None", "({} > 0)", "{}.to(torch.int64)"))
        leaves = values | st.builds(str.format, other, values)
    found, structure = flatten(draw(trees(leaves)))
    found[0] = builder.variables[0]  # so that there is something to differentiate
    return builder.finish(_written(unflatten(found, structure)))


@st.composite
def scalar_programs(  # noqa: D417 - Hypothesis passes draw
    draw: st.DrawFn,
    /,
    *,
    smooth: bool = False,
    order: int = 2,
    traps: bool = False,
    operators: Iterable[str] | None = None,
    max_operators: int = 5,
    max_arguments: int = 2,
    dtype: torch.dtype = torch.float64,
) -> Program:
    """Random functions with one 0-dim output: for gradients and Hessians.

    Args:
        smooth: as in `programs`.
        order: as in `programs`.
        traps: as in `programs`.
        operators: as in `programs`.
        max_operators: as in `programs`.
        max_arguments: as in `programs`.
        dtype: as in `programs`.

    Example:
        >>> from hypothesis import find
        >>> from torchjac.testing import strategies
        >>> find(strategies.scalar_programs(operators=["sin"]), lambda program: program.operators)
        def program(x0):
            v1 = torch.sin(x0)
            return v1.sum()
    """
    allowed = _allowed(operators, smooth, 0 if traps else order)
    builder = _composed(draw, allowed, max_operators, max_arguments, dtype)
    newest, *others = builder.variables
    terms = [
        newest,
        *draw(st.lists(st.sampled_from(others), max_size=1) if others else st.just([])),
    ]
    return builder.finish(" + ".join(f"{term}.sum()" for term in terms))


@st.composite
def arguments(  # noqa: D417 - Hypothesis passes draw
    draw: st.DrawFn,
    /,
    program: Program,
    *,
    device: str | torch.device = "cpu",
    strided: bool = False,
) -> tuple[Any, ...]:
    """Arguments for ``program``, as `tensors` draws them.

    Args:
        program: what they are for.
        device: where they live.
        strided: as in `tensors`.

    Example:
        >>> from hypothesis import given, strategies as st
        >>> from torchjac.testing import strategies
        >>> @given(st.data(), strategies.programs())
        ... def test_runs(data, program):
        ...     program(*data.draw(strategies.arguments(program)))
        >>> test_runs()
    """

    def of(spec: TensorSpec) -> Tensor:
        return draw(tensors(spec.shape, dtype=program.dtype, device=device, strided=strided))

    drawn = []
    for tree in program.specs:
        leaves, structure = flatten(tree)
        drawn.append(unflatten([of(spec) for spec in leaves], structure))
    return tuple(drawn)


@st.composite
def programs_with_arguments(  # noqa: D417 - Hypothesis passes draw
    draw: st.DrawFn,
    /,
    *,
    scalar: bool = False,
    device: str | torch.device = "cpu",
    strided: bool = False,
    **options: Any,
) -> tuple[Program, tuple[Any, ...]]:
    """Pairs of a program and arguments for it.

    Args:
        scalar: draw from `scalar_programs` in place of `programs`.
        device: as in `tensors`.
        strided: as in `tensors`.
        **options: of `programs` or `scalar_programs`.

    Example:
        >>> import torchjac
        >>> from hypothesis import given, settings
        >>> from torchjac.testing import check_jac, strategies
        >>> @settings(deadline=None)
        ... @given(strategies.programs_with_arguments(smooth=True))
        ... def test_reverse_mode(case):
        ...     program, args = case
        ...     check_jac(program, *args, jac=torchjac.jac(program, mode="reverse"))
        >>> test_reverse_mode()
    """
    program = draw(scalar_programs(**options) if scalar else programs(**options))
    return program, draw(arguments(program, device=device, strided=strided))


def argnums(program: Program) -> st.SearchStrategy[int | tuple[int, ...]]:
    """What ``program`` can be differentiated by: one argument, or a tuple of several in any order.

    Args:
        program: what is differentiated.

    Example:
        >>> from hypothesis import find
        >>> from torchjac.testing import strategies
        >>> program = find(strategies.programs(), lambda program: len(program.specs) == 2)
        >>> find(strategies.argnums(program), lambda chosen: isinstance(chosen, tuple))
        (0,)
    """
    numbers = st.integers(0, len(program.specs) - 1)
    return numbers | st.lists(numbers, min_size=1, unique=True).map(tuple)


def _composed(
    draw: st.DrawFn,
    /,
    allowed: Sequence[Operator],
    max_operators: int,
    max_arguments: int,
    dtype: torch.dtype,
) -> Builder:
    """Draw the inputs, then operators on whatever is there."""

    def pick(options: Sequence[T]) -> T:
        return draw(st.sampled_from(options))

    # A program's shapes share few sides, so that operands often fit each other.
    sides = pick(((2,), (2, 3), (2, 1), (1,), (3,), (2, 0), (3, 1), (0,)))
    leaf = st.lists(st.sampled_from(sides), max_size=3).map(tuple)
    small = leaf.filter(lambda shape: math.prod(shape) <= LARGEST_LEAF).map(TensorSpec)
    specs = draw(st.lists(trees(small, max_leaves=2), min_size=1, max_size=max_arguments))
    builder = Builder(tuple(specs), dtype)
    for _ in range(pick((*range(1, max_operators + 1), 0))):
        # Not everything fits everywhere; what does not is tried again with another operator.
        any(builder.apply(pick(allowed), pick) for _ in range(3))
    return builder


def _allowed(operators: Iterable[str] | None, smooth: bool, order: int) -> list[Operator]:
    """The operators to draw from: those named, or all that can be trusted up to ``order``."""
    known = {operator.name: operator for operator in OPERATORS}
    if operators is None:
        trusted = [operator for operator in OPERATORS if not 0 < operator.trap <= order]
        return [operator for operator in trusted if operator.smooth or not smooth]
    unknown = sorted(set(operators) - set(known))
    if unknown:
        raise OptionError(f"programs(operators=...): no operator is called {', '.join(unknown)}")
    return [known[name] for name in operators]


def _written(tree: Any) -> str:
    """The source of a tree whose leaves are source."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {_written(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(_written, tree)) + "]"
    if isinstance(tree, tuple):
        return "(" + ", ".join(map(_written, tree)) + ("," if len(tree) == 1 else "") + ")"
    return str(tree)
