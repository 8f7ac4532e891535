"""Narrow waists: a derivative as a product of factors, each made and multiplied the cheapest way.

Where all that leads from the seeds to the products runs through k numbers, J = J₁·J₂ with k columns and
rows between. The factors are stretches of one linear graph; `structure.cuts` finds where they meet, and
`brackets` decides in which order and direction they are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from torchjac.errors import TorchjacError
from torchjac.evaluation.engines import Direction, Engine
from torchjac.evaluation.evaluator import run
from torchjac.evaluation.programs.linear import LinearGraph, Point
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds, MatrixSeeds, Seeds
from torchjac.planning.compressed import Compression
from torchjac.planning.plans.brackets import (
    Against,
    Along,
    Bracketing,
    ContinueAgainst,
    Product,
    Tree,
    bracket,
    one_way,
)
from torchjac.planning.plans.costs import cost_of
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.ways import Way
from torchjac.structure.cuts import find_cuts, segments
from torchjac.structure.pattern import SparsityPattern

__all__ = ["Waist", "find_waist", "multiplied", "prepare_factors"]

_ALONG, _AGAINST = Way("reverse", True), Way("forward", True)
# A stretch with more entries is not searched for a pattern of its own.
_MOST_ENTRIES = 1 << 22
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
    factors: Mapping[int, Compression]
    """The patterns of single stretches, by the number of the cut where they start, that save passes."""
    batched: bool
    """Whether dim 0 of all tensors counts samples, each with a matrix of its own."""

    @property
    def passes(self) -> int:
        """The seeds that are sent through any part of the graph."""
        return self.bracketing.passes

    @property
    def narrowest(self) -> int:
        """The elements of the narrowest cut."""
        return min(self.bracketing.sizes)


def find_waist(linear: LinearGraph, samples: int | None = None) -> Waist | None:
    """Find the cuts of a linear graph that make its matrix cheaper, if there are any.

    Args:
        linear: the graph.
        samples: how many independent samples there are along dim 0, each with a matrix of its own.
    """
    nodes = list(dict.fromkeys([*linear.seeds, *linear.linear]))
    number = {node: at for at, node in enumerate(nodes)}
    before = [[number[p] for p in node.all_input_nodes if p in number] for node in nodes]
    sizes = [_size(node, samples) for node in nodes]
    sinks = {number[p] for p in linear.products if p is not None and p in number}
    if not sinks or len({t.dtype for t in map(_value, nodes) if t is not None}) > 1:
        return None
    cuts = find_cuts(before, sizes, range(len(linear.seeds)), sinks)
    if len(cuts) < 3 or any(cut.size >= _NO_TENSOR for cut in cuts):
        return None
    each = samples or 1
    costs = [sum(_cost(nodes[at]) for at in part) // each or 1 for part in segments(cuts, before)]
    chain = tuple(tuple(nodes[at] for at in cut.nodes) for cut in cuts)
    widths = [cut.size for cut in cuts]
    factors = _factors(linear, chain, widths) if samples is None else {}
    along, against = list(widths[:-1]), list(widths[1:])
    for at, factor in factors.items():
        along[at] = factor.coloring(_ALONG).num_colors
        against[at] = factor.coloring(_AGAINST).num_colors
    best = bracket(widths, costs, along=along, against=against)
    if isinstance(best.tree, Along | Against):
        return None
    return Waist(chain, best, best.cost / one_way(widths, costs).cost, factors, samples is not None)


def _factors(
    linear: LinearGraph, chain: Sequence[Sequence[Node]], widths: Sequence[int]
) -> dict[int, Compression]:
    """The patterns of the stretches between two cuts, where colours save at least half of the passes."""
    from torchjac.structure.detection import linear_pattern

    found = {}
    for at, (start, end) in enumerate(pairwise(chain)):
        if min(widths[at : at + 2]) == 1 or widths[at] * widths[at + 1] > _MOST_ENTRIES:
            continue
        try:
            matrix = linear_pattern(*linear.stretch(start, end)).matrix
        except (TorchjacError, RuntimeError):
            continue  # whatever detection cannot follow is dense
        factor = Compression(SparsityPattern.from_scipy(matrix).T, symmetric=False, name="plan")
        fewest = min(factor.coloring(way).num_colors for way in (_ALONG, _AGAINST))
        if 2 * fewest <= min(widths[at : at + 2]):
            found[at] = factor
    return found


def _value(node: Node) -> Tensor | None:
    value = node.meta["val"]
    return value if isinstance(value, Tensor) else None


def _size(node: Node, samples: int | None) -> int:
    value = _value(node)
    if value is None:
        return _NO_TENSOR
    if samples is None:
        return value.numel()
    return value.numel() // samples if value.shape[:1] == (samples,) else _NO_TENSOR


def _cost(node: Node) -> int:
    value = _value(node)
    return cost_of([node]).flops + _PER_ELEMENT * (0 if value is None else value.numel())


def prepare_factors(waist: Waist) -> None:
    """Make what belongs to the patterns now: under trace it would become a part of the graph."""
    for at, factor in waist.factors.items():
        start, end = [[node.meta["val"] for node in cut] for cut in waist.cuts[at : at + 2]]
        factor.prepare(_ALONG, start, end, torch.strided)
        factor.prepare(_AGAINST, start, end, torch.strided)


def multiplied(problem: Problem, way: Way, waist: Waist) -> Answer:
    """Multiply the chain out at a point, and cut the matrix into the leaves of the Jacobian."""
    point = problem.point
    assert point is not None
    matrix = _Factors(point, waist, problem.chunk_size).matrix(waist.bracketing.tree)
    rows = _spread(waist, matrix, waist.cuts[0], point.seeds, dim=-2)
    first = 1 if waist.batched else 0
    leaves = []
    for block, value in zip(rows, point.values, strict=True):
        columns = _spread(waist, block, waist.cuts[-1], point.products, dim=-1)
        row = []
        for part, primal in zip(columns, problem.primals, strict=True):
            # (m, n) -> (*out, *in), or (B, m, n) -> (B, *out, *in)
            shape = (*value.shape, *primal.shape[first:])
            leaf = primal.new_zeros(shape) if part is None else part.reshape(shape)
            row.append(leaf.to(primal.dtype))
        leaves.append(row)
    return Answer(way, waist.passes, leaves, *point.evaluated(), None, None)


def _spread(
    waist: Waist,
    matrix: Tensor | None,
    cut: Sequence[Node],
    wanted: Sequence[Node | None],
    dim: int,
) -> list[Tensor | None]:
    """The parts of a matrix that belong to each node of ``wanted``; None for what is not in the cut."""
    if matrix is None:
        return [None] * len(wanted)
    counts = Layout([node.meta["val"] for node in cut], batched=waist.batched).counts
    parts = dict(zip(cut, matrix.split(counts, dim), strict=True))
    return [None if node is None else parts.get(node) for node in wanted]


@dataclass(frozen=True)
class _Factors:
    """The chain at a point, whose factors are made in chunks of so many seeds; None for all at once."""

    point: Point
    waist: Waist
    chunk_size: Any

    def matrix(self, tree: Tree) -> Tensor:
        """That of a stretch, or of each sample: a row for each element where it starts."""
        if isinstance(tree, Product):
            return self.matrix(tree.left) @ self.matrix(tree.right)
        start, end = self.waist.cuts[tree.start], self.waist.cuts[tree.end]
        if isinstance(tree, Along | Against):
            direction: Direction = "reverse" if isinstance(tree, Along) else "forward"
            engine = self.point.stretch(direction, start, end)
            factor = self.waist.factors.get(tree.start) if tree.end == tree.start + 1 else None
            if factor is not None:
                return self._recovered(engine, factor)
            side = engine.values if direction == "reverse" else engine.primals
            found = self._products(engine, IdentitySeeds(self._layout(side)))
            return found if direction == "reverse" else found.mT
        known = self.matrix(tree.matrix)
        if isinstance(tree, ContinueAgainst):
            engine = self.point.stretch("forward", start, self.waist.cuts[tree.matrix.start])
            return self._products(engine, MatrixSeeds(self._layout(engine.primals), known.mT)).mT
        engine = self.point.stretch("reverse", self.waist.cuts[tree.matrix.end], end)
        return self._products(engine, MatrixSeeds(self._layout(engine.values), known))

    def _layout(self, leaves: Sequence[Tensor]) -> Layout:
        return Layout(leaves, batched=self.waist.batched)

    def _products(self, engine: Engine, seeds: Seeds) -> Tensor:
        return _joined(run(engine, seeds, self.chunk_size), self.waist.batched)

    def _recovered(self, engine: Engine, factor: Compression) -> Tensor:
        """The matrix of one stretch, read off the products with the colours of its own pattern."""
        way = _ALONG if engine.direction == "reverse" else _AGAINST
        side = engine.values if engine.direction == "reverse" else engine.primals
        seeds = factor.seeds(way, engine.direction, Layout(side))
        (products,) = run(engine, seeds, self.chunk_size)
        blocks = factor.blocks(way, {engine.direction: products}, engine.values, engine.primals)
        return _joined(
            [
                [block.laid_out(torch.strided).reshape(value.numel(), -1) for block in row]
                for row, value in zip(blocks, engine.values, strict=True)
            ],
            batched=False,
        )


def _joined(blocks: list[list[Tensor]], batched: bool) -> Tensor:
    """``blocks[seed leaf][product leaf]``, each ``(k, *product)``, as one matrix, or one per sample."""
    rows = []
    for row in blocks:
        # (k, *product) -> (k, count), or (k, B, *product) -> (B, k, count)
        flat = [
            block.flatten(2 if batched else 1) if block.dim() > 1 + batched else block[..., None]
            for block in row
        ]
        flat = [part.transpose(0, 1) for part in flat] if batched else flat
        rows.append(flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1))
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-2)
