"""Derivatives that are wrong on purpose, one for each way that an oracle has to find."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class WrongBackward(torch.autograd.Function):
    """A sine whose backward pass is 10% too large; its forward mode is right."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.1 * grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0].cos()


class WrongJvp(WrongBackward):
    """A sine whose forward mode has the wrong sign in its last entry; its backward pass is right."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        slope = ctx.saved_tensors[0].cos()
        return tangent * torch.cat([slope[:-1], -slope[-1:]])


class _Twice(torch.autograd.Function):
    """Doubles; but batched, it doubles only the first of the batch."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return torch.cat([2 * x[:1], x[1:]]), 0


class WrongVmap(torch.autograd.Function):
    """Doubles; its backward pass is right by itself and wrong under vmap."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Twice.apply(grad)


class WrongSecond(torch.autograd.Function):
    """A cube with a right gradient whose own derivative lost the chain's inner factor."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 3 * x * x.detach()
