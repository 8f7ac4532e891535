"""The evaluator: seeds through an engine, chunk by chunk, into the blocks of a Jacobian.

    seeds -> passes -> rows of blocks

A *row* here is one product: a row of the Jacobian in reverse mode, a column in forward mode. The
evaluator does not know which, and a block comes out seed-side first, ``(k, *product.shape)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchjac.evaluation.engines import Engine
from torchjac.evaluation.surroundings import is_out_of_memory
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds

__all__ = ["assemble", "run"]

BeforeChunk = Callable[[], None]


class _Rows:
    """The products of one leaf's seeds with one leaf on the other side, gathered from chunks.

    They are written into their place where that is possible. Products that carry a graph, or live
    inside a transform, cannot be written into a buffer and are concatenated at the end.
    """

    def __init__(self, count: int, like: Tensor, writable: bool) -> None:
        self._count, self._like, self._writable = count, like, writable
        self._filled = 0
        self._buffer: Tensor | None = None
        self._pieces: list[Tensor] = []

    def add(self, rows: Tensor | None, length: int) -> None:
        """Append the next ``length`` rows; None for zeros."""
        if rows is None and not self._pieces and self._buffer is None:
            self._filled += length  # zeros so far: nothing needs to exist yet
            return
        if self._filled and not self._pieces and self._buffer is None:
            self._store(self._zeros(self._filled), 0)
        self._store(self._zeros(length) if rows is None else rows, self._filled)
        self._filled += length

    def _store(self, rows: Tensor, at: int) -> None:
        if not self._writable or len(rows) == self._count:
            self._pieces.append(rows)
            return
        if self._buffer is None:
            self._buffer = rows.new_empty(self._count, *rows.shape[1:])
        self._buffer[at : at + len(rows)] = rows

    def _zeros(self, length: int) -> Tensor:
        return self._like.detach().new_zeros(length, *self._like.shape)

    def whole(self) -> Tensor:
        """All rows, once every chunk has been added."""
        if self._buffer is not None:
            return self._buffer
        if not self._pieces:
            return self._zeros(self._count)
        return self._pieces[0] if len(self._pieces) == 1 else torch.cat(self._pieces)


def run(
    engine: Engine,
    seeds: IdentitySeeds,
    chunk_size: int | None,
    *,
    before_chunk: BeforeChunk | None = None,
) -> list[list[Tensor]]:
    """Multiply all ``seeds`` and return ``blocks[seed leaf][product leaf]``.

    Args:
        engine: the function at a point.
        seeds: what to multiply it with; at least one.
        chunk_size: seeds per vmapped pass; None for all at once. A chunk of a single seed is one
            plain pass without vmap. On running out of memory the size is halved and the same chunk
            tried again.
        before_chunk: called before every chunk but the first, to set the random state back.
    """
    total = seeds.total
    size = total if chunk_size is None else min(chunk_size, total)
    rows = _empty_rows(engine, seeds) if engine.direction == "reverse" else []
    start = 0
    while start < total:
        stop = min(start + size, total)
        if start and before_chunk is not None:
            before_chunk()
        try:
            products = _pass(engine, seeds, start, stop)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size = math.ceil(size / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        # A forward engine knows its outputs only now.
        rows = rows or _empty_rows(engine, seeds)
        for leaf, _, at, length in seeds.layout.sections(start, stop):
            for gathered, product in zip(rows[leaf], products, strict=True):
                gathered.add(None if product is None else product[at : at + length], length)
        start = stop
    return [[gathered.whole() for gathered in row] for row in rows]


def _empty_rows(engine: Engine, seeds: IdentitySeeds) -> list[list[_Rows]]:
    other_side = engine.primals if engine.direction == "reverse" else engine.values
    writable = not engine.keeps_graph
    return [[_Rows(count, like, writable) for like in other_side] for count in seeds.layout.counts]


def _pass(engine: Engine, seeds: IdentitySeeds, start: int, stop: int) -> list[Tensor | None]:
    chunk = seeds.chunk(start, stop)
    # The graph is freed by the last chunk, but never by the first: if that one fails, for memory or
    # for want of a batching rule, the passes begin again over the same graph.
    last = stop == seeds.total and start > 0
    if stop - start > 1:
        return engine.multiply_all(chunk, last=last)
    one = {leaf: stack[0] for leaf, stack in chunk.items()}
    return [None if row is None else row[None] for row in engine.multiply(one, last=last)]


def assemble(
    blocks: list[list[Tensor]], engine: Engine, primals: Sequence[Tensor], *, batched: bool
) -> list[list[Tensor]]:
    """Turn what `run` returned into the leaves ``[output][input]`` of the Jacobian.

    Dense: ``(*out, *in)``. Independent samples: ``(B, *out, *in)``. The dtype is the input's, as it
    is for any gradient, so that it does not depend on the direction.
    """
    place = _from_rows if engine.direction == "reverse" else _from_columns
    return [
        [
            place(
                blocks[o][i] if engine.direction == "reverse" else blocks[i][o],
                value.shape,
                primal.shape,
                batched,
            ).to(primal.dtype)
            for i, primal in enumerate(primals)
        ]
        for o, value in enumerate(engine.values)
    ]


def _from_rows(block: Tensor, output: torch.Size, primal: torch.Size, batched: bool) -> Tensor:
    if not batched:
        # (m, *in) -> (*out, *in)
        return block.reshape(*output, *primal)
    # (m, B, *in) -> (B, m, *in) -> (B, *out, *in)
    return block.transpose(0, 1).reshape(*output, *primal[1:])


def _from_columns(block: Tensor, output: torch.Size, primal: torch.Size, batched: bool) -> Tensor:
    if not batched:
        # (n, *out) -> (*in, *out) -> (*out, *in)
        block = block.reshape(*primal, *output)
        return block.permute(*range(len(primal), block.dim()), *range(len(primal)))
    # (n, B, *out) -> (*in, B, *out) -> (B, *out, *in)
    block = block.reshape(*primal[1:], *output)
    return block.permute(*range(len(primal) - 1, block.dim()), *range(len(primal) - 1))
