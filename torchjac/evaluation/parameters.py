"""Other tensors in the place of a module's parameters, for as long as a caller says.

`torch.func.functional_call` does so until the module returns. That is too short where a backward pass
evaluates a part of it once more, as a checkpoint does: there it would find the module's own again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(
    module: torch.nn.Module, own: Sequence[Tensor], others: Sequence[Tensor]
) -> Iterator[None]:
    """Have ``others`` in the place of the parameters ``own``, under every name that they have."""
    replaced = dict(zip(map(id, own), others, strict=True))
    dicts = [part._parameters for part in module.modules()]
    before: list[dict[str, Any]] = [dict(parameters) for parameters in dicts]
    try:
        for parameters, kept in zip(dicts, before, strict=True):
            parameters.update({name: replaced.get(id(p), p) for name, p in kept.items()})
        yield
    finally:
        for parameters, kept in zip(dicts, before, strict=True):
            parameters.update(kept)
