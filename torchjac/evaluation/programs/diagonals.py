"""Seeds of the identity: a stack of tensors of which little more than a diagonal is not zero.

NOTE [Diagonals]
The seeds of a whole Jacobian are an identity matrix: entry ``[i, j]`` of the stack is 1 where j is i.
An operation on each element keeps that shape, and only what stands on the diagonal has to be computed:
tanh_backward of k seeds of k elements is tanh_backward of one tensor of k elements. A product with a
matrix ends it, but costs no more than scaling the matrix's rows::

    diag(d) @ W = d[:, None] * W

The general form is a stack ``(k, *rest)`` where ``rest`` has three parts, left, core and right, of which
the core has k elements. Entry ``[i, l, c, r]`` is ``d[l, c, r]`` where c, as an index into the flat
core, is i; all else is zero. A batch of identities has its samples on the left. What a vector is
broadcast against is left or right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchjac.evaluation.programs.rewriting import Rewriter, Symbolic, Value
from torchjac.evaluation.programs.zeros import Uniform

__all__ = ["Diagonal", "of_one_seed"]

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Diagonal(Symbolic):
    """A stack of seeds; see NOTE [Diagonals].

    Args:
        d: ``(*rest)``, what stands on the diagonal.
        rest: its shape.
        start: the first dimension of ``rest`` that is core.
        stop: the first after it that is not.
        like: a fake tensor of the dtype, and of the shape that the stack is seen in; that is
            ``(k, *rest)`` or a reshape of it.
    """

    d: Value
    rest: tuple[int, ...]
    start: int
    stop: int
    like: Tensor

    @classmethod
    def stack(cls, write: Rewriter, d: Value, start: int, stop: int) -> Diagonal:
        """A diagonal that is seen as ``(k, *rest)``."""
        own = write.like(d)
        rest = tuple(own.shape)
        return cls(d, rest, start, stop, write.fake((math.prod(rest[start:stop]), *rest), own))

    @property
    def core(self) -> tuple[int, ...]:
        return self.rest[self.start : self.stop]

    @property
    def seeds(self) -> int:
        return math.prod(self.core)

    @property
    def is_stack(self) -> bool:
        """Whether it is seen as ``(k, *rest)``."""
        return tuple(self.like.shape) == (self.seeds, *self.rest)

    @property
    def is_matrix(self) -> bool:
        """Whether it is a square matrix with nothing beside its diagonal."""
        return tuple(self.like.shape) == (self.seeds, self.seeds) == (self.seeds, *self.rest)

    def with_d(self, write: Rewriter, d: Value) -> Diagonal:
        """Other numbers in the same places."""
        return self.stack(write, d, self.start, self.stop)

    def dense(self, write: Rewriter) -> Value:
        one = isinstance(self.d, Uniform) and self.d.number == 1
        alone = math.prod(self.rest) == self.seeds
        if alone and not one:
            flat = write.node(write.reshape(self.d, (self.seeds,)))
            stack: Value = write.raw(aten.diag_embed.default, flat)
            return write.reshape(stack, self.like.shape)  # type: ignore[no-any-return]
        own = write.like(self.d)
        # A choice and not a product: nothing leaves the diagonal, not even NaN.
        dtype = own.dtype if one else torch.bool
        unit = write.raw(aten.eye.default, self.seeds, dtype=dtype, device=own.device)
        # (k, k) -> (k, 1..., *core, 1...)
        left, right = [1] * self.start, [1] * (len(self.rest) - self.stop)
        stack = write.reshape(unit, (self.seeds, *left, *self.core, *right))
        if one:
            stack = write.expand(stack, (self.seeds, *self.rest))
        else:
            stack = write.raw(aten.where.ScalarOther, stack, write.node(self.d), 0)
        return write.reshape(stack, self.like.shape)  # type: ignore[no-any-return]


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
