"""Random programs: Python source that runs, prints as itself, and knows its arguments."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchjac.foundations.pytree import flatten, map_tree
from torchjac.testing.operators import Operator, Pick, Shape
from torchjac.testing.point import leaf_labels

__all__ = ["Builder", "Program", "TensorSpec"]

ARGUMENT_BOUND = 2.0
VALUE_BOUND = 100.0
LARGEST_SIZE = 36
OPERANDS_CONSIDERED = 6


@dataclass(frozen=True)
class TensorSpec:
    """The shape of a tensor that a program takes."""

    shape: Shape


class Program:
    r"""A deterministic function of tensors, made of `torchjac.testing.registry`.

    Calling it runs it; printing it gives source to paste into a test. Programs of equal source and
    arguments are equal.

    Args:
        source: a definition ``def program(x0, x1, ...)`` that needs nothing but ``torch``.
        specs: for each argument a tree of `TensorSpec`.
        dtype: of the arguments it is meant for.
        smooth: whether all derivatives exist everywhere, so that finite differences can judge it.
        operators: the names of what it is composed of.

    Example:
        >>> import torch
        >>> from torchjac.testing.programs import Program, TensorSpec
        >>> program = Program("def program(x0):\n    return torch.sin(x0)\n", (TensorSpec((2,)),))
        >>> program(torch.zeros(2))
        tensor([0., 0.])
        >>> print(program)
        def program(x0):
            return torch.sin(x0)
    """

    def __init__(
        self,
        source: str,
        specs: tuple[Any, ...],
        dtype: torch.dtype = torch.float64,
        smooth: bool = True,
        operators: tuple[str, ...] = (),
    ) -> None:
        self.source, self.specs, self.dtype = source, specs, dtype
        self.smooth, self.operators = smooth, operators
        namespace: dict[str, Any] = {"torch": torch}
        exec(compile(source, "<program>", "exec"), namespace)
        self.function: Callable[..., Any] = namespace["program"]
        self.__signature__ = inspect.signature(self.function)

    def __call__(self, *args: Any) -> Any:
        """Run the program."""
        return self.function(*args)

    @property
    def example_args(self) -> tuple[Any, ...]:
        """Fixed arguments that it accepts: no zeros and no ties."""
        numbers = itertools.count()

        def example(spec: TensorSpec) -> Tensor:
            size = math.prod(spec.shape)
            values = [(-1) ** k * (0.3 + 0.17 * (k % 10)) for k in itertools.islice(numbers, size)]
            return torch.tensor(values, dtype=self.dtype).reshape(spec.shape)

        return tuple(map_tree(example, spec) for spec in self.specs)

    def __repr__(self) -> str:
        return self.source.rstrip()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.source, self.dtype))

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self.source, self.specs, self.dtype, self.smooth, self.operators)


@dataclass(frozen=True)
class _Step:
    """One value of a program under construction: how it is made, and what is known of it."""

    name: str
    lines: tuple[str, ...]
    shape: Shape
    bound: float
    operator: Operator | None = None


class Builder:
    """Makes a program step by step; every step is run on examples to learn its shape."""

    def __init__(self, specs: tuple[Any, ...], dtype: torch.dtype = torch.float64) -> None:
        self._specs, self._dtype = specs, dtype
        self._names = [f"x{index}" for index in range(len(specs))]
        example = Program(f"def program({', '.join(self._names)}):\n    pass\n", specs, dtype)
        self._values: dict[str, Any] = {"torch": torch}
        self._steps: list[_Step] = []
        for name, tree in zip(self._names, example.example_args, strict=True):
            leaves, structure = flatten(tree)
            for label, leaf in zip(leaf_labels(name, structure), leaves, strict=True):
                self._add(
                    (f"{{out}} = {label}",) if label != name else (), leaf, ARGUMENT_BOUND, name
                )

    @property
    def variables(self) -> list[str]:
        """Names of the values so far, newest first."""
        return [step.name for step in reversed(self._steps)]

    def apply(self, operator: Operator, pick: Pick) -> bool:
        """Add ``operator`` on operands that fit, and say whether there were any."""
        candidates = list(self._candidates(operator))
        newest = [operands for operands in candidates if self._steps[-1] in operands]
        if not candidates:
            return False
        # Mostly go on from the last step: that makes compositions, and not many short branches.
        going_on: bool = pick((True, True, True, False))
        operands = pick(newest if newest and going_on else candidates)
        shapes = [step.shape for step in operands]
        fields = operator.fields(pick, *shapes)
        lines = self._lines(operator.template, [step.name for step in operands], fields)
        try:
            value = self._run(lines)
        except RuntimeError:
            # PyTorch lacks kernels for some operators in low precision, and only there.
            if torch.finfo(self._dtype).bits >= 32:
                raise
            return False
        if value.numel() > LARGEST_SIZE:
            return False
        bound = operator.bound(math.prod(shapes[0]), *(step.bound for step in operands))
        self._add(lines, value, bound, operator=operator)
        return True

    def finish(self, output: str) -> Program:
        """The program that returns the expression ``output``, without steps it does not need."""
        needed = _names(output)
        kept: list[_Step] = []
        for step in reversed(self._steps):
            if step.name in needed:
                kept.insert(0, step)
                needed |= {name for line in step.lines for name in _names(line)}
        lines = [line for step in kept for line in step.lines] + [f"return {output}"]
        header = f"def program({', '.join(self._names)}):"
        source = "\n    ".join([header, *lines]) + "\n"
        used = [step.operator for step in kept if step.operator is not None]
        return Program(
            source,
            self._specs,
            self._dtype,
            all(operator.smooth for operator in used),
            tuple(operator.name for operator in used),
        )

    def _candidates(self, operator: Operator) -> Iterator[tuple[_Step, ...]]:
        recent = self._steps[: -OPERANDS_CONSIDERED - 1 : -1]
        for operands in itertools.product(recent, repeat=operator.arity):
            shapes = [step.shape for step in operands]
            size = math.prod(shapes[0])
            bounds = [step.bound for step in operands]
            if operator.fits(*shapes) and operator.bound(size, *bounds) <= VALUE_BOUND:
                yield operands

    def _lines(
        self, template: str, names: Sequence[str], fields: dict[str, object]
    ) -> tuple[str, ...]:
        statements = template if "{out}" in template else "{out} = " + template
        out = f"v{len(self._steps)}"
        return tuple(
            part.strip().format(*names, out=out, **fields) for part in statements.split(";")
        )

    def _run(self, lines: Sequence[str]) -> Tensor:
        exec("\n".join(lines), self._values)
        value: Tensor = self._values[f"v{len(self._steps)}"]
        return value

    def _add(
        self,
        lines: Sequence[str],
        value: Tensor,
        bound: float,
        argument: str | None = None,
        operator: Operator | None = None,
    ) -> None:
        # An argument that is itself a leaf keeps its name; everything else is v0, v1, ...
        name = f"v{len(self._steps)}" if lines or argument is None else argument
        self._values[name] = value
        written = tuple(line.format(out=name) if argument else line for line in lines)
        self._steps.append(_Step(name, written, tuple(value.shape), bound, operator))


def _names(expression: str) -> set[str]:
    return set(re.findall(r"\b[vx]\d+\b", expression))
