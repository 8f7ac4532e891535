"""Seeds of the identity, and what becomes of them until the first operation that mixes elements.

NOTE [Diagonals]
The seeds of a whole Jacobian are an identity matrix: entry ``[i, j]`` of the stack is 1 where j is i.
An operation on each element keeps that shape, and only what stands on the diagonal has to be computed:
tanh_backward of k seeds of k elements is tanh_backward of one tensor of k elements. A product with a
matrix ends it, but costs no more than scaling the matrix's rows::

    diag(d) @ W = d[:, None] * W

The general form is a stack ``(k, *rest)`` where ``rest`` has three parts, left, core and right, any of
them empty, and entry ``[i, l, c, r]`` is ``d[l, c, r]`` where c, as an index into the flat core, is
``i - offset``; all else is zero. A batch of identities has its samples on the left. What a vector is
broadcast against is left or right. A row of the identity has an empty core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchjac.evaluation.programs.rewriting import Rewriter, Symbolic, Value
from torchjac.evaluation.programs.zeros import Uniform

__all__ = ["Diagonal", "Diagonals", "of_one_seed", "with_zeros"]

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Diagonal(Symbolic):
    """A stack of seeds; see NOTE [Diagonals].

    Args:
        d: ``(*rest)``, what stands on the diagonal.
        seeds: k, how many there are.
        start: the first dimension of ``rest`` that is core.
        stop: the first after it that is not.
        offset: the seed of the core's first element.
        like: a fake tensor of the dtype, and of the shape that the stack is seen in; that is
            ``(k, *rest)`` or a reshape of it.
    """

    d: Value
    seeds: int
    start: int
    stop: int
    offset: int
    like: Tensor

    @property
    def rest(self) -> tuple[int, ...]:
        shape = self.d.like.shape if isinstance(self.d, Symbolic) else self.d.meta["val"].shape
        return tuple(shape)

    @property
    def left(self) -> tuple[int, ...]:
        return self.rest[: self.start]

    @property
    def core(self) -> tuple[int, ...]:
        return self.rest[self.start : self.stop]

    @property
    def right(self) -> tuple[int, ...]:
        return self.rest[self.stop :]

    @property
    def length(self) -> int:
        """How many seeds have an entry."""
        return math.prod(self.core)

    @property
    def is_stack(self) -> bool:
        """Whether it is seen as ``(k, *rest)``."""
        return tuple(self.like.shape) == (self.seeds, *self.rest)

    @property
    def is_matrix(self) -> bool:
        """Whether it is a square matrix with nothing beside its diagonal."""
        return self.is_stack and len(self.rest) == 1 and self.length == self.seeds == self.rest[0]

    def changed(self, write: Rewriter, d: Value, **changed: int) -> Diagonal:
        """Another diagonal for the same seeds, seen as a stack."""
        like = write.like(d)
        given = {"start": self.start, "stop": self.stop, "offset": self.offset, **changed}
        return Diagonal(d, self.seeds, like=write.fake((self.seeds, *like.shape), like), **given)

    def dense(self, write: Rewriter) -> Value:
        whole = self.length == self.seeds
        one = isinstance(self.d, Uniform) and self.d.number == 1
        if whole and math.prod(self.left + self.right) == 1 and not one:
            flat = write.node(write.reshape(self.d, (self.seeds,)))
            stack: Value = write.raw(aten.diag_embed.default, flat)
            return write.reshape(stack, self.like.shape)  # type: ignore[no-any-return]
        own = write.like(self.d)
        # A choice and not a product: nothing leaves the diagonal, not even NaN.
        dtype = own.dtype if one else torch.bool
        mask: Value = write.raw(aten.eye.default, self.seeds, dtype=dtype, device=own.device)
        if not whole:
            mask = write(aten.slice.Tensor, mask, 1, self.offset, self.offset + self.length)
        # (k, length) -> (k, 1..., *core, 1...)
        sides = ([1] * len(self.left), [1] * len(self.right))
        stack = write.reshape(mask, (self.seeds, *sides[0], *self.core, *sides[1]))
        if one:
            stack = write.expand(stack, (self.seeds, *self.rest))
        else:
            stack = write.raw(aten.where.ScalarOther, stack, write.node(self.d), 0)
        return write.reshape(stack, self.like.shape)  # type: ignore[no-any-return]

    def block(self, write: Rewriter) -> Diagonal:
        """The seeds that have an entry, alone."""
        like = write.fake((self.length, *self.rest), self.like)
        return replace(self, seeds=self.length, offset=0, like=like)


@dataclass(frozen=True, eq=False)
class Diagonals(Symbolic):
    """A sum of a few diagonals of different seeds, in the order of these, seen as one stack."""

    parts: tuple[Diagonal, ...]
    like: Tensor

    def dense(self, write: Rewriter) -> Value:
        # The rows of each, and zeros between them: nothing has to be added.
        blocks: list[Value] = []
        at = 0
        for part in self.parts:
            if part.offset > at:
                blocks.append(self._zeros(write, part.offset - at))
            blocks.append(part.block(write))
            at = part.offset + part.length
        if at < len(self.like):
            blocks.append(self._zeros(write, len(self.like) - at))
        return write.raw(aten.cat.default, [write.node(block) for block in blocks])

    def _zeros(self, write: Rewriter, count: int) -> Uniform:
        return Uniform(0, write.fake((count, *self.like.shape[1:]), self.like))


def with_zeros(write: Rewriter, rows: Value, seeds: Diagonal) -> Value:
    """``(length, ...)`` -> ``(k, ...)``, with zeros for the seeds that have no entry."""
    after = seeds.seeds - seeds.offset - seeds.length
    if not seeds.offset and not after:
        return rows
    pad = [0, 0] * (len(write.shape(rows)) - 1) + [seeds.offset, after]
    return write(aten.constant_pad_nd.default, rows, pad, 0)  # type: ignore[no-any-return]


def of_one_seed(write: Rewriter, value: Value, rank: int) -> Value | None:
    """What a tensor that is the same for all seeds is for one; None if it is not the same."""
    like = write.like(value)
    if like.dim() < rank:
        return value
    if isinstance(value, Uniform):
        return Uniform(value.number, write.fake(like.shape[1:], like))
    if isinstance(value, Symbolic):
        return None
    if like.shape[0] == 1:
        return write.reshape(value, like.shape[1:])  # type: ignore[no-any-return]
    return write(aten.select.int, value, 0, 0) if like.stride(0) == 0 else None
