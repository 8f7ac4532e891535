"""How a tensor lies in memory: whether it has strides at all, and those of a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["are_in_one_place", "dense_stride", "is_dense"]


def is_dense(tensor: Tensor) -> bool:
    """Whether it is neither a sparse nor a nested tensor, which have no strides."""
    return tensor.layout is torch.strided and not tensor.is_nested


def dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a copy: the tensor's own, where its elements fill their memory, each its own place."""
    return torch.empty_like(tensor, device="meta").stride() if is_dense(tensor) else ()


def are_in_one_place(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of a shape are the same elements of memory; where there is one, no step counts."""
    steps = zip(one.shape, one.stride(), other.stride(), strict=True)
    return one.data_ptr() == other.data_ptr() and all(
        size < 2 or step == another for size, step, another in steps
    )
