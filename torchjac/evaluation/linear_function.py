"""A linear map as an op of autograd: its derivative, in either mode, is the map or its transpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["linear"]

Product: TypeAlias = Callable[[Tensor], Tensor]


def linear(times: Product, transposed_times: Product, matrix: Tensor) -> Tensor:
    """Multiply ``(n, k)`` so that the result ``(m, k)`` can be differentiated by it, and batched over.

    Neither product is looked into, so the result hangs on ``matrix`` and on nothing that they use; it
    can be differentiated any number of times, and torch.func's transforms pass through it.

    Args:
        times: the map, from ``(n, k)`` to ``(m, k)`` for every k.
        transposed_times: its transpose.
        matrix: what it is applied to.
    """
    product: Tensor = _Linear.apply(times, transposed_times, matrix)  # type: ignore[no-untyped-call]
    return product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(times: Product, transposed_times: Product, matrix: Tensor) -> Tensor:
        del transposed_times
        return times(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.times, ctx.transposed_times, _ = inputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, None, Tensor]:
        return None, None, linear(ctx.transposed_times, ctx.times, cotangent)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, tangent: Tensor) -> Tensor:
        return linear(ctx.times, ctx.transposed_times, tangent)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, times: Product, transposed_times: Product, matrix: Tensor
    ) -> tuple[Tensor, int]:
        # (B, n, k) -> (n, B, k) -> (n, B·k), and (m, B·k) -> (m, B, k)
        columns = matrix.movedim(in_dims[2], 1)
        product = linear(times, transposed_times, columns.reshape(len(columns), -1))
        return product.reshape(len(product), *columns.shape[1:]), 1
