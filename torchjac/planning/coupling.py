"""Do samples that are promised to be independent really not influence each other?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from torchjac.errors import BatchCouplingError

__all__ = ["refuse_coupling"]

Multiply: TypeAlias = Callable[[Sequence[Tensor]], Sequence["Tensor | None"]]

# Independent samples have derivatives of exactly zero; a kernel that works on all samples at once
# may leave rounding behind, which stays some digits below the derivatives themselves.
_ROUNDING = 64.0


def refuse_coupling(name: str, likes: Sequence[Tensor], multiply: Multiply) -> None:
    """Raise `BatchCouplingError` if an output of one sample depends on another sample's input.

    Any two samples differ in some bit of their numbers. So for every bit the samples are divided in
    two halves, a random vector is put on one half, and what it makes of the other half must be
    zero: 2·log2(B) plain passes separate all B·(B - 1) pairs (a group test; Dorfman 1943).

    Args:
        name: the call that the user made.
        likes: what the vectors are like: the outputs of a backward pass, or the inputs of a forward one.
        multiply: such a pass.
    """
    samples = len(likes[0])
    numbers = torch.arange(samples, device="cpu")
    generator = torch.Generator("cpu").manual_seed(samples)
    for bit in range(max(samples - 1, 0).bit_length()):
        half = (numbers >> bit) & 1 == 1
        for chosen in (half, ~half):
            for product in multiply([_on(chosen, like, generator) for like in likes]):
                if product is not None:
                    _refuse_leak(name, product.detach(), ~chosen.to(product.device), samples)


def _on(chosen: Tensor, value: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector that is zero outside the chosen samples."""
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float32, device="cpu")
    mask = chosen.reshape(-1, *[1] * (value.dim() - 1))
    return (noise * mask).to(dtype=value.dtype, device=value.device)


def _refuse_leak(name: str, pulled: Tensor, others: Tensor, samples: int) -> None:
    size = pulled.abs().reshape(samples, -1).nan_to_num(0, 0, 0)
    if not size.numel():
        return
    leak = torch.where(others, size.amax(1), 0)
    if bool((leak <= _ROUNDING * torch.finfo(pulled.dtype).eps * size.max()).all()):
        return
    raise BatchCouplingError(
        f"{name}: the samples of the batch influence each other (sample {int(leak.argmax())} of "
        f"{samples} has a derivative that comes from other samples), so per-sample Jacobians of the "
        f"whole batch do not exist. Typical causes: batch norm in training mode (call module.eval()), "
        f"subtracting a batch mean, sorting or attention across the batch. Use per_sample=True with a "
        f"function of one sample, or torchjac.jac for the full Jacobian."
    )
