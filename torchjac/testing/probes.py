"""Probes: a derivative times random vectors, held against the same product made otherwise.

A Jacobian is a tensor of two axes (outputs, inputs), a Hessian one of three (outputs, inputs,
inputs). A probe puts a vector on every axis but one and compares what is left with a *reference*
for that product. Where they differ the vectors are halved, and halved again, until a single entry
is left: products are linear, so one of the halves must differ too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchjac.testing.differences import Estimate
from torchjac.testing.tolerances import Tolerance

__all__ = ["Comparison", "Probe", "compare", "contract", "locate", "random_vector", "unit_vector"]


class Probe(NamedTuple):
    """One way to know a product independently of the tensor under test."""

    name: str
    reference_name: str
    free: int
    """The axis that carries no vector."""
    reference: Callable[[list[Tensor]], Estimate]
    """From the vectors, in the order of their axes, to the product and its error."""


class Comparison(NamedTuple):
    """A product of the tensor under test, its reference, and by how much they are too far apart."""

    got: Tensor
    expected: Tensor
    allowed: Tensor
    excess: Tensor
    """``abs(got - expected) - allowed``: positive where they disagree."""
    unresolved: Tensor
    """Where the reference has no finite error, so nothing was compared."""


def contract(tensor: Tensor, vectors: Sequence[Tensor], free: int) -> Tensor:
    """Put ``vectors`` on every axis of ``tensor`` but ``free``.

    Entries that meet a zero are left out altogether, so that a NaN among them does not spread.
    """
    axes = [axis for axis in range(tensor.dim()) if axis != free]
    for axis, vector in sorted(
        zip(axes, vectors, strict=True), reverse=True, key=lambda pair: pair[0]
    ):
        kept = vector.nonzero().squeeze(1)
        # (..., k, ...) with k kept entries on this axis -> (..., ...)
        tensor = torch.tensordot(tensor.index_select(axis, kept), vector[kept], dims=([axis], [0]))
    return tensor


def compare(
    tensor: Tensor, probe: Probe, vectors: list[Tensor], allowance: Tolerance, share: float = 1.0
) -> Comparison:
    """Compare ``tensor`` with the probe's reference; ``share`` shrinks the absolute tolerance."""
    got = contract(tensor, vectors, probe.free)
    expected, error = probe.reference(vectors)
    terms = contract(tensor.abs(), [vector.abs() for vector in vectors], probe.free)
    terms = torch.where(terms.isfinite(), terms, expected.abs())
    allowed = (allowance.rtol * terms + share * allowance.atol + error).nan_to_num(
        nan=0.0, posinf=torch.inf
    )
    equal = (got == expected) | (got.isnan() & expected.isnan())
    apart = torch.where(equal, 0.0, (got - expected).abs())
    excess = (apart - allowed).nan_to_num(nan=torch.inf, posinf=torch.inf)
    unresolved = ~error.isfinite()
    return Comparison(
        got, expected, allowed, torch.where(unresolved, -torch.inf, excess), unresolved
    )


def locate(
    tensor: Tensor, probe: Probe, vectors: list[Tensor], allowance: Tolerance, worst: int
) -> tuple[int, ...] | None:
    """Narrow a disagreement at position ``worst`` of the free axis down to one entry of ``tensor``.

    Returns:
        The entry's index, or None where a disagreement vanishes when the vector is halved. A
        reference that is not linear in its vectors says that the function has no derivative there.
    """
    vectors, share = list(vectors), 1.0
    place = []
    for slot, vector in enumerate(vectors):
        candidates = vector.nonzero().squeeze(1)
        while len(candidates) > 1:
            share /= 2
            halves = candidates.tensor_split(2)
            excess = []
            for half in halves:
                vectors[slot] = torch.zeros_like(vector).index_copy(0, half, vector[half])
                compared = compare(tensor, probe, vectors, allowance, share)
                excess.append(float(compared.excess[worst]))
            if max(excess) <= 0:
                return None
            candidates = halves[excess.index(max(excess))]
        vectors[slot] = torch.zeros_like(vector).index_copy(0, candidates, vector[candidates])
        place.append(int(candidates[0]))
    place.insert(probe.free, worst)
    return tuple(place)


def random_vector(scale: Tensor, generator: torch.Generator) -> Tensor:
    """Entries of random sign between half of ``scale`` and ``scale``, exact in every dtype."""
    size = scale.shape
    magnitude = torch.randint(32, 65, size, generator=generator) / 64
    sign = 2 * torch.randint(0, 2, size, generator=generator) - 1
    return (magnitude * sign).to(torch.float64) * scale


def unit_vector(size: int, entry: int) -> Tensor:
    """One at ``entry``, zero elsewhere."""
    vector = torch.zeros(size, dtype=torch.float64)
    vector[entry] = 1
    return vector
