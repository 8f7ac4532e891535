"""The evaluator: seeds through an engine, chunk by chunk, into the blocks of a Jacobian.

    seeds -> passes -> rows of blocks

A *row* here is one product: a row of the Jacobian in reverse mode, a column in forward mode. The
evaluator does not know which, and a block comes out seed-side first, ``(k, *product.shape)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from torchjac.evaluation.batching import vectorised_eagerly
from torchjac.evaluation.deferred import deferred
from torchjac.evaluation.engines import Engine, Graph
from torchjac.evaluation.progress import metered
from torchjac.evaluation.repetitions import Repetitions
from torchjac.evaluation.surroundings import Draw, compiling, is_out_of_memory
from torchjac.foundations.seeds import Chunk, Seeds

__all__ = [
    "Places",
    "assemble",
    "columns_at_once",
    "places_in",
    "products_at_once",
    "rows_at_once",
    "run",
    "write",
]

Places: TypeAlias = "Callable[[Engine], list[list[Tensor | None]]]"
"""Memory for the blocks of an engine, ``[seed leaf][product leaf]``, once its values are known."""


class _Rows:
    """The products of one leaf's seeds with one leaf on the other side, gathered from chunks.

    They are written into their place where that is possible. Products that carry a graph, or live
    inside a transform, cannot be written into a buffer and are concatenated at the end.
    """

    def __init__(
        self, count: int, like: Tensor, writable: bool, place: Tensor | None = None
    ) -> None:
        self._count, self._like, self._writable = count, like, writable
        self._filled = 0
        self._buffer = self._place = place
        self._pieces: list[Tensor] = []

    def add(self, rows: Tensor | None, length: int) -> None:
        """Append the next ``length`` rows; None for zeros."""
        if rows is None and not self._pieces and self._buffer is None:
            self._filled += length  # zeros so far: nothing needs to exist yet
            return
        if self._filled and not self._pieces and self._buffer is None:
            self._store(_or_zeros(None, self._like, self._filled), 0)
        self._store(_or_zeros(rows, self._like, length), self._filled)
        self._filled += length

    def _store(self, rows: Tensor, at: int) -> None:
        if self._place is None and (not self._writable or len(rows) == self._count):
            self._pieces.append(rows)
            return
        if self._buffer is None:
            self._buffer = rows.new_empty(self._count, *rows.shape[1:])
        write(self._buffer[at : at + len(rows)], rows)

    def whole(self) -> Tensor:
        """All rows, once every chunk has been added."""
        if self._buffer is not None:
            return self._buffer
        if not self._pieces:
            return _or_zeros(None, self._like, self._count)
        return self._pieces[0] if len(self._pieces) == 1 else torch.cat(self._pieces)


def run(
    engine: Engine,
    seeds: Seeds,
    chunk_size: int | None,
    *,
    places: Places | None = None,
    shown: str | None = None,
) -> list[list[Tensor]]:
    """Multiply all ``seeds`` and return ``blocks[seed leaf][product leaf]``.

    Args:
        engine: the function at a point.
        seeds: what to multiply it with; at least one.
        chunk_size: seeds per vmapped pass; None for all at once. A chunk of a single seed is one
            plain pass without vmap. On running out of memory the size is halved and the same chunk
            tried again.
        places: gives memory of the caller's that blocks are written into, chunk by chunk.
        shown: the name under which progress is shown, if it is.

    A forward engine evaluates its function once per chunk; each finds the random state of the first.
    Several chunks that have to be differentiable are so by NOTE [Deferred graphs].
    """
    total = seeds.total
    size = max(total if chunk_size is None else min(chunk_size, total), 1)
    if (
        0 < total <= size
        and len(seeds.counts) == 1
        and places is None
        and not engine.evaluates_anew
    ):
        try:
            return [products_at_once(engine, seeds)]
        except (RuntimeError, MemoryError) as error:
            if total == 1 or not is_out_of_memory(error):
                raise
        size = _halved(size)
    beyond = engine.borders() if isinstance(engine, Graph) and size < total else None
    if not beyond:
        return _gather(engine, seeds, size, places, shown)
    assert isinstance(engine, Graph)

    def one_pass(start: int, stop: int) -> list[Tensor | None]:
        return _pass(engine, seeds.chunk(start, stop), stop - start, last=False)

    blocks = _gather(engine.without_graph(), seeds, size, places, shown)
    return deferred(blocks, beyond, seeds, size, one_pass)


def _blocks(engine: Engine, products: Sequence[Tensor | None], total: int) -> list[Tensor]:
    """One chunk, one group: the products are the blocks, and nothing has to be gathered."""
    return [
        _or_zeros(None, like, total) if product is None else product
        for product, like in zip(products, _other_side(engine), strict=True)
    ]


def _halved(size: int) -> int:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return math.ceil(size / 2)


def _gather(
    engine: Engine, seeds: Seeds, size: int, places: Places | None, shown: str | None
) -> list[list[Tensor]]:
    """The passes, chunk by chunk."""
    total, counts = seeds.total, seeds.counts
    rows: list[list[_Rows]] = []
    evaluates = engine.evaluates_anew and total > 1 and not compiling()
    draw, seen = Draw(engine.primals) if evaluates else None, Repetitions()
    start = 0
    with metered(shown, total) as meter:
        while start < total:
            stop = min(start + size, total)
            # The last chunk frees a graph that nobody needs any more, but the first never does: if
            # that one fails, for memory or for want of a batching rule, the passes begin again.
            last = stop == total and start > 0
            freed = last and not engine.outlives_passes
            try:
                products = _pass(engine, seeds.chunk(start, stop), stop - start, last)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or freed or not is_out_of_memory(error):
                    raise
                size = _halved(size)
                if draw is not None:
                    draw.again()
                continue
            meter.update(stop - start)
            if stop - start == total and len(counts) == 1 and places is None:
                return [_blocks(engine, products, total)]
            if draw is not None:
                seen.see(engine.values)
            # A forward engine knows its outputs only now.
            rows = rows or _empty_rows(engine, seeds, places)
            for leaf, _, at, length in seeds.sections(start, stop):
                for gathered, product in zip(rows[leaf], products, strict=True):
                    gathered.add(None if product is None else product[at : at + length], length)
            start = stop
            if draw is not None and start < total:
                draw.again()
    seen.refuse_others()
    rows = rows or _empty_rows(engine, seeds, places)
    return [[gathered.whole() for gathered in row] for row in rows]


def write(memory: Tensor, numbers: Tensor) -> None:
    """Copy numbers into memory; what was made in inference mode can be written in that mode alone."""
    with torch.inference_mode(memory.is_inference()):
        memory.copy_(numbers)


def _other_side(engine: Engine) -> Sequence[Tensor]:
    return engine.primals if engine.direction == "reverse" else engine.values


def _empty_rows(engine: Engine, seeds: Seeds, places: Places | None) -> list[list[_Rows]]:
    likes, writable = _other_side(engine), not engine.keeps_graph
    nowhere: list[list[Tensor | None]] = [[None] * len(likes)] * len(seeds.counts)
    found = places(engine) if places else nowhere
    return [
        [_Rows(count, like, writable, place) for like, place in zip(likes, row, strict=True)]
        for count, row in zip(seeds.counts, found, strict=True)
    ]


def _or_zeros(rows: Tensor | None, like: Tensor, length: int) -> Tensor:
    return like.detach().new_zeros(length, *like.shape) if rows is None else rows


def _pass(engine: Engine, chunk: Chunk, size: int, last: bool) -> list[Tensor | None]:
    if size > 1:
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
    reverse = engine.direction == "reverse"
    leaves: list[list[Tensor]] = []
    for o, value in enumerate(engine.values):
        row = []
        for i, primal in enumerate(primals):
            if reverse:
                leaf = _from_rows(blocks[o][i], value.shape, primal.shape, batched)
            else:
                leaf = _from_columns(blocks[i][o], value.shape, primal.shape, batched)
            row.append(_handed_out(leaf, primal))
        leaves.append(row)
    return leaves


def _handed_out(leaf: Tensor, primal: Tensor) -> Tensor:
    if 0 in leaf.stride():
        # A seed that came through untouched is expanded; what is handed out is not.
        leaf = leaf.contiguous()
    return leaf if leaf.dtype == primal.dtype else leaf.to(primal.dtype)


def columns_at_once(engine: Engine, seeds: Seeds) -> list[list[Tensor]]:
    """The leaves ``[output][input]`` of one input, by one forward pass that takes all seeds."""
    blocks = [products_at_once(engine, seeds)]
    return assemble(blocks, engine, engine.primals, batched=seeds.layout.batched)


def products_at_once(engine: Engine, seeds: Seeds) -> list[Tensor]:
    """The products ``(k, *leaf)`` with every leaf on the other side, by one pass that takes all seeds."""
    total = seeds.total
    products = _pass(engine, seeds.chunk(0, total), total, last=False)
    for product in products:
        if product is None:
            return _blocks(engine, products, total)
    return products  # type: ignore[return-value]


def rows_at_once(engine: Engine, seeds: Seeds) -> list[Tensor]:
    """The leaves ``[input]`` of one output, by one backward pass that takes all seeds.

    It is written out, since a small function takes no longer than the layers that this leaves out.
    """
    (value,), total, batched = engine.values, seeds.total, seeds.layout.batched
    if total == 1:
        products = engine.multiply({0: torch.ones_like(value)}, last=False)
    else:
        multiply = functools.partial(engine.multiply, last=False)
        products = vectorised_eagerly(multiply, seeds.chunk(0, total))
    # Of a vector, or of one number, the products are the rows as they are.
    is_shaped = value.dim() == batched + (total > 1)
    leaves = []
    for product, primal in zip(products, engine.primals, strict=True):
        leaf = product
        if leaf is None:
            leaf = primal.detach().new_zeros((total, *primal.shape))
        if batched and total > 1:
            leaf = leaf.transpose(0, 1)  # (m, B, *in) -> (B, m, *in)
        if product is None or not is_shaped:
            leaf = leaf.reshape(value.shape + (primal.shape[1:] if batched else primal.shape))
        leaves.append(_handed_out(leaf, primal) if 0 in leaf.stride() else leaf)
    return leaves


def _from_rows(block: Tensor, output: torch.Size, primal: torch.Size, batched: bool) -> Tensor:
    if not batched:
        # (m, *in) -> (*out, *in)
        return block if len(output) == 1 else block.reshape((*output, *primal))
    # (m, B, *in) -> (B, m, *in) -> (B, *out, *in)
    return block.transpose(0, 1).reshape((*output, *primal[1:]))


def _from_columns(block: Tensor, output: torch.Size, primal: torch.Size, batched: bool) -> Tensor:
    if not batched:
        # (n, *out) -> (*in, *out) -> (*out, *in)
        block = block.reshape((*primal, *output))
        return block.permute((*range(len(primal), block.dim()), *range(len(primal))))
    # (n, B, *out) -> (*in, B, *out) -> (B, *out, *in)
    block = block.reshape((*primal[1:], *output))
    return block.permute((*range(len(primal) - 1, block.dim()), *range(len(primal) - 1)))


def places_in(
    leaves: Sequence[Sequence[Tensor]], engine: Engine, *, batched: bool
) -> list[list[Tensor | None]]:
    """The blocks of an engine as views of leaves ``[output][input]``: what `assemble` undoes.

    Where the strides of a leaf allow no such view there is None.
    """
    places = [
        [
            _place(leaf, value.shape, primal.shape, engine.direction, batched)
            for leaf, primal in zip(row, engine.primals, strict=True)
        ]
        for row, value in zip(leaves, engine.values, strict=True)
    ]
    return (
        places
        if engine.direction == "reverse"
        else [list(row) for row in zip(*places, strict=True)]
    )


def _place(
    leaf: Tensor, output: torch.Size, primal: torch.Size, direction: str, batched: bool
) -> Tensor | None:
    at = int(batched)
    samples, m, n = output[:at], output[at:].numel(), primal[at:].numel()
    try:
        if direction == "forward":
            # (B, *out, *in) -> (B, *out, n) -> (n, B, *out), a batch or none
            return leaf.view(*output, n).movedim(-1, 0)
        # (B, *out, *in) -> (B, m, *in) -> (m, B, *in), a batch or none
        return leaf.view(*samples, m, *primal[at:]).movedim(at, 0)
    except RuntimeError:
        return None
