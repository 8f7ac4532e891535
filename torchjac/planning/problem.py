"""What is asked, and what is answered: the two values that planning hands around."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from torchjac.evaluation.engines import Direction, Engine, FlatFunction, Graph
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.narrowed import Part
from torchjac.evaluation.programs.linear import Point
from torchjac.foundations.identity import Identity
from torchjac.foundations.layout import Layout
from torchjac.foundations.ranks import Ranks
from torchjac.planning.compressed import Compression
from torchjac.planning.memory import Memory, Record
from torchjac.planning.modes import ORDINARY, Work
from torchjac.planning.ways import Way, compressed_ways, hessian_ways, jacobian_ways
from torchjac.structure.blocks import SparseBlock
from torchjac.structure.coloring import Coloring
from torchjac.structure.pattern import SparsityPattern

__all__ = ["Answer", "Ask", "Destinations", "Others", "Problem"]

Others: TypeAlias = Callable[[], tuple[list[Tensor], Callable[[Sequence[Tensor]], FlatFunction]]]

Destinations: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Sequence[Tensor]]]
"""From the outputs of what is differentiated to the memory for the leaves ``[output][input]``."""


@dataclass(slots=True)
class Problem:
    """A function at a point, and how its derivative is wanted."""

    name: str
    """The call that the user made, for messages."""
    function: FlatFunction
    primals: Sequence[Tensor]
    signature: Callable[[], Hashable]
    """What makes another call the same; not asked for under a compiler."""
    likeness: Callable[[], tuple[Hashable, Sequence[Identity]]] = lambda: (None, ())
    """The same but for the tensors that the function captured, and which these are."""
    slower: FlatFunction | None = None
    """The same function without vmap around it, for when PyTorch cannot batch it."""
    recorded: Graph | None = None
    """The graph, where there is one already; the function is then never evaluated."""
    begun: Engine | Exception | None = None
    """What has come of the evaluation that the first way begins with, where somebody has begun already."""
    point: Point | None = None
    """The function evaluated already, with its derivative as a traced graph."""
    outcome: Callable[[], Any] = lambda: None
    """What belongs to the latest evaluation beside its tensors."""
    wants_value: bool = False
    """Whether what the function returned is handed out too."""
    order: int = 1
    batched: bool = False
    """Whether dim 0 of every primal and output counts independent samples."""
    promised: bool = False
    """Whether that independence is only the user's word, so that it has to be checked."""
    mode: str = "auto"
    work: Work = ORDINARY
    """What goes on inside the function, once it has been looked at."""
    chunk_size: int | Literal["auto"] | None = "auto"
    check: str = "first"
    into: Destinations | None = None
    """Memory of the caller's that a dense answer is written into where its strides allow."""
    shown: str | None = None
    """The name under which progress is shown, if it is."""
    sparsity: SparsityPattern | Coloring | Literal["detect"] | None = None
    """Where the nonzeros are, and with which colours, if anything is to be made of it."""
    whole: FlatFunction | None = None
    """Of a part of a derivative: the function before it was narrowed."""
    part: Part | None = None
    """Which part."""
    ranks: Ranks | None = None
    """Who the products of a compressed derivative are divided over."""
    others: Others | None = None
    """The tensors that the function takes beside the primals, and how to put others in their place."""
    layout: torch.layout = torch.strided
    compression: Compression | None = None
    """The sparsity put to use, once it is known."""
    is_sure: Callable[[], bool] = lambda: True
    """Whether the signature tells apart all that a pattern can depend on."""
    keep_state: Callable[[], None] = lambda: None
    """Keeps the state at the call's start, for evaluations on top of those that the user asked for."""
    noted: Callable[[Hashable, bool], Callable[[Record], None]] = lambda key, again: (
        lambda record: None
    )
    """Takes down what else the function of a signature reaches, and returns what keeps that for a record;
    ``again`` is whether the pattern is known already."""
    is_unchanged: Callable[[Hashable, Record], bool] = lambda key, record: False
    """Whether that has been taken down for the record, and is so still."""
    memory: Memory = field(default_factory=Memory)
    """What the transform remembers of earlier calls."""
    is_guest: bool = False
    """Whether what is known is of another function of the same code, over other tensors."""
    is_settled: bool = True
    """Whether the pattern is certainly one of the function as it is now, and not only as it was."""

    def take_begun(self) -> Engine | None:
        """What has been begun, once; an error is raised as if it was raised now."""
        begun, self.begun = self.begun, None
        if not isinstance(begun, Exception):
            return begun
        try:
            raise begun
        finally:
            del begun  # else the error and this frame keep each other

    def ways(self, num_outputs: int) -> tuple[Way, ...]:
        """The ways that the options leave, best first."""
        vectorise = self.chunk_size != 1
        num_inputs = Layout(self.primals, batched=self.batched).total
        if self.order == 2:
            largest = 0 if self.compression else self.work.largest
            return hessian_ways(self.mode, num_outputs, num_inputs, largest, vectorise=vectorise)
        if self.compression is not None:
            return compressed_ways(self.mode, self.compression.chosen, vectorise=vectorise)
        return jacobian_ways(
            self.mode,
            num_inputs,
            num_outputs,
            vectorise=vectorise,
            forward_cost=self.work.forward_cost(num_inputs * num_outputs),
            largest=self.work.largest,
        )

    def rows(self, output_counts: Sequence[int]) -> int:
        """The rows of the Jacobian, or of a sample's block."""
        samples = self.primals[0].shape[0] if self.batched else 1
        return sum(output_counts) // max(samples, 1)

    def differentiated(self, way: Way) -> FlatFunction:
        """The function whose Jacobian ``way`` computes; for a Hessian, a Jacobian itself."""
        if self.point is not None:
            return self.point.function
        if way.inner is None:
            return self.function
        return self.outer(way.inner, vectorise=way.vectorised)

    def outer(self, inner: Direction, *, vectorise: bool) -> FlatFunction:
        """The function that a Hessian is the Jacobian of."""
        jacobian = Jacobian(self.whole or self.function, inner, vectorise=vectorise)
        return jacobian if self.part is None else self.part.of(jacobian)


class Ask(NamedTuple):
    """What a call asks for."""

    take: Callable[[tuple[Any, ...], Mapping[str, Any]], Any]
    """Makes a call of its arguments."""
    pose: Callable[[Any], Problem]
    """The problem that it poses."""

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Problem]:
        """The call, and the problem that it poses."""
        call = self.take(args, kwargs)
        return call, self.pose(call)


@dataclass(slots=True)
class Answer:
    """What a way found."""

    way: Way
    passes: int
    leaves: Sequence[Sequence[Tensor | SparseBlock]]
    """``leaves[output][input]``; for a Hessian the outputs are the leaves of the inner Jacobian."""
    values: Sequence[Tensor]
    """The differentiable outputs of the function itself."""
    carried: Sequence[Tensor]
    outcome: Any
    """What belongs to the evaluation that the answer was read from beside its tensors."""
    graph: Graph | None
    """The graph that the answer was read from, where plain autograd recorded one."""

    def laid_out(self, layout: torch.layout = torch.strided) -> Sequence[Sequence[Tensor]]:
        """The leaves as tensors of the layout that was asked for."""
        if not isinstance(self.leaves[0][0], SparseBlock):  # all are alike
            return self.leaves  # type: ignore[return-value]
        return [
            [leaf.laid_out(layout) if isinstance(leaf, SparseBlock) else leaf for leaf in row]
            for row in self.leaves
        ]

    def handed_out(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The values and what was carried, without a graph that ends at private leaves."""
        if self.graph is None or self.graph.keeps_graph:
            return self.values, self.carried
        return [value.detach() for value in self.values], [more.detach() for more in self.carried]
