"""Lending out tensors that are kept from call to call."""

from __future__ import annotations

import torch

__all__ = ["lent"]

lent = getattr(torch, "_lazy_clone", torch.clone)
"""A copy that is made when somebody writes into it, which is hardly ever; before torch 2.2 at once.

Not for tensors of the caller's: theirs may have to be copied instead, and then lie elsewhere than before.
"""
