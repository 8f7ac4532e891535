"""How a tensor lies in memory: whether it has strides at all, and those of a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dense_stride", "is_dense"]


def is_dense(tensor: Tensor) -> bool:
    """Whether it is neither a sparse nor a nested tensor, which have no strides."""
    return tensor.layout is torch.strided and not tensor.is_nested


def dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a copy: the tensor's own, where its elements fill their memory, each its own place."""
    return torch.empty_like(tensor, device="meta").stride() if is_dense(tensor) else ()
