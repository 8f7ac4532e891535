"""Second-order rules: what an operation makes of directional derivatives and of a Laplacian.

A `Jet` is a tensor with its derivatives along d directions and the sum of its second derivatives along
them. Through an operation f they go as (chain rule, summed over the directions v)

    first[v]  =  f'(value) · first[v]
    second    =  f'(value) · second  +  Σ_v f''(value)[first[v], first[v]]

Only the sum of the second derivatives is pushed, not each of them: d + 2 tensors where nested forward
mode carries 2·d + 1.

Source:
    Li, Ye, Zhang et al., *A computational framework for neural network-based variational Monte Carlo with
    forward Laplacian* (2023); Dangel, Siebert, Zeinhofer & Walther, *Collapsing Taylor Mode Automatic
    Differentiation* (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchjac.evaluation.batching import load_forward_rules, vectorised

__all__ = ["Jet", "elementwise", "general", "linear", "product", "total"]

Function: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Jet:
    """A tensor and its derivatives; None stands for zeros."""

    value: Tensor
    first: Tensor | None
    """``(d, *shape)``"""
    second: Tensor | None
    """``shape``"""


Parts: TypeAlias = tuple[Any, Any]
"""``first`` and ``second`` of a result, or lists of them."""


def linear(function: Function, jets: Sequence[Jet], *, wants_first: bool) -> Parts:
    """Through ``function``, which is linear in all ``jets`` together."""
    first = second = None
    if wants_first and any(jet.first is not None for jet in jets):
        first = _stacked(function, [jet.first for jet in jets], [jet.value for jet in jets])
    if any(jet.second is not None for jet in jets):
        second = function(*_filled([jet.second for jet in jets], jets))
    return first, second


def total(jets: Sequence[tuple[float, Jet]], shape: torch.Size, *, wants_first: bool) -> Parts:
    """Through a sum of multiples, where tensors of different shapes are broadcast to ``shape``."""
    first = second = None
    for factor, jet in jets:
        if wants_first and jet.first is not None:
            aligned = _aligned(jet.first, len(shape))
            first = _plus(first, _times(factor, aligned.expand(-1, *shape)))
        if jet.second is not None:
            second = _plus(second, _times(factor, jet.second.expand(shape)))
    return first, second


def product(function: Function, jets: Sequence[Jet], *, wants_first: bool) -> Parts:
    """Through ``function``, which is linear in each of two ``jets``: L(ab) = a·Lb + b·La + 2·Σ Ja·Jb."""
    a, b = jets
    parts = [
        linear(lambda x: function(x, b.value), [a], wants_first=wants_first),
        linear(lambda x: function(a.value, x), [b], wants_first=wants_first),
    ]
    first, second = (_plus(one, other) for one, other in zip(*parts, strict=True))
    if a.first is not None and b.first is not None:
        both = _stacked(function, [a.first, b.first], [a.value, b.value])
        second = _plus(second, 2 * both.sum(0))
    return first, second


def elementwise(
    function: Function, jets: Sequence[Jet], shape: torch.Size, *, wants_first: bool
) -> Parts:
    """Through ``function``, whose result has at each place what is at that place of its arguments."""
    slopes, bends = _partials(function, [jet.value.expand(shape) for jet in jets])
    # (d, *own) -> (d, 1, ..., 1, *own), so that it broadcasts against shape
    firsts = [None if j.first is None else _aligned(j.first, len(shape)) for j in jets]
    first = second = None
    for slope, ahead, jet in zip(slopes, firsts, jets, strict=True):
        if wants_first and ahead is not None:
            first = _plus(first, slope * ahead)
        if jet.second is not None:
            second = _plus(second, slope * jet.second)
    for i, row in enumerate(bends):
        for j, bend in enumerate(row[: i + 1]):
            a, b = firsts[i], firsts[j]
            if a is not None and b is not None:
                both = (a.square() if a is b else a * b).sum(0)
                second = _plus(second, (bend if i == j else 2 * bend) * both)
    return first, second


def general(function: Function, jets: Sequence[Jet], *, wants_first: bool) -> Parts:
    """Through any ``function`` from tensors to a tuple of tensors, by its own derivatives.

    The first derivatives are those of reverse mode, transposed: PyTorch has them for more operations,
    and wrong less often.
    """
    load_forward_rules()
    values = tuple([jet.value for jet in jets])
    firsts: Any = None
    seconds: Any = None
    if any(jet.first is not None for jet in jets):
        count = 0

        def along(*direction: Tensor) -> list[Tensor]:
            nonlocal count
            pushed, curved = torch.func.jvp(
                lambda *point: _pushed(function, point, direction), values, direction
            )[:2]
            count = len(pushed)
            return [*pushed, *curved]

        found = _stacked(along, [jet.first for jet in jets], values)
        firsts = found[:count] if wants_first else None
        seconds = [curved.sum(0) for curved in found[count:]]
    if any(jet.second is not None for jet in jets):
        more = _pushed(function, values, _filled([jet.second for jet in jets], jets))
        seconds = (
            more if seconds is None else [_plus(*both) for both in zip(seconds, more, strict=True)]
        )
    return firsts, seconds


def _pushed(
    function: Function, point: Sequence[Tensor], direction: Sequence[Tensor]
) -> Sequence[Tensor]:
    """J·v as the transpose of uᵀ·J, which is linear in u."""
    outputs, pull = torch.func.vjp(function, *point)[:2]
    zeros = [torch.zeros_like(output) for output in outputs]
    _, transposed = torch.func.vjp(lambda *cotangents: pull(tuple(cotangents)), *zeros)[:2]
    pushed: Sequence[Tensor] = transposed(tuple(direction))
    return pushed


def _partials(
    function: Function, values: Sequence[Tensor]
) -> tuple[Sequence[Tensor], list[Sequence[Tensor]]]:
    """First and second partial derivatives of an elementwise function, each of the common shape."""

    def slopes_at(*point: Tensor) -> Any:
        result, pull = torch.func.vjp(function, *point)[:2]
        return pull(torch.ones_like(result))

    slopes, pull = torch.func.vjp(slopes_at, *values)  # type: ignore[misc]
    bends = []
    for i in range(len(slopes)):
        chosen = [
            torch.ones_like(s) if i == j else torch.zeros_like(s) for j, s in enumerate(slopes)
        ]
        bends.append(pull(tuple(chosen)))
    return slopes, bends


def _stacked(function: Function, stacks: Sequence[Tensor | None], likes: Sequence[Tensor]) -> Any:
    """Apply ``function`` to each of the directions, in one go; zeros where a stack is None."""
    present = {at: stack for at, stack in enumerate(stacks) if stack is not None}
    many = False

    def one(seeds: dict[int, Tensor]) -> Sequence[Tensor]:
        nonlocal many
        given = [seeds[at] if at in seeds else torch.zeros_like(x) for at, x in enumerate(likes)]
        result = function(*given)
        many = not isinstance(result, Tensor)
        return result if many else [result]

    found = vectorised(one, present)
    return found if many else found[0]


def _filled(parts: Sequence[Tensor | None], jets: Sequence[Jet]) -> list[Tensor]:
    return [
        torch.zeros_like(jet.value) if part is None else part
        for part, jet in zip(parts, jets, strict=True)
    ]


def _aligned(stack: Tensor, dims: int) -> Tensor:
    # (d, *own) -> (d, 1, ..., 1, *own) of dims + 1 dimensions
    return stack.reshape(len(stack), *[1] * (dims + 1 - stack.dim()), *stack.shape[1:])


def _plus(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _times(factor: float, tensor: Tensor) -> Tensor:
    return tensor if factor == 1 else factor * tensor
