"""Lending out tensors that are kept from call to call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["are_lent", "is_plain", "lendable", "lent"]

lent = getattr(torch, "_lazy_clone", torch.clone)
"""A copy that is made when somebody writes into it, which is hardly ever; before torch 2.2 at once.

Not for tensors of the caller's: theirs may have to be copied instead, and then lie elsewhere than before.
"""


_is_lent = getattr(torch._C, "_is_cow_tensor", None)
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def are_lent(tensors: Iterable[Tensor]) -> bool:
    """Whether all of them are such copies, so that whoever writes into one has it to himself.

    Not those of which one element stands for many, nor what belongs to a transform or is of another class.
    """
    if _is_lent is None:
        return False
    for tensor in tensors:
        if not is_plain(tensor) or not _is_lent(tensor) or 0 in tensor.stride():
            return False
    return True


def is_plain(tensor: Tensor) -> bool:
    """Whether it belongs to no transform and is of no other class."""
    return type(tensor) is Tensor and not _is_wrapped(tensor)


def lendable(tensor: Tensor) -> Tensor:
    """The tensor, lent once: only the first time is nothing for several threads at once."""
    lent(tensor)
    return tensor
