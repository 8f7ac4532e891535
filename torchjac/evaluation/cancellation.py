"""How large the terms were that a backward pass multiplied and added up.

Where they cancel, as in the gradient of ``softmax(x).sum()``, what is left is rounding of their size, and
has nothing in common with what another way leaves. Neither the values of the function nor the product
itself tell how large they were; the pass does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchjac.evaluation.engines import Graph
from torchjac.evaluation.probes import magnitude, random_like
from torchjac.foundations.pytree import flatten

__all__ = ["rounding_of_terms"]


def rounding_of_terms(graph: Graph) -> float:
    """What an entry of a product with a random seed may be off by, given the terms that it is a sum of.

    Two passes are made, the second with twice the seeds. Terms double exactly; what does not double is
    no term, such as the logarithm of a cotangent, or the least number of all where that has none.

    Args:
        graph: a function recorded by plain autograd, kept for further passes.
    """
    cotangents = random_like([value.detach() for value in graph.values])
    steps, doubled = _steps(graph, cotangents), _steps(graph, [2 * c for c in cotangents])
    if len(steps) != len(doubled):
        return 0.0
    terms = [
        max(step.made, step.taken, step.coefficients)
        for step, twice in zip(steps, doubled, strict=True)
        if (twice.made, twice.taken) == (2 * step.made, 2 * step.taken)
    ]
    elements = sum(tensor.numel() for tensor in (*graph.values, *graph.primals))
    return 16 * max(terms, default=0.0) * math.sqrt(elements)


def _steps(graph: Graph, cotangents: Sequence[Tensor]) -> list[_Step]:
    watch = _Watch(cotangents)
    with watch:
        graph.multiply(dict(enumerate(cotangents)), last=False)
    return watch.steps


class _Step(NamedTuple):
    """An operation that seeds have a part in: by how much the largest of its numbers are rounded."""

    made: float
    taken: float
    """Of what seeds have become."""
    coefficients: float
    """Of what that is multiplied with. What these are made of is no matter: a mask's -1e9 becomes 0."""


class _Watch(TorchDispatchMode):
    """Notes the steps from seeds to products."""

    def __init__(self, seeds: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[_Step] = []
        self._of_seeds = {id(seed): seed for seed in seeds}  # kept alive, so that ids stay taken

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        operands, made = _numbers((args, kwargs)), _numbers(result)
        taken = [tensor for tensor in operands if id(tensor) in self._of_seeds]
        if taken:
            coefficients = [tensor for tensor in operands if id(tensor) not in self._of_seeds]
            self.steps.append(_Step(*map(_rounding, (made, taken, coefficients))))
            self._of_seeds.update({id(tensor): tensor for tensor in made})
        return result


def _rounding(tensors: Sequence[Tensor]) -> float:
    return max((magnitude(t) * torch.finfo(t.dtype).eps for t in tensors), default=0.0)


def _numbers(tree: Any) -> list[Tensor]:
    tensors = [leaf for leaf in flatten(tree)[0] if isinstance(leaf, Tensor)]
    return [t for t in tensors if t.is_floating_point() and t.layout is torch.strided]
