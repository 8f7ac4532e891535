"""Do samples that are promised to be independent really not influence each other?"""

from __future__ import annotations

import torch
from torch import Tensor

from torchjac.errors import BatchCouplingError
from torchjac.evaluation.engines import Graph

__all__ = ["refuse_coupling"]

# Independent samples have derivatives of exactly zero; a kernel that works on all samples at once
# may leave rounding behind, which stays some digits below the derivatives themselves.
_ROUNDING = 64.0


def refuse_coupling(name: str, graph: Graph) -> None:
    """Raise `BatchCouplingError` if an output of one sample depends on another sample's input.

    Any two samples differ in some bit of their numbers. So for every bit the samples are divided in
    two halves, a random cotangent is put on one half, and what flows back to the other half must be
    zero: 2·log2(B) plain backward passes separate all B·(B - 1) pairs (a group test; Dorfman 1943).
    """
    samples = len(graph.primals[0])
    numbers = torch.arange(samples, device="cpu")
    generator = torch.Generator("cpu").manual_seed(samples)
    for bit in range(max(samples - 1, 0).bit_length()):
        half = (numbers >> bit) & 1 == 1
        for chosen in (half, ~half):
            cotangents = {
                leaf: _on(chosen, value, generator) for leaf, value in enumerate(graph.values)
            }
            for primal, pulled in zip(
                graph.primals, graph.multiply(cotangents, last=False), strict=True
            ):
                if pulled is not None:
                    _refuse_leak(name, pulled.detach(), ~chosen.to(primal.device), samples)


def _on(chosen: Tensor, value: Tensor, generator: torch.Generator) -> Tensor:
    """A random cotangent that is zero outside the chosen samples."""
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
        f"{samples} receives a derivative from other samples' outputs), so per-sample Jacobians of the "
        f"whole batch do not exist. Typical causes: batch norm in training mode (call module.eval()), "
        f"subtracting a batch mean, sorting or attention across the batch. Use per_sample=True with a "
        f"function of one sample, or torchjac.jac for the full Jacobian."
    )
