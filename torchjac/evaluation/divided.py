"""Passes divided over the ranks of a mesh, after which all of them have all products."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from torchjac.evaluation.engines import Engine
from torchjac.evaluation.evaluator import run
from torchjac.foundations.layout import Section
from torchjac.foundations.ranks import Ranks
from torchjac.foundations.seeds import Chunk, Seeds

__all__ = ["divided"]


class _Share(Seeds):
    """A stretch of other seeds, which are one group."""

    def __init__(self, seeds: Seeds, own: range) -> None:
        self.layout, self._seeds, self._own = seeds.layout, seeds, own
        self.total, self.counts = len(own), [len(own)]

    def sections(self, start: int, stop: int) -> Iterator[Section]:
        yield Section(0, start, 0, stop - start)

    def chunk(self, start: int, stop: int) -> Chunk:
        return self._seeds.chunk(self._own.start + start, self._own.start + stop)

    def _make(self, start: int, stop: int) -> dict[int, Tensor]:
        raise NotImplementedError  # only `chunk` is asked for


def divided(
    ranks: Ranks, engine: Engine, seeds: Seeds, chunk_size: int | None, *, shown: str | None
) -> list[list[Tensor]]:
    """The products of all ``seeds`` with one engine, of which this rank makes its share.

    What a rank raises, all of them raise; if all of them raise the like, each its own.
    """
    own = ranks.share(seeds.total)
    # A forward engine knows its outputs after a pass, so that even a rank without a share makes one.
    made = own or range(min(seeds.total, 1))
    try:
        (products,) = run(engine, _Share(seeds, made), chunk_size, shown=shown)
        gathers = [ranks.gathering(rows.detach()[: len(own)], seeds.total) for rows in products]
    except Exception as error:
        ranks.meet("products", error)
        raise
    ranks.facts |= {"the number of colours": seeds.total, "the mode": engine.direction}
    ranks.meet("products")
    return [[gather() for gather in gathers]]
