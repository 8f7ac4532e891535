"""out=: a result written into tensors of the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from torchjac.errors import ArgumentError, ArgumentTypeError
from torchjac.evaluation.evaluator import write
from torchjac.foundations.overlap import overlapping, shares_elements
from torchjac.foundations.pytree import flatten
from torchjac.foundations.strides import are_in_one_place
from torchjac.planning.problem import Problem
from torchjac.planning.solve import solve

__all__ = ["Named", "written"]


class Named(Protocol):
    """What is known of a transform whose result is written."""

    @property
    def name(self) -> str: ...

    def tree(self, call: Any, outcome: Any, leaves: Sequence[Sequence[Any]]) -> Any: ...


def written(transform: Named, out: Any, call: Any, problem: Problem) -> Any:
    """Solve a problem into the tensors of ``out``, and return what the call does."""
    given = _Given(transform, out, call, problem)
    problem.into = given.leaves
    with torch.no_grad():
        answer = solve(problem)
        # What was compressed, made again after a check, or has no room of the right strides.
        rows = answer.laid_out()
        for row, places in zip(rows, given.leaves_of(rows, answer.outcome), strict=True):
            for leaf, place in zip(row, places, strict=True):
                if not are_in_one_place(leaf, place):
                    write(place, leaf)
    return call.packed(out, answer)


class _Given:
    """The tensors of ``out``, held against the result that is about to be written into them."""

    def __init__(self, transform: Named, out: Any, call: Any, problem: Problem) -> None:
        self._transform, self._call, self._problem = transform, call, problem
        self._leaves, self._spec = flatten(out)
        self._name = transform.name
        self._refuse_shared_memory()

    def leaves(self, values: Sequence[Tensor]) -> list[list[Tensor]]:
        """The tensors ``[output][input]`` for outputs like ``values``, if all of them are right."""
        at = int(self._problem.batched)
        shapes = [
            [(*value.shape, *primal.shape[at:]) for primal in self._problem.primals]
            for value in values
        ]
        return self._checked(shapes, self._problem.outcome())

    def leaves_of(self, rows: Sequence[Sequence[Tensor]], outcome: Any) -> list[list[Tensor]]:
        """The tensors for the leaves of an answer."""
        return self._checked([[tuple(leaf.shape) for leaf in row] for row in rows], outcome)

    def _checked(
        self, shapes: Sequence[Sequence[tuple[int, ...]]], outcome: Any
    ) -> list[list[Tensor]]:
        width = len(self._problem.primals)
        # The tree of the result, with the number of a leaf for every leaf.
        numbers = [[o * width + i for i in range(width)] for o in range(len(shapes))]
        order, spec = flatten(self._transform.tree(self._call, outcome, numbers))
        if spec != self._spec or any(
            (number is None) != (leaf is None)
            for number, leaf in zip(order, self._leaves, strict=True)
        ):
            raise ArgumentError(
                f"{self._name}(out=...): expected the tree of the result, {spec}; got {self._spec}. Calling "
                f"{self._name} without out shows it."
            )
        found: dict[int, Tensor] = {}
        for number, leaf in zip(order, self._leaves, strict=True):
            if number is not None:
                o, i = divmod(number, width)
                self._check(leaf, shapes[o][i], self._problem.primals[i])
                found[number] = leaf
        return [[found[number] for number in row] for row in numbers]

    def _check(self, leaf: object, shape: tuple[int, ...], primal: Tensor) -> None:
        expected = f"expected a tensor {tuple(shape)} of {primal.dtype} on {primal.device}"
        where = f"{self._name}(out=...)"
        if not isinstance(leaf, Tensor):
            raise ArgumentTypeError(f"{where}: {expected}, got a {type(leaf).__name__}.")
        if leaf.layout is not torch.strided:
            raise ArgumentTypeError(f"{where}: {expected}, got one of {leaf.layout}.")
        if leaf.dtype != primal.dtype or leaf.device != primal.device:
            raise ArgumentTypeError(f"{where}: {expected}, got {leaf.dtype} on {leaf.device}.")
        if tuple(leaf.shape) != tuple(shape):
            raise ArgumentError(f"{where}: {expected}, got shape {tuple(leaf.shape)}.")
        if leaf.requires_grad:
            raise ArgumentError(
                f"{where}: the tensor requires grad, and what is written carries no graph. Pass "
                f"out.detach(), which shares its memory."
            )

    def _refuse_shared_memory(self) -> None:
        """What is written for one leaf must not change another, nor what func reads."""
        where = f"{self._name}(out=...)"
        leaves = _strided(self._leaves)
        if any(shares_elements(leaf) for leaf in leaves):
            raise ArgumentError(
                f"{where}: elements of the tensor share memory. Pass out.contiguous()."
            )
        if overlapping(leaves):
            raise ArgumentError(f"{where}: two tensors share memory. Give every leaf its own.")
        inputs = [*self._problem.primals, *self._call.others()[0]]
        if overlapping(leaves, _strided(inputs)):
            raise ArgumentError(
                f"{where}: the tensor shares its memory with an input. Give it memory of its own."
            )
        if overlapping(leaves, _strided(self._call.captured())):
            raise ArgumentError(
                f"{where}: the tensor shares its memory with one that func captures, which would change "
                f"under its hands. Give it memory of its own."
            )


def _strided(leaves: Sequence[object]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
