"""A result that came in chunks and can be differentiated all the same, without keeping their graphs.

NOTE [Deferred graphs]
The Jacobian of something that requires grad has to be differentiable itself. To record all passes for
that keeps every intermediate result of every seed, so that chunks save nothing: 1.4 GB for a convolution
whose Jacobian takes 20 MB; and most Jacobians are never differentiated. So the chunks are computed
without a graph, and the result hangs on one node that remembers the seeds. If that is ever asked to go
backward, it goes over the chunks again, each with a graph that lives for that chunk only:

    forward   rows[a:b] = pass(seeds[a:b])                       for every chunk, no graph
    backward  sum of vjp(pass(seeds[a:b]), cotangents[a:b])      for every chunk, one graph at a time

This is checkpointing (Griewank & Walther, *Evaluating Derivatives*, chapter 12) with the chunk for a
segment. The gradient flows to the tensors where the function's own graph ends: the caller's inputs, and
the parameters that the function captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchjac.foundations.seeds import Seeds

__all__ = ["Pass", "deferred", "recomputed"]

Blocks: TypeAlias = "list[list[Tensor]]"
Pass: TypeAlias = "Callable[[int, int], Sequence[Tensor | None]]"
"""From the seeds ``start`` to ``stop - 1`` to their products, with a graph."""


def deferred(
    blocks: Blocks, beyond: Sequence[Tensor], seeds: Seeds, size: int, one_pass: Pass
) -> Blocks:
    """Make ``blocks``, computed without a graph, differentiable by the tensors ``beyond``."""
    width = len(blocks[0])

    def rows_and_cotangents(
        start: int, stop: int, cotangents: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, Tensor]]:
        products = one_pass(start, stop)
        return [
            (product[at : at + length], cotangent[first : first + length])
            for leaf, first, at, length in seeds.sections(start, stop)
            for product, cotangent in zip(
                products, cotangents[leaf * width : (leaf + 1) * width], strict=True
            )
            if product is not None and product.requires_grad and cotangent is not None
        ]

    def pull(cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """From the cotangents of the blocks to those of ``beyond``, chunk by chunk."""
        grads: list[Tensor | None] = [None] * len(beyond)
        for start in range(0, seeds.total, size):
            stop = min(start + size, seeds.total)
            with torch.enable_grad():
                pairs = rows_and_cotangents(start, stop, cotangents)
            if not pairs:
                continue
            parts = torch.autograd.grad(
                [product for product, _ in pairs],
                list(beyond),
                [cotangent for _, cotangent in pairs],
                retain_graph=True,
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
            grads = [_plus(grad, part) for grad, part in zip(grads, parts, strict=True)]
        return grads

    flat = [block for row in blocks for block in row]
    hung = iter(_Deferred.apply(pull, flat, *beyond))  # type: ignore[no-untyped-call]
    return [[next(hung) for _ in row] for row in blocks]


def recomputed(
    tensors: Sequence[Tensor],
    beyond: Sequence[Tensor],
    read: Sequence[Tensor],
    again: Callable[[], Sequence[Tensor]],
) -> list[Tensor]:
    """Make ``tensors``, computed without a graph, differentiable by the tensors ``beyond``.

    Args:
        tensors: what was computed.
        beyond: what it can be differentiated by.
        read: all that it was computed from, which has to be there unchanged.
        again: computes the same with a graph, which is done if anybody goes backward.
    """
    before = list(map(_state, read))

    def pull(cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        if list(map(_state, read)) != before:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace "
                "operation since torchjac computed this derivative"
            )
        with torch.enable_grad():
            pairs = [
                (made, cotangent)
                for made, cotangent in zip(again(), cotangents, strict=True)
                if cotangent is not None and made.requires_grad
            ]
        if not pairs:
            return [None] * len(beyond)
        made, given = zip(*pairs, strict=True)
        return list(
            torch.autograd.grad(
                made, beyond, given, create_graph=torch.is_grad_enabled(), allow_unused=True
            )
        )

    return list(_Deferred.apply(pull, tensors, *beyond))  # type: ignore[no-untyped-call]


def _state(tensor: Tensor) -> tuple[int, int]:
    """What tells that a tensor was written into, or given other memory."""
    return (0 if tensor.is_inference() else tensor._version), tensor.data_ptr()


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


class _Deferred(torch.autograd.Function):
    """The node that blocks computed without a graph hang on."""

    @staticmethod
    def forward(ctx: Any, pull: Callable[..., Any], blocks: list[Tensor], *beyond: Tensor) -> Any:
        ctx.pull = pull
        ctx.set_materialize_grads(False)
        return tuple(blocks)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        return None, None, *ctx.pull(cotangents)
