"""Narrow waists: a derivative as a product of factors, each made and multiplied the cheapest way.

Where all that leads from the seeds to the products runs through k numbers, J = J₁·J₂ with k columns and
rows between. The factors are stretches of one linear graph; `structure.cuts` finds where they meet, and
`brackets` decides in which order and direction they are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from torchjac.evaluation.engines import Direction
from torchjac.evaluation.evaluator import run
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.programs.linear import LinearGraph, Point
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds, MatrixSeeds
from torchjac.planning.brackets import (
    Against,
    Along,
    Bracketing,
    ContinueAgainst,
    Product,
    Tree,
    bracket,
    one_way,
)
from torchjac.planning.costs import cost_of
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.ways import Way
from torchjac.structure.cuts import find_cuts, segments

__all__ = ["Waist", "find_waist", "multiplied"]

# No seed can be made for an operation's several results together.
_NO_TENSOR = 1 << 40
# An element that is written and read, in flops.
_PER_ELEMENT = 20


@dataclass(frozen=True)
class Waist:
    """Cuts of a linear graph, and how the chain between them is multiplied out."""

    cuts: tuple[tuple[Node, ...], ...]
    bracketing: Bracketing
    saves: float
    """The cost over that of the better single mode, counted."""

    @property
    def passes(self) -> int:
        """The seeds that are sent through any part of the graph."""
        return self.bracketing.passes

    @property
    def narrowest(self) -> int:
        """The elements of the narrowest cut."""
        return min(self.bracketing.sizes)


def find_waist(linear: LinearGraph) -> Waist | None:
    """Find the cuts of a linear graph that make its matrix cheaper, if there are any."""
    nodes = list(dict.fromkeys([*linear.seeds, *linear.linear]))
    number = {node: at for at, node in enumerate(nodes)}
    before = [[number[p] for p in node.all_input_nodes if p in number] for node in nodes]
    sizes = [_size(node) for node in nodes]
    sinks = {number[p] for p in linear.products if p is not None and p in number}
    if not sinks or len({t.dtype for t in map(_value, nodes) if t is not None}) > 1:
        return None
    cuts = find_cuts(before, sizes, range(len(linear.seeds)), sinks)
    if len(cuts) < 3 or any(cut.size >= _NO_TENSOR for cut in cuts):
        return None
    costs = [sum(map(_cost, [nodes[at] for at in part])) for part in segments(cuts, before)]
    widths = [cut.size for cut in cuts]
    single, best = one_way(widths, costs), bracket(widths, costs)
    if isinstance(best.tree, Along | Against):
        return None
    return Waist(
        tuple(tuple(nodes[at] for at in cut.nodes) for cut in cuts), best, best.cost / single.cost
    )


def _value(node: Node) -> Tensor | None:
    value = node.meta["val"]
    return value if isinstance(value, Tensor) else None


def _size(node: Node) -> int:
    value = _value(node)
    return _NO_TENSOR if value is None else value.numel()


def _cost(node: Node) -> int:
    value = _value(node)
    return cost_of([node]).flops + _PER_ELEMENT * (0 if value is None else value.numel())


def multiplied(problem: Problem, way: Way, waist: Waist) -> Answer:
    """Multiply the chain out at a point, and cut the matrix into the leaves of the Jacobian."""
    point = problem.point
    assert point is not None
    matrix = _matrix(point, waist, waist.bracketing.tree)
    rows = _spread(matrix, waist.cuts[0], point.seeds, dim=0)
    leaves = []
    for block, value in zip(rows, point.values, strict=True):
        columns = _spread(block, waist.cuts[-1], point.products, dim=1)
        row = []
        for part, primal in zip(columns, problem.primals, strict=True):
            if part is None:
                part = value.new_zeros(value.numel(), primal.numel())
            row.append(part.reshape(*value.shape, *primal.shape).to(primal.dtype))
        leaves.append(row)
    values, carried = point.values, point.carried
    if isinstance(point.function, Jacobian):
        count = point.function.num_values
        values, carried = carried[:count], carried[count:]
    return Answer(way, waist.passes, leaves, values, carried, None, None)


def _spread(
    matrix: Tensor | None, cut: Sequence[Node], wanted: Sequence[Node | None], dim: int
) -> list[Tensor | None]:
    """The parts of a matrix that belong to each node of ``wanted``; None for what is not in the cut."""
    if matrix is None:
        return [None] * len(wanted)
    parts = dict(zip(cut, matrix.split([_size(node) for node in cut], dim), strict=True))
    return [None if node is None else parts.get(node) for node in wanted]


def _matrix(point: Point, waist: Waist, tree: Tree) -> Tensor:
    """The matrix of a stretch of the chain: a row for each element where it starts."""
    if isinstance(tree, Product):
        return _matrix(point, waist, tree.left) @ _matrix(point, waist, tree.right)
    start, end = waist.cuts[tree.start], waist.cuts[tree.end]
    if isinstance(tree, Along | Against):
        direction: Direction = "reverse" if isinstance(tree, Along) else "forward"
        engine = point.stretch(direction, start, end)
        side = engine.values if direction == "reverse" else engine.primals
        found = _joined(run(engine, IdentitySeeds(Layout(side)), None))
        return found if direction == "reverse" else found.T
    known = _matrix(point, waist, tree.matrix)
    if isinstance(tree, ContinueAgainst):
        engine = point.stretch("forward", start, waist.cuts[tree.matrix.start])
        return _joined(run(engine, MatrixSeeds(Layout(engine.primals), known.T), None)).T
    engine = point.stretch("reverse", waist.cuts[tree.matrix.end], end)
    return _joined(run(engine, MatrixSeeds(Layout(engine.values), known), None))


def _joined(blocks: list[list[Tensor]]) -> Tensor:
    """``blocks[seed leaf][product leaf]``, each ``(k, *product)``, as one matrix."""
    rows = []
    for row in blocks:
        flat = [block.reshape(len(block), -1) for block in row]
        rows.append(flat[0] if len(flat) == 1 else torch.cat(flat, dim=1))
    return rows[0] if len(rows) == 1 else torch.cat(rows)
