"""The operators that random programs are made of: one line each.

A template is Python source. ``{0}``, ``{1}``, ... stand for operands, other names for what
``fields`` picks, and ``{out}``, where it appears, for the result's own name; statements are then
separated by semicolons. To add an operator, add a line to one of the tables: the strategies draw
it, and the tests check it, from there.

Every operator must be defined, and where it is called smooth be smooth, for all values; ``bound``
says how large its result can get, so that no composition overflows.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

__all__ = ["OPERATORS", "Operator", "Pick", "Shape"]

Shape: TypeAlias = "tuple[int, ...]"
Fields: TypeAlias = "dict[str, object]"
T = TypeVar("T")


class Pick(Protocol):
    """Chooses one of several options; a Hypothesis draw, or anything else."""

    def __call__(self, options: Sequence[T], /) -> T:
        """Return one of ``options``, of which there is at least one."""


def _always(*shapes: Shape) -> bool:
    return True


def _no_fields(pick: Pick, *shapes: Shape) -> Fields:
    return {}


def _largest(size: int, *bounds: float) -> float:
    return max(bounds)


@dataclass(frozen=True)
class Operator:
    """One differentiable step of a program."""

    name: str
    template: str
    fits: Callable[..., bool] = _always
    """Which shapes of operands it takes."""
    fields: Callable[..., Fields] = _no_fields
    """Picks dimensions, indices and the like, from ``pick`` and the operands' shapes."""
    bound: Callable[..., float] = _largest
    """The largest magnitude of the result, from the first operand's size and all operands' bounds."""
    smooth: bool = True
    """Whether all derivatives exist everywhere; ties, zeros and borders are kinks of the others."""
    trap: str = ""
    """What PyTorch gets wrong, or refuses, in some mode of differentiation."""
    arity: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        names = {name for _, name, _, _ in string.Formatter().parse(self.template) if name}
        object.__setattr__(self, "arity", len({name[0] for name in names if name[0].isdigit()}))


# ---- shapes that fit ----------------------------------------------------------------------------


def _rank(least: int, most: int = 99) -> Callable[..., bool]:
    return lambda *shapes: all(least <= len(shape) <= most for shape in shapes)


def _nonempty(*shapes: Shape) -> bool:
    return all(math.prod(shape) for shape in shapes)


def _sides(*shapes: Shape) -> bool:
    """At least one dimension, and none of them empty."""
    return _nonempty(*shapes) and all(shapes)


def _same(*shapes: Shape) -> bool:
    return len(set(shapes)) == 1


def _same_sides(*shapes: Shape) -> bool:
    return _same(*shapes) and _sides(*shapes)


def _broadcast(*shapes: Shape) -> bool:
    longest = max(map(len, shapes))
    padded = [(1,) * (longest - len(shape)) + shape for shape in shapes]
    return all(len(set(sides) - {1}) <= 1 for sides in zip(*padded, strict=True))


def _into(target: Shape, *sources: Shape) -> bool:
    """The sources broadcast to the target without changing its shape."""
    return all(
        len(source) <= len(target)
        and all(a in (1, b) for a, b in zip(reversed(source), reversed(target), strict=False))
        for source in sources
    )


def _into_row(target: Shape, source: Shape) -> bool:
    return bool(target) and target[0] > 0 and _into(target[1:], source)


def _matmul(left: Shape, right: Shape) -> bool:
    if not left or not right or left[-1] != right[-2 if len(right) > 1 else 0]:
        return False
    return _broadcast(left[:-2], right[:-2])


def _linear(left: Shape, right: Shape) -> bool:
    return bool(left) and len(right) == 2 and left[-1] == right[1]


def _square(*shapes: Shape) -> bool:
    return all(len(shape) == 2 and shape[0] == shape[1] > 0 for shape in shapes)


def _solve(matrix: Shape, right: Shape) -> bool:
    return _square(matrix) and len(right) in (1, 2) and right[0] == matrix[0]


def _conv(signal: Shape, kernel: Shape) -> bool:
    return len(signal) == len(kernel) == 1 and signal[0] >= kernel[0] > 0


def _rows(left: Shape, right: Shape) -> bool:
    return len(left) == len(right) == 2 and left[1] == right[1] and _nonempty(left, right)


def _stackable(left: Shape, right: Shape) -> bool:
    return _same(left, right) and bool(left)


# ---- what is picked -----------------------------------------------------------------------------


def _dim(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    return {"dim": pick(range(-len(shape), len(shape)))}


def _dim_keep(pick: Pick, shape: Shape) -> Fields:
    return {**_dim(pick, shape), "keep": pick((False, True))}


def _two_dims(pick: Pick, shape: Shape) -> Fields:
    return {"first": pick(range(len(shape))), "second": pick(range(-len(shape), 0))}


def _new_dim(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    return {"dim": pick(range(len(shape) + 1))}


def _order(pick: Pick, shape: Shape) -> Fields:
    left, order = list(range(len(shape))), []
    while left:
        order.append(pick(left))
        left.remove(order[-1])
    return {"order": tuple(order)}


def _position(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    dim = pick(range(len(shape)))
    return {"dim": dim, "index": pick(range(shape[dim]))}


def _row(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    return {"index": pick(range(-shape[0], shape[0]))}


def _window(pick: Pick, shape: Shape) -> Fields:
    dim = pick(range(len(shape)))
    start = pick(range(shape[dim] + 1))
    return {"dim": dim, "start": start, "length": pick(range(shape[dim] - start + 1))}


def _count(pick: Pick, *shapes: Shape) -> Fields:
    return {"count": pick((2, 1, 3))}


def _literal(values: object) -> str:
    return f"torch.tensor({values}, device={{0}}.device)"


def _indices(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    """Some positions along a dimension, repetitions allowed."""
    dim = pick(range(len(shape)))
    chosen = [pick(range(shape[dim])) for _ in range(pick((2, 1, 3)))]
    return {"dim": dim, "indices": chosen}


def _permutation(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    """Every position along a dimension once; without repetitions where order would matter."""
    dim = pick(range(len(shape)))
    return {"dim": dim, "indices": list(_order(pick, (1,) * shape[dim])["order"])}  # type: ignore


def _mask(pick: Pick, shape: Shape, *others: Shape) -> Fields:
    """A constant pattern over the last dimension."""
    return {"mask": [pick((True, False)) for _ in range(shape[-1])]}


def _flat_indices(pick: Pick, shape: Shape) -> Fields:
    return {"indices": [pick(range(math.prod(shape))) for _ in range(pick((2, 1, 3)))]}


# ---- how large it can get -----------------------------------------------------------------------


def _at_most(limit: float) -> Callable[..., float]:
    return lambda size, *bounds: limit


def _of(function: Callable[[float], float]) -> Callable[..., float]:
    return lambda size, bound: function(bound)


def _total(size: int, *bounds: float) -> float:
    return sum(bounds)


def _product(size: int, *bounds: float) -> float:
    return math.prod(bounds)


def _summed(size: int, *bounds: float) -> float:
    return size * math.prod(bounds)


def _power(size: int, bound: float) -> float:
    return float(max(bound, 1.0) ** min(size, 64))


def _log_sum(size: int, bound: float) -> float:
    return 2 * bound + math.log(size + 1)


# ---- the registry -------------------------------------------------------------------------------

_EYE = "torch.eye({0}.shape[0], dtype={0}.dtype, device={0}.device)"
_DOMINANT = "torch.tanh({0}) + 2 * {0}.shape[0] * " + _EYE
_INDEX = "torch.tensor({indices}, device={0}.device)"
_MASK = "torch.tensor({mask}, device={0}.device)"
_AT = "[" + _INDEX + ".reshape([-1 if d == {dim} else 1 for d in range({0}.dim())])"
_LIKE = _INDEX + ".reshape([-1 if d == {dim} else 1 for d in range({0}.dim())]).expand_as({0})"
