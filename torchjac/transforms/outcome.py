"""What a function returned, and how the flat results go back into its trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchjac.foundations.pytree import TreeSpec, flatten, unflatten

__all__ = ["ONE_TENSOR", "Aux", "Outcome"]


class Aux(NamedTuple):
    """What a function returns beside its outputs, as a tree."""

    leaves: list[Any]
    spec: TreeSpec


class Outcome(NamedTuple):
    """How the flat outputs of an evaluation go back into the trees that the function returned."""

    kinds: list[str]
    """For every output leaf: "differentiable", "carried" (an integer tensor), or "none"."""
    spec: TreeSpec
    aux: Aux | None
    """The auxiliary tree; its tensors stand for themselves, the carried ones replace them."""

    def value(self, values: Sequence[Tensor], carried: Sequence[Tensor]) -> Any:
        """The tree of outputs."""
        sources = {"differentiable": iter(values), "carried": iter(carried), "none": iter(())}
        return unflatten([next(sources[kind], None) for kind in self.kinds], self.spec)

    def aux_value(self, carried: Sequence[Tensor]) -> Any:
        """The auxiliary tree."""
        assert self.aux is not None
        tensors = iter(carried[self.kinds.count("carried") :])
        leaves = [next(tensors) if isinstance(x, Tensor) else x for x in self.aux.leaves]
        return unflatten(leaves, self.aux.spec)

    def jacobian(self, trees: Sequence[Any]) -> Any:
        """The tree of outputs with ``trees``, one per differentiable output, in place of its leaves."""
        if len(trees) == len(self.kinds):
            return unflatten(trees, self.spec)
        source = iter(trees)
        return unflatten(
            [next(source) if kind == "differentiable" else None for kind in self.kinds], self.spec
        )


ONE_TENSOR = Outcome(["differentiable"], flatten(torch.empty(0))[1], None)
"""Of most functions."""
