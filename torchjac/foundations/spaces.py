"""The leaves of a tree as a vector space: flat vectors, stacks of leaves, and trees of the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchjac.errors import ArgumentError, ArgumentTypeError
from torchjac.foundations.layout import Layout, Section
from torchjac.foundations.pytree import flatten, unflatten
from torchjac.foundations.seeds import Seeds

__all__ = ["FlatSeeds", "Space", "Trees"]


class Space:
    """Flat vectors over the elements of all leaves, leaf after leaf.

    A flat vector has one dtype and one device, its leaves may have several. It holds no tensor.

    Args:
        leaves: for their shapes, dtypes and devices.
    """

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self.layout = Layout(leaves)
        self.size = self.layout.total
        dtypes = [dtype for _, dtype, _ in self.layout.kinds]
        self.dtype = functools.reduce(torch.promote_types, dtypes)
        self.device = self.layout.kinds[0][2]

    def join(self, stacks: Sequence[Tensor]) -> Tensor:
        """Lay stacks ``(k, *shape)``, one per leaf, side by side: ``(k, size)``, never a view."""
        # (k, *shape) -> (k, count), leaf by leaf
        return torch.cat(
            [
                stack.reshape(len(stack), count).to(self.device, self.dtype)
                for stack, count in zip(stacks, self.layout.counts, strict=True)
            ],
            dim=1,
        )

    def split(self, rows: Tensor) -> list[Tensor]:
        """Cut ``(k, size)`` into stacks ``(k, *shape)``, of the leaves' dtypes and on their devices."""
        # (k, size) -> (k, count) -> (k, *shape), leaf by leaf
        parts = rows.split(self.layout.counts, dim=1)
        return [
            part.reshape(len(part), *shape).to(device, dtype)
            for part, (shape, dtype, device) in zip(parts, self.layout.kinds, strict=True)
        ]


class FlatSeeds(Seeds):
    """The rows of a matrix ``(k, size)`` as seeds over all leaves of a space."""

    def __init__(self, space: Space, rows: Tensor) -> None:
        self.layout, self.total, self.counts = space.layout, len(rows), [len(rows)]
        self._space, self._rows = space, rows

    def sections(self, start: int, stop: int) -> Iterator[Section]:
        yield Section(0, start, 0, stop - start)

    def _make(self, start: int, stop: int) -> dict[int, Tensor]:
        return dict(enumerate(self._space.split(self._rows[start:stop])))


class Trees:
    """The trees that the vectors of a space stand for.

    Args:
        space: of the leaves that count.
        put: puts one value for each of these into the tree; what else the tree has is None.
    """

    def __init__(self, space: Space, put: Callable[[Sequence[Any]], Any]) -> None:
        self.space = space
        leaves, self._spec = flatten(put([torch.empty(0)] * len(space.layout.kinds)))
        self._counts = [leaf is not None for leaf in leaves]

    def tree(self, vector: Tensor) -> Any:
        """The tree of a flat vector ``(size,)``."""
        leaves = iter([stack[0] for stack in self.space.split(vector[None])])
        return unflatten([next(leaves) if counts else None for counts in self._counts], self._spec)

    def vector(self, where: str, tree: Any) -> Tensor:
        """The flat vector of a tree; ``where`` names the call in errors."""
        leaves, spec = flatten(tree)
        if spec != self._spec:
            raise ArgumentError(f"{where}: expected a tree {self._spec}, got {spec}.")
        chosen = [leaf for leaf, counts in zip(leaves, self._counts, strict=True) if counts]
        for number, (leaf, kind) in enumerate(zip(chosen, self.space.layout.kinds, strict=True)):
            _check(f"{where}: leaf {number}", leaf, *kind)
        return self.space.join([leaf[None] for leaf in chosen])[0]


def _check(
    where: str, leaf: object, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> None:
    expected = f"expected a tensor of shape {tuple(shape)}, {dtype}, on {device}"
    if not isinstance(leaf, Tensor):
        raise ArgumentTypeError(f"{where} is a {type(leaf).__name__}; {expected}.")
    if leaf.dtype != dtype or leaf.device != device:
        raise ArgumentTypeError(
            f"{where} is {leaf.dtype} on {leaf.device}; {expected}. Convert it with .to()."
        )
    if leaf.shape != shape:
        raise ArgumentError(f"{where} has shape {tuple(leaf.shape)}; {expected}.")
