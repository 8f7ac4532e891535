"""The sums over seeds that give a diagonal or a trace: exactly, or from random probes.

Source:
    Hutchinson, *A Stochastic Estimator of the Trace of the Influence Matrix* (1989); Bekas, Kokiopoulou &
    Saad, *An Estimator for the Diagonal of a Matrix* (2007); Meyer, Musco, Musco & Woodruff, *Hutch++:
    Optimal Stochastic Trace Estimation* (2021), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchjac.evaluation.forms import Form, ProductForm, contracted, flat_products
from torchjac.evaluation.surroundings import compiling, inside_transform, without_transforms
from torchjac.foundations.groups import ProbeSeeds
from torchjac.foundations.layout import Layout

__all__ = ["Estimate", "hutch_plus_plus", "hutchinson", "random_signs"]

_functorch = torch._C._functorch


class Estimate(NamedTuple):
    """Leaves of a result, and how far they are off, if that was asked for."""

    leaves: Sequence[Tensor]
    errors: Sequence[Tensor] | None = None


def random_signs(count: int, layout: Layout, generator: torch.Generator | None) -> Tensor:
    """Rademacher probes ``(count, layout.total)``: a fair sign for every input.

    Under vmap all samples have the same ones, unless it was told ``randomness="different"``.
    """
    kinds = layout.kinds
    device = generator.device if generator is not None else kinds[0][2]
    dtype = kinds[0][1]
    for _, other, _ in kinds[1:]:
        dtype = torch.promote_types(dtype, other)

    def draw() -> Tensor:
        bits = torch.randint(0, 2, (count, layout.total), generator=generator, device=device)
        return (2 * bits - 1).to(dtype)

    if _draws_apart():
        return draw()
    with without_transforms():
        return draw()


def _draws_apart() -> bool:
    """Whether the innermost transform is a vmap whose samples draw numbers of their own."""
    if compiling():
        return True  # it draws as it does for the compiler
    if not inside_transform():
        return False
    layer = _functorch.peek_interpreter_stack()
    if layer.key() != _functorch.TransformType.Vmap:
        return False
    different = _functorch.RandomnessType.Different
    return bool(_functorch.CVmapInterpreterPtr(layer).randomness() == different)


def samples_of_vmap() -> int:
    """How many samples all vmaps around have together; before torch 2.1, the innermost has."""
    if compiling() or not inside_transform():
        return 1
    stack = getattr(_functorch, "get_interpreter_stack", None)
    layers = stack() if stack else [_functorch.peek_interpreter_stack()]
    batched = [layer for layer in layers if layer.key() == _functorch.TransformType.Vmap]
    return max(math.prod(_functorch.CVmapInterpreterPtr(layer).batchSize() for layer in batched), 1)


def hutchinson(
    form: Form,
    signs: Tensor,
    layout: Layout,
    size: int | None,
    *,
    with_error: bool,
    shown: str | None,
) -> Estimate:
    """The mean of v ∗ A·v, or of v·(A·v), over the probes: right on average, whatever A."""
    count, seeds = len(signs), ProbeSeeds(layout, signs)
    if not with_error:
        return Estimate([part / count for part in contracted(form, seeds, size, shown=shown)])
    samples = contracted(form, seeds, size, each=True, shown=shown)
    return Estimate([part.mean(0) for part in samples], [_error(part) for part in samples])


def hutch_plus_plus(
    form: ProductForm,
    signs: Tensor,
    layout: Layout,
    size: int | None,
    *,
    with_error: bool,
    shown: str | None,
) -> Estimate:
    """The trace: exactly where A is large, by Hutchinson's estimator on what is left.

    A third of the products finds Q, whose columns span most of what A does. Then
    tr(A) = tr(QᵀAQ) + tr((I − QQᵀ)A(I − QQᵀ)), and only the second part is left to chance.
    """
    third = min(len(signs) // 3, layout.total)
    sketch, probes = signs[:third], signs[2 * third :]
    image = flat_products(form, ProbeSeeds(layout, sketch), size).to(signs.dtype)
    basis = torch.linalg.qr(image.T).Q  # (n, third)
    within = contracted(form, ProbeSeeds(layout, basis.T), size)
    # (k, n) - (k, n) @ (n, third) @ (third, n)
    rest = probes - (probes @ basis) @ basis.T
    samples = contracted(form, ProbeSeeds(layout, rest), size, each=True, shown=shown)
    leaves = [one + part.mean(0) for one, part in zip(within, samples, strict=True)]
    return Estimate(leaves, [_error(part) for part in samples] if with_error else None)


def _error(samples: Tensor) -> Tensor:
    """The standard error of the mean of ``(k, *leaf)``."""
    return samples.std(0) / math.sqrt(len(samples))
