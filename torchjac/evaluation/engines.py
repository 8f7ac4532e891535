"""The engines: a function evaluated at a point, ready to be multiplied with seeds.

An engine is made from a *flat function*, which takes a list of tensors and returns two tuples: the
differentiable outputs, and whatever tensors have to come along (integer outputs, auxiliary data).

===========  =====================================  ============================================
engine       one pass                               where
===========  =====================================  ============================================
`Graph`      one backward over a recorded graph     eager code, and graphs that already exist
`Pullback`   the same through `torch.func.vjp`      inside vmap, grad, jvp and torch.compile
`Push`       one evaluation on dual numbers         everywhere
===========  =====================================  ============================================
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from torchjac.evaluation.batching import (
    load_forward_rules,
    vectorised,
    vectorised_beside,
    vectorised_eagerly,
)
from torchjac.evaluation.duals import pushed, pushed_by_jvp
from torchjac.evaluation.graphs import borders, captures, failing_op
from torchjac.evaluation.operands import Constants
from torchjac.evaluation.surroundings import (
    carry_tangents,
    compiling,
    inside_transform,
    is_out_of_memory,
    unwatched,
)
from torchjac.foundations.compiler import uncompiled
from torchjac.foundations.lending import are_lent
from torchjac.foundations.overlap import shares_elements
from torchjac.foundations.seeds import Chunk

__all__ = [
    "Direction",
    "Engine",
    "FlatFunction",
    "Graph",
    "Pullback",
    "Push",
    "linearize",
    "record",
]

# The number that the next node of a graph will get; before torch 2.1 it is not told.
_sequence_number: Callable[[], int] | None = getattr(torch.autograd, "_get_sequence_nr", None)
_run_backward = torch.autograd.Variable._execution_engine.run_backward

Direction: TypeAlias = Literal["forward", "reverse"]
FlatFunction: TypeAlias = Callable[
    [Sequence[Tensor]], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
]


class Engine(ABC):
    """A function at a point. Forward engines take seeds of the inputs, reverse ones of the outputs."""

    direction: Direction
    primals: Sequence[Tensor]
    values: Sequence[Tensor]
    """The differentiable outputs; a forward engine has them after its first pass."""
    carried: Sequence[Tensor]
    keeps_graph: bool
    """Whether products are themselves differentiable, so that they cannot be written into a buffer."""
    outlives_passes = True
    """Whether passes can follow the last one; else that one frees what they share."""

    @property
    def graph(self) -> Graph | None:
        """What plain autograd has recorded of the function, if that is what the passes go over."""
        return None

    @property
    def evaluates_anew(self) -> bool:
        """Whether every pass evaluates the function, so that it has to find the same random state."""
        return self.direction == "forward"

    @abstractmethod
    def multiply(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        """Products of one seed with every leaf on the other side; None stands for zeros.

        ``last`` promises that no other pass follows, so that what the passes share can be freed.
        """

    def multiply_all(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        """The products of a whole stack of seeds, stacked likewise: one vmapped pass."""
        return vectorised(lambda one: self.multiply(one, last=last), seeds)


class Graph(Engine):
    """Passes over a graph that plain autograd has recorded."""

    direction: Direction = "reverse"

    def __init__(
        self,
        values: Sequence[Tensor],
        primals: Sequence[Tensor],
        carried: Sequence[Tensor] = (),
        *,
        create_graph: bool = False,
        retain_graph: bool = False,
        find_borders: Callable[[], list[Tensor] | None] | None = None,
    ) -> None:
        self.values, self.primals, self.carried = values, primals, carried
        self.keeps_graph = create_graph
        self.outlives_passes = retain_graph or create_graph
        self._find_borders = find_borders

    @property
    def graph(self) -> Graph:
        """Itself."""
        return self

    def borders(self) -> list[Tensor] | None:
        """Where the graph of differentiable products ends, if that can be told; see `deferred`."""
        return self._find_borders() if self.keeps_graph and self._find_borders else None

    def without_graph(self) -> Graph:
        """The same graph for products that are not differentiable."""
        return Graph(self.values, self.primals, self.carried, retain_graph=True)

    def multiply(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        # An output that does not require grad depends on no input: its rows are zeros.
        values, reached = self.values, {}
        for leaf, seed in seeds.items():
            if values[leaf].requires_grad:
                reached[leaf] = seed
        if not reached:
            return [None] * len(self.primals)
        if len(values) > len(seeds):
            reached = self._with_siblings(reached)
        # What torch.autograd.grad calls after validating what is known to be right here.
        products: Sequence[Tensor | None] = _run_backward(
            tuple(map(values.__getitem__, reached)),
            tuple(reached.values()),
            self.outlives_passes or not last,
            self.keeps_graph,
            tuple(self.primals),
            True,  # a primal that was not used has None for a gradient
            accumulate_grad=False,
        )
        return list(products)

    def _with_siblings(self, seeds: Chunk) -> Chunk:
        """The seeds, and zeros for the other outputs of the same ops.

        Some backward formulas (`native_group_norm`) take an output that has no cotangent for a sign
        that nothing is wanted at all.
        """
        ops = {self.values[leaf].grad_fn for leaf in seeds}
        siblings = [
            leaf
            for leaf, value in enumerate(self.values)
            if value.requires_grad and value.grad_fn in ops
        ]
        return {
            leaf: seeds[leaf] if leaf in seeds else torch.zeros_like(self.values[leaf])
            for leaf in siblings
        }

    def multiply_all(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        try:
            return vectorised_eagerly(functools.partial(self.multiply, last=last), seeds)
        except Exception as error:
            # A batching rule that is missing shows far from the op that wants it; find its name.
            if not is_out_of_memory(error):
                repeat = functools.partial(super().multiply_all, seeds, last=False)
                error.torchjac_op = failing_op(self.values, repeat)  # type: ignore[attr-defined]
            raise


class Pullback(Engine):
    """Passes through `torch.func.vjp`, which records its graph at a level of its own."""

    direction: Direction = "reverse"
    keeps_graph = True

    def __init__(self, function: FlatFunction, primals: Sequence[Tensor]) -> None:
        self.primals = primals
        # PyTorch's annotation leaves out what has_aux adds.
        with uncompiled():
            self.values, self._pull, self.carried = torch.func.vjp(  # type: ignore[misc]
                lambda *leaves: function(leaves), *primals, has_aux=True
            )

    def multiply(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        del last
        cotangents = tuple(
            seeds[leaf] if leaf in seeds else torch.zeros_like(value)
            for leaf, value in enumerate(self.values)
        )
        return list(self._pull(cotangents))


class Push(Engine):
    """Passes on dual numbers, as by `torch.func.jvp`; every pass evaluates the function anew."""

    direction: Direction = "forward"

    def __init__(
        self,
        function: FlatFunction,
        primals: Sequence[Tensor],
        *,
        constants: bool = True,
        eager: bool = False,
    ) -> None:
        """``eager`` is whether `is_eager` has been asked already."""
        self._function, self._traced = function, not eager and compiling()
        self.primals = [_with_memory_of_its_own(primal) for primal in primals]
        around = not eager and (self._traced or inside_transform())
        self.keeps_graph = around or torch.is_grad_enabled()
        self._constants = self._on_copies = None
        if not self._traced:
            load_forward_rules()
            self._constants = Constants() if constants and unwatched() else None
            self._on_copies = getattr(function, "on_copies", None)

    @property
    def keeps_constants(self) -> bool:
        """Whether to keep operands without a tangent apart, for all that the passes have shown."""
        return self._constants is None or self._constants.are_worth_it

    def multiply(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        del last
        return self._multiplied(seeds, *self._evaluation(seeds))

    def _evaluation(self, seeds: Chunk) -> tuple[FlatFunction, Sequence[Tensor]]:
        """What to evaluate, and where.

        A function may write into its argument, and so into a tangent. Where it may write into the seeds, the
        primals alone are copied for it.
        """
        if self._on_copies is None or not are_lent(seeds.values()):
            return self._function, self.primals
        return self._on_copies, [primal.clone() for primal in self.primals]

    def _multiplied(
        self, seeds: Chunk, function: FlatFunction, primals: Sequence[Tensor]
    ) -> list[Tensor | None]:
        def partial(*leaves: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            full = list(primals)
            for index, leaf in zip(seeds, leaves, strict=True):
                full[index] = leaf
            return function(full)

        here, tangents = [primals[leaf] for leaf in seeds], list(seeds.values())
        if self._traced:
            found = pushed_by_jvp(partial, here, tangents)
        else:
            with uncompiled(getattr(self._function, "may_be_compiled", True)):
                found = pushed(partial, here, tangents, self._constants)
        self.values, products, self.carried = found
        return list(products)

    def multiply_all(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        del last
        function, primals = self._evaluation(seeds)

        def product(one: Chunk) -> tuple[list[Tensor | None], list[Tensor]]:
            products = self._multiplied(one, function, primals)
            return products, [*self.values, *self.carried]

        products, beside = vectorised_beside(product, seeds, self._traced)
        # The primal side is the same for every seed.
        self.values, self.carried = beside[: len(self.values)], beside[len(self.values) :]
        return products


def _with_memory_of_its_own(primal: Tensor) -> Tensor:
    """A primal whose elements are apart: of a dual number that they share PyTorch gets tangents wrong."""
    if primal.is_contiguous() or not (compiling() or shares_elements(primal)):
        return primal
    return primal.contiguous()


def linearize(
    function: FlatFunction,
    primals: Sequence[Tensor],
    direction: Direction,
    *,
    constants: bool = True,
) -> Engine:
    """Make the engine for ``direction`` that works here.

    ``constants`` is whether to keep apart, in forward mode, the operands that have no tangent.
    """
    if direction == "forward":
        return Push(function, primals, constants=constants)
    if compiling() or inside_transform() or carry_tangents(primals):
        return Pullback(function, primals)
    return record(function, primals)


def record(function: FlatFunction, primals: Sequence[Tensor]) -> Graph:
    """Evaluate ``function`` with plain autograd on private leaves.

    A primal that the caller differentiates stays connected to the caller's graph through a view;
    any other becomes a leaf nobody else can see, so that no flag and no gradient leaks.
    """
    differentiable = torch.is_grad_enabled()
    may_capture = differentiable and getattr(function, "may_capture", True)
    leaves: list[Tensor] = []
    outside: list[Tensor] = []
    if getattr(function, "captures_primals", False) and all(p.requires_grad for p in primals):
        # A module's own parameters: they are leaves already, and nothing has to be swapped.
        leaves = outside = list(primals)
    else:
        for primal in primals:
            if differentiable and primal.requires_grad:
                leaf = primal.view_as(primal)
                outside.append(leaf)
            else:
                leaf = primal.detach().requires_grad_()
            leaves.append(leaf)
    start = _sequence_number() if _sequence_number and (outside or may_capture) else None
    # What torch.enable_grad does, in three calls more.
    torch._C._set_grad_enabled(True)
    try:
        values, carried = function(leaves)
    finally:
        torch._C._set_grad_enabled(differentiable)
    create_graph = differentiable and (bool(outside) or (may_capture and captures(values, leaves)))
    find = None
    if create_graph and start is not None and _sequence_number:
        find = functools.partial(borders, values, leaves, outside, start, _sequence_number())
    # Nobody else holds this graph, so it is freed with the engine. Until then it stays whole, and a
    # chunk that runs out of memory can be tried again.
    return Graph(
        values,
        leaves,
        carried,
        create_graph=create_graph,
        retain_graph=True,
        find_borders=find,
    )
