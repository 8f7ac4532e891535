"""A checksum of a tensor's bits, which tells what was written behind PyTorch's back."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

__all__ = ["checksum", "summed_elements"]


def checksum(tensor: Tensor) -> bytes:
    """Of the elements in their order, whatever the strides; nothing of a tensor without values.

    Of a sparse tensor the places of its entries are summed up, and not these.
    """
    if tensor.is_meta:
        return b""
    if tensor.layout is not torch.strided:
        tensor = tensor.detach().to_sparse_coo().coalesce().indices()
    bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    buffer: Any = bits.numpy()
    return hashlib.blake2b(buffer, digest_size=16).digest()


def summed_elements(tensor: Tensor) -> int:
    """How many numbers go into a checksum."""
    return tensor.numel() if tensor.layout is torch.strided else 2 * tensor._nnz()
