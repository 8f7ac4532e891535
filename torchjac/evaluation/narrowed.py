"""A flat function with its outputs or inputs narrowed, whose Jacobian is a part of the whole one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.engines import FlatFunction
from torchjac.foundations.ranks import Ranks, Split

__all__ = ["Columns", "Part", "Rows"]


class Part(ABC):
    """Which part of a Jacobian is this rank's."""

    def __init__(self, primals: Sequence[Tensor]) -> None:
        self.primals = primals
        """What the narrowed function takes."""

    def of(self, function: FlatFunction) -> Narrowed:
        """The function whose Jacobian is that part."""
        return Narrowed(function, self)

    def full(self, primals: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the function itself takes."""
        return primals

    def own(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is kept of the function's outputs."""
        return values

    @abstractmethod
    def split(self, output: int, primal: int, leaf: Tensor) -> Split | None:
        """How a leaf ``(*out, *in)`` of the Jacobian of the narrowed function lies in that of the whole."""


class Rows(Part):
    """The Jacobian of a part of every output, cut along one of its dimensions."""

    def __init__(self, ranks: Ranks, primals: Sequence[Tensor]) -> None:
        super().__init__(primals)
        self._ranks = ranks
        self._splits: list[Split | None] = []

    def own(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._splits = [self._ranks.split(value.shape) for value in values]
        return tuple(
            [v if s is None else s.of(v) for v, s in zip(values, self._splits, strict=True)]
        )

    def split(self, output: int, primal: int, leaf: Tensor) -> Split | None:
        return self._splits[output]


class Columns(Part):
    """The Jacobian by a part of every input, cut along one of its dimensions."""

    def __init__(self, primals: Sequence[Tensor], splits: Sequence[Split | None]) -> None:
        pairs = list(zip(primals, splits, strict=True))
        super().__init__([p if s is None else s.of(p).clone() for p, s in pairs])
        self._whole, self._splits = primals, splits

    def full(self, primals: Sequence[Tensor]) -> Sequence[Tensor]:
        return [
            part if split is None else _put(part, whole, split)
            for part, whole, split in zip(primals, self._whole, self._splits, strict=True)
        ]

    def split(self, output: int, primal: int, leaf: Tensor) -> Split | None:
        split = self._splits[primal]
        # (*out, *in): the dimensions of the output come first
        return None if split is None else split.beside(leaf.dim() - self._whole[primal].dim())


class Narrowed:
    """The narrowed function. As `Jacobian` does, it carries the outputs of the function itself first."""

    def __init__(self, function: FlatFunction, part: Part) -> None:
        self._function, self._part = function, part
        self.num_values = 0

    def __call__(self, primals: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        values, carried = self._function(self._part.full(primals))
        known = getattr(self._function, "num_values", None)
        if known is None:
            known, carried = len(values), (*values, *carried)
        self.num_values = known
        return self._part.own(values), carried


def _put(part: Tensor, whole: Tensor, split: Split) -> Tensor:
    """``whole`` with the stretch replaced that this rank computes."""
    at = split.made
    before = whole.narrow(split.dim, 0, at.start)
    after = whole.narrow(split.dim, at.stop, split.size - at.stop)
    return torch.cat([before, part, after], split.dim)
