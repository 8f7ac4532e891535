"""Lending out tensors that are kept from call to call."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lendable", "lent"]

lent = getattr(torch, "_lazy_clone", torch.clone)
"""A copy that is made when somebody writes into it, which is hardly ever; before torch 2.2 at once.

Not for tensors of the caller's: theirs may have to be copied instead, and then lie elsewhere than before.
"""


def lendable(tensor: Tensor) -> Tensor:
    """The tensor, lent once: only the first time is nothing for several threads at once."""
    lent(tensor)
    return tensor
