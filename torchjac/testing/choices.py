"""What operators ask of their operands: which shapes fit, what is picked, how large it can get."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from torchjac.testing.operators import Fields, Pick, Shape

# ---- shapes that fit ----------------------------------------------------------------------------


def rank(least: int, most: int = 99) -> Callable[..., bool]:
    """All have between ``least`` and ``most`` dimensions."""
    return lambda *shapes: all(least <= len(shape) <= most for shape in shapes)


def nonempty(*shapes: Shape) -> bool:
    """All have entries."""
    return all(math.prod(shape) for shape in shapes)


def filled(*shapes: Shape) -> bool:
    """All have entries, and a dimension to speak of."""
    return nonempty(*shapes) and all(shapes)


def same(*shapes: Shape) -> bool:
    """All are equal."""
    return len(set(shapes)) == 1


def same_rank_1(*shapes: Shape) -> bool:
    """All are equal and have a dimension."""
    return same(*shapes) and all(shapes)


def same_filled(*shapes: Shape) -> bool:
    """All are equal and have entries and a dimension."""
    return same(*shapes) and filled(*shapes)


def broadcast(*shapes: Shape) -> bool:
    """They broadcast with each other."""
    longest = max(map(len, shapes))
    padded = [(1,) * (longest - len(shape)) + shape for shape in shapes]
    return all(len({*sides} - {1}) <= 1 for sides in zip(*padded, strict=True))


def into(target: Shape, source: Shape) -> bool:
    """The second broadcasts to the first, whose shape stays."""
    pairs = zip(reversed(source), reversed(target), strict=False)
    return len(source) <= len(target) and all(side in (1, goal) for side, goal in pairs)


def into_row(target: Shape, source: Shape) -> bool:
    """The second broadcasts to one row of the first."""
    return bool(target) and target[0] > 0 and into(target[1:], source)


def matmul(left: Shape, right: Shape) -> bool:
    """What ``@`` takes."""
    if not left or not right or left[-1] != right[-2 if len(right) > 1 else 0]:
        return False
    return broadcast(left[:-2], right[:-2])


def linear(left: Shape, right: Shape) -> bool:
    """Features, and a matrix of weights."""
    return bool(left) and len(right) == 2 and left[-1] == right[1]


def square(shape: Shape) -> bool:
    """A matrix of up to three rows."""
    return len(shape) == 2 and 0 < shape[0] == shape[1] <= 3


def solve(matrix: Shape, right: Shape) -> bool:
    """A matrix, and right-hand sides for it."""
    return square(matrix) and len(right) in (1, 2) and right[0] == matrix[0]


def conv(signal: Shape, kernel: Shape) -> bool:
    """A signal, and a kernel no longer than it."""
    return len(signal) == len(kernel) == 1 and signal[0] >= kernel[0] > 0


def point_sets(left: Shape, right: Shape) -> bool:
    """Two sets of points in one space."""
    return len(left) == len(right) == 2 and left[1] == right[1] and nonempty(left, right)


# ---- what is picked -----------------------------------------------------------------------------


def dim(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    """A dimension, counted from either end."""
    return {"dim": pick(range(-len(shape), len(shape)))}


def dim_keep(pick: Pick, shape: Shape) -> Fields:
    """A dimension, and whether it stays."""
    return {**dim(pick, shape), "keep": pick((False, True))}


def two_dims(pick: Pick, shape: Shape) -> Fields:
    """Two dimensions, perhaps the same."""
    return {"first": pick(range(len(shape))), "second": pick(range(-len(shape), 0))}


def new_dim(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    """Where a new dimension goes."""
    return {"dim": pick(range(len(shape) + 1))}


def order(pick: Pick, shape: Shape) -> Fields:
    """The dimensions in another order."""
    return {"order": tuple(_shuffled(pick, range(len(shape))))}


def position(pick: Pick, shape: Shape) -> Fields:
    """A dimension, and a position along it."""
    along = pick(range(len(shape)))
    return {"dim": along, "index": pick(range(shape[along]))}


def row(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    """A position along the first dimension."""
    return {"index": pick(range(-shape[0], shape[0]))}


def window(pick: Pick, shape: Shape) -> Fields:
    """A dimension and a stretch of it, perhaps empty."""
    along = pick(range(len(shape)))
    start = pick(range(shape[along] + 1))
    return {"dim": along, "start": start, "length": pick(range(shape[along] - start + 1))}


def count(pick: Pick, shape: Shape) -> Fields:
    """A small number."""
    return {"count": pick((2, 1, 3))}


def indices(pick: Pick, shape: Shape) -> Fields:
    """Some positions along a dimension, repetitions allowed."""
    along = pick(range(len(shape)))
    return {"dim": along, "indices": [pick(range(shape[along])) for _ in range(pick((2, 1, 3)))]}


def permutation(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    """Every position along a dimension once, where the order of writes must not matter."""
    along = pick(range(len(shape)))
    return {"dim": along, "indices": list(_shuffled(pick, range(shape[along])))}


def flat_indices(pick: Pick, shape: Shape) -> Fields:
    """Some positions of the flat tensor, repetitions allowed."""
    return {"indices": [pick(range(math.prod(shape))) for _ in range(pick((2, 1, 3)))]}


def grid(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    """A position along a dimension for every entry: what gather and scatter take."""
    along = pick(range(len(shape)))

    def nested(sides: Sequence[int]) -> object:
        if not sides:
            return pick(range(shape[along]))
        return [nested(sides[1:]) for _ in range(sides[0])]

    return {"dim": along, "indices": nested(shape)}


def mask(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    """A constant pattern over the last dimension."""
    return {"mask": [pick((True, False)) for _ in range(shape[-1])]}


def _shuffled(pick: Pick, options: Sequence[int]) -> Iterator[int]:
    left = list(options)
    while left:
        chosen = pick(left)
        left.remove(chosen)
        yield chosen


# ---- how large it can get -----------------------------------------------------------------------


def at_most(limit: float) -> Callable[..., float]:
    """No larger than ``limit``, whatever comes in."""
    return lambda size, *bounds: limit


def of(function: Callable[[float], float]) -> Callable[..., float]:
    """A function of the only operand's bound."""
    return lambda size, bound: function(bound)


def total(size: int, *bounds: float) -> float:
    """The operands are added."""
    return sum(bounds)


def product(size: int, *bounds: float) -> float:
    """The operands are multiplied."""
    return math.prod(bounds)


def summed(size: int, *bounds: float) -> float:
    """The operands are multiplied, and up to all entries added."""
    return max(size, 1) * math.prod(bounds)


def power(size: int, bound: float) -> float:
    """Up to all entries are multiplied."""
    return float(max(bound, 1.0) ** size)


def log_sum(size: int, bound: float) -> float:
    """A logarithm of a sum of exponentials, or a difference from one."""
    return 2 * bound + math.log(size + 1)
