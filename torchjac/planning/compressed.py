"""Sparse problems: which colours, which of them in which mode, and the entries read off their products."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from torchjac.errors import PatternError
from torchjac.evaluation.engines import Direction
from torchjac.evaluation.surroundings import without_transforms
from torchjac.foundations.checksums import checksum
from torchjac.foundations.digests import Digest, digest
from torchjac.foundations.identity import Identity
from torchjac.foundations.layout import Layout
from torchjac.foundations.store import Store
from torchjac.planning.modes import FORWARD_COST
from torchjac.planning.ways import Way
from torchjac.structure.blocks import SparseBlock
from torchjac.structure.color import color
from torchjac.structure.coloring import By, Coloring
from torchjac.structure.decompression import Recovery
from torchjac.structure.pattern import SparsityPattern
from torchjac.structure.seeds import ColorSeeds

__all__ = ["Compression"]

_colorings: Store[Coloring] = Store(most=64, heaviest=2**28)

# Of an entry: its row and column, where it is read from, the same again in the layouts, and seeds.
_BYTES_PER_ENTRY = 12 * 8

# Seeds that are kept have no more elements than that: making them takes as long as reading the entries.
_SEEDS_PER_ENTRY = 2

# What depends on how dear the passes of one mode are in those of the other.
_MIXED = ("auto", "bidirectional")


def _colored(
    pattern: SparsityPattern, by: By | Literal["auto"], forward_cost: float = FORWARD_COST
) -> Coloring:
    """Colour a pattern once, whoever asks: people give the same pattern to a transform in a loop."""
    key = (pattern, by, forward_cost if by in _MIXED else None)
    known = _colorings.get(key)
    if known is None:
        with without_transforms():
            known = color(pattern, by, row_cost=1, column_cost=forward_cost)
        asked: By | Literal["auto"]
        for asked in {by, known.by}:  # "auto" is one of the others
            at = (pattern, asked, forward_cost if asked in _MIXED else None)
            _colorings.put(at, known, _BYTES_PER_ENTRY * pattern.nnz)
    return known


class Compression:
    """A sparsity pattern put to use: seeds for each way, and how the entries are recovered.

    Args:
        pattern: rows over the elements of all outputs, columns over those of all inputs.
        constants: tensors whose values it was found with.
        symmetric: whether it is that of the Hessian of one output.
        name: the call that the user made, for messages.
        colorings: those that are known already.
        forward_cost: of a forward pass in backward passes.
        given: the one that the user wants.
    """

    def __init__(
        self,
        pattern: SparsityPattern,
        constants: Sequence[Tensor] = (),
        *,
        symmetric: bool,
        name: str,
        colorings: Iterable[Coloring] = (),
        forward_cost: float = FORWARD_COST,
        given: Coloring | None = None,
    ) -> None:
        self.pattern, self.symmetric, self._name = pattern, symmetric, name
        self._given = given
        known = [*colorings, given] if given else colorings
        self._colored: dict[By, Coloring] = {coloring.by: coloring for coloring in known}
        self._forward_cost = forward_cost
        self._recoveries: dict[str, Recovery] = {}
        self._seeds: dict[tuple[str, Direction], ColorSeeds] = {}
        self._digests: dict[By, dict[str, Digest]] = {}
        self._constants = [
            (weakref.ref(tensor), None if tensor.is_inference() else tensor._version)
            for tensor in constants
        ]
        self._checksums = self._summed_up()

    @property
    def nbytes(self) -> int:
        """What it holds, or will, once it is used."""
        return _BYTES_PER_ENTRY * self.pattern.nnz

    @property
    def colorings(self) -> list[Coloring]:
        """Those that have been asked for."""
        return list(self._colored.values())

    @property
    def constants(self) -> list[Tensor]:
        """The captured tensors, as far as they are still there, whose values shaped the pattern."""
        return [tensor for ref, _ in self._constants if (tensor := ref()) is not None]

    @property
    def relies_on_constants(self) -> bool:
        """Whether the values of captured tensors shaped the pattern."""
        return bool(self._constants)

    def places_of_constants(self, tensors: Sequence[Identity]) -> frozenset[int] | None:
        """Which of the captured tensors shaped the pattern; None if it was something made of them."""
        places = [
            [place for place, tensor in enumerate(tensors) if tensor.is_of(ref)]
            for ref, _ in self._constants
        ]
        return frozenset(itertools.chain(*places)) if all(places) else None

    @property
    def is_stale(self) -> bool:
        """Whether a tensor that the pattern was found with has been changed in place."""
        for ref, version in self._constants:
            tensor = ref()
            if tensor is not None and version is not None and tensor._version != version:
                return True
        return False

    @property
    def is_true_to_constants(self) -> bool:
        """Whether these hold what they held, bit for bit.

        What is written through ``.data`` or an array PyTorch does not count as a change.
        """
        return not self._constants or (not self.is_stale and self._checksums == self._summed_up())

    def _summed_up(self) -> list[bytes]:
        with without_transforms():
            return [checksum(tensor) for tensor in self.constants]

    def check_shape(self, num_rows: int, num_columns: int) -> None:
        """Refuse a pattern that is not one of a derivative with so many rows and columns."""
        if self.pattern.shape != (num_rows, num_columns):
            raise PatternError(self._misfit(f"{num_rows} rows and {num_columns} columns"))

    def _misfit(self, expected: str) -> str:
        rows, columns = self.pattern.shape
        return (
            f"{self._name}(sparsity=...): the pattern is {rows}×{columns}, but the derivative has "
            f"{expected}. A pattern has a row for every element of the outputs (for a Hessian, of the "
            f"gradient) and a column for every element of the inputs that are differentiated by, leaf "
            f"after leaf."
        )

    def chosen(self) -> By:
        """Whether columns, rows or both take the cheapest passes, or those that the user wants."""
        return (
            self._given.by if self._given else _colored(self.pattern, "auto", self._forward_cost).by
        )

    def is_wanted(self, way: Way) -> bool:
        """Whether ``way`` takes the colours that the user wants, if any."""
        return self._given is None or self._given.by == self._by(way)

    def coloring(self, way: Way) -> Coloring:
        """The colours that ``way`` needs."""
        by = self._by(way)
        known = self._colored.get(by)
        if known is None:
            known = self._colored[by] = _colored(self.pattern, by, self._forward_cost)
        return known

    def _by(self, way: Way) -> By:
        if self.symmetric:
            return "symmetric"
        if way.both:
            return "bidirectional"
        return "columns" if way.direction == "forward" else "rows"

    def directions(self, way: Way) -> tuple[Direction, ...]:
        """The engines that ``way`` takes its products from."""
        coloring = self.coloring(way)
        colors: dict[Direction, int] = {way.direction: coloring.num_colors}
        if way.both:
            colors = {"forward": coloring.num_column_colors, "reverse": coloring.num_row_colors}
        # Without a colour there is no pass, and only a reverse engine knows its outputs without one.
        return tuple([direction for direction, count in colors.items() if count]) or ("reverse",)

    def seeds(self, way: Way, direction: Direction, layout: Layout) -> ColorSeeds:
        """The seeds over the leaves on the side that ``direction`` takes them from."""
        key = (self._by(way), direction)
        known = self._seeds.get(key)
        if known is not None and known.layout.kinds == layout.kinds:
            return known
        coloring = self.coloring(way)
        by_columns = direction == "forward" or self.symmetric
        colors = coloring.column_indices if by_columns else coloring.row_indices
        if colors is not None and len(colors) != layout.total:
            side = "columns" if direction == "forward" else "rows"
            raise PatternError(self._misfit(f"{layout.total} {side}"))
        number = coloring.num_column_colors if by_columns else coloring.num_row_colors
        with without_transforms():
            few = max(_SEEDS_PER_ENTRY * self.pattern.nnz, ColorSeeds.few)
            seeds = self._seeds[key] = ColorSeeds(layout, colors, number, few)
        return seeds

    def digests(self, way: Way) -> dict[str, Digest]:
        """What ranks that share the products of ``way`` have to agree on: the colours, the entries."""
        by = self._by(way)
        if by not in self._digests:
            coloring, (rows, cols) = self.coloring(way), self.pattern.coo
            indices = {
                "the colours of the columns": coloring.column_indices,
                "the colours of the rows": coloring.row_indices,
                "the rows of the pattern's entries": rows,
                "the columns of the pattern's entries": cols,
            }
            self._digests[by] = {
                name: digest(torch.from_numpy(numbers.copy()))
                for name, numbers in indices.items()
                if numbers is not None
            }
        return self._digests[by]

    def prepare(
        self, way: Way, outputs: Sequence[Tensor], primals: Sequence[Tensor], layout: torch.layout
    ) -> None:
        """Make what ``way`` needs now: in a trace it would become a part of what is traced."""
        for direction in self.directions(way):
            self.seeds(way, direction, Layout(outputs if direction == "reverse" else primals))
        self.recovery(way, outputs, primals).prepare(layout)

    def recovery(self, way: Way, outputs: Sequence[Tensor], primals: Sequence[Tensor]) -> Recovery:
        """How the entries are read off the products."""
        by = self._by(way)
        known = self._recoveries.get(by)
        if known is not None and known.fits(outputs, primals):
            return known
        rows, columns = Layout(outputs), Layout(primals)
        self.check_shape(rows.total, columns.total)
        coloring = self.coloring(way)
        with without_transforms():
            recovery = self._recoveries[by] = Recovery(coloring, rows, columns)
        return recovery

    def blocks(
        self,
        way: Way,
        products: dict[Direction, list[Tensor]],
        outputs: Sequence[Tensor],
        primals: Sequence[Tensor],
    ) -> list[list[SparseBlock]]:
        """The entries of the Jacobian, block by block ``[output][input]``.

        Args:
            way: what the products were made by.
            products: by direction, with each leaf of the other side.
            outputs: the leaves that the rows run over.
            primals: the leaves that the columns run over.
        """
        recovery = self.recovery(way, outputs, primals)
        if self.symmetric:
            # H = Hᵀ: products with the rows of a colour are products with its columns.
            return recovery.blocks(next(iter(products.values())), ())
        return recovery.blocks(products.get("forward", ()), products.get("reverse", ()))
