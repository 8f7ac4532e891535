"""One directional derivative from function values, with an estimate of its own error.

Central differences at a ladder of steps, extrapolated to step zero, the best entry of the table
taken by its estimated error, for every output by itself.

Source: Richardson (1911) for the extrapolation; Ridders, *Accurate computation of F'(x) and
F'(x)F''(x)*, Advances in Engineering Software 4(2), 1982, for taking the entry of least estimated
error; Griewank & Walther, *Evaluating Derivatives* (2008), section 1.1, for why steps must balance
truncation against rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Estimate", "Line", "along", "first_step"]

Line = Callable[[float], "tuple[Tensor, float]"]
"""From a displacement to the flat values there, and the displacement that rounding allowed."""

LEVELS = 5
# No power of two: steps that share their digits share their rounding errors too, and agree on them.
RATIO = 6.1


class Estimate(NamedTuple):
    """A derivative of every output along one direction, and a bound that it should lie within."""

    value: Tensor
    error: Tensor


class _Level(NamedTuple):
    """What the values at one step say."""

    slope: Tensor
    noise: Tensor
    """What rounding of the values, and of the step, can have done to the slope."""
    bend: Tensor
    """How much the slopes to the right and to the left differ."""


def first_step(epsilon: float) -> float:
    """The ladder's longest step at unit scale.

    Three extrapolated levels leave an error of the order step^6, and rounding one of
    epsilon / step: they meet at the seventh root.
    """
    return float(epsilon ** (1 / 7))


def along(line: Line, center: Tensor, step: float, epsilon: float) -> Estimate:
    """Differentiate ``line`` at zero: ten evaluations.

    Args:
        line: the function along a direction.
        center: its values at zero.
        step: the longest displacement to use.
        epsilon: the relative rounding error of the values.

    Returns:
        The derivative and its error. Where the function has a kink the error spans the slopes of
        both sides, so that any subgradient between them is within it; where it is undefined nearby
        the error is infinite. It is an estimate and no proof: a function that cancels most of its
        digits inside can exceed it a few times over.
    """
    levels = [_level(line, center, step / RATIO**index, epsilon) for index in range(LEVELS)]
    table = _extrapolated([level.slope for level in levels])
    jitter = _jitter(table)
    kinks = [torch.zeros_like(center), *map(_kink, levels, levels[1:])]
    # The finest slope as it is: the best there is where a coarser step, but not it, crosses a kink.
    value, beside = table[-1][0], table[-2][0]
    error = _claim((value - beside).abs() + 4 * levels[-1].noise + kinks[-1])
    error = torch.where(kinks[-3] > 0, error, torch.inf)
    # Two steps can agree by accident, three hardly: the first two rows are not candidates.
    for row in range(2, LEVELS):
        seen = jitter / RATIO ** (LEVELS - 1 - row)
        noise = 4 * (levels[row].noise + seen) + kinks[row]
        for order in range(1, row + 1):
            entry, finer = table[row][order], table[row][order - 1]
            coarser = table[row - 1][order - 1]
            apart = torch.maximum((entry - finer).abs(), (entry - coarser).abs())
            claim = _claim(apart + noise)
            value = torch.where(claim < error, entry, value)
            error = torch.minimum(claim, error)
    return Estimate(value, error)


def _claim(error: Tensor) -> Tensor:
    return error.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _extrapolated(slopes: Sequence[Tensor]) -> list[list[Tensor]]:
    """Row by row, the slope at one step and what it becomes with 1, 2, ... coarser ones' help."""
    table: list[list[Tensor]] = []
    for row, slope in enumerate(slopes):
        table.append([slope])
        for order in range(1, row + 1):
            finer, coarser = table[row][-1], table[row - 1][order - 1]
            table[row].append(finer + (finer - coarser) / (RATIO ** (2 * order) - 1))
    return table


def _jitter(table: list[list[Tensor]]) -> Tensor:
    """The noise of the finest slope, seen: how far the last rows are apart where all should agree.

    Rounding inside a function can be far above that of its values. It grows as the step shrinks,
    so what it does to the other rows follows from what it does to the finest.
    """
    last = len(table) - 1
    seen = [(table[last][order] - table[last - 1][order]).abs() for order in range(last)]
    return torch.stack(seen).nan_to_num(nan=0.0).amax(0)


def _level(line: Line, center: Tensor, step: float, epsilon: float) -> _Level:
    right, forth = line(step)
    left, back = line(-step)
    width = forth - back
    if width <= 0:  # the step is lost in rounding
        lost = torch.full_like(center, torch.nan)
        return _Level(lost, lost, torch.zeros_like(center))
    bend = (right - 2 * center + left).abs() / (width / 2)
    uneven = bend * abs(forth + back) / width
    return _Level(
        (right - left) / width, epsilon * (right.abs() + left.abs()) / width + uneven, bend
    )


def _kink(coarse: _Level, fine: _Level) -> Tensor:
    """Half the jump of the slope at a kink, and 1% more for curvature.

    A kink is where the bend does not shrink with the step.
    """
    stays = (fine.bend > 2 * coarse.bend / RATIO) & (fine.bend > 8 * fine.noise)
    return torch.where(stays, 1.01 * fine.bend / 2, 0.0)
