"""The gradients of all outputs, each by a plain backward pass, as a flat function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.engines import FlatFunction, linearize
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds

__all__ = ["Gradients"]


class Gradients:
    """What `Jacobian` in reverse mode is, for going backward over many times.

    Every pass is a plain one, so that its graph is as trustworthy as can be, and stays whole; `Jacobian`
    records it anew at each backward pass, which takes less memory.

    Its outputs are the leaves ``(*out, *in)``, outputs outermost. It carries the outputs of the function,
    and then what that carries.
    """

    def __init__(self, function: FlatFunction) -> None:
        self.function = function
        self.captures_primals = getattr(function, "captures_primals", False)
        self.num_values = 0
        """How many of the carried tensors are outputs of the function; known once evaluated."""

    def __call__(self, primals: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        engine = linearize(self.function, primals, "reverse")
        seeds = IdentitySeeds(Layout(engine.values))
        rows: list[list[Tensor]] = []
        for row in range(seeds.total):
            seed = {leaf: stack[0] for leaf, stack in seeds.chunk(row, row + 1).items()}
            products = engine.multiply(seed, last=False)
            rows.append(
                [
                    torch.zeros_like(primal) if product is None else product.to(primal.dtype)
                    for product, primal in zip(products, primals, strict=True)
                ]
            )
        self.num_values = len(engine.values)
        leaves, at = [], 0
        for value, count in zip(engine.values, seeds.counts, strict=True):
            # m_o times (*in) -> (m_o, *in) -> (*out, *in)
            for i, primal in enumerate(primals):
                block = [row[i] for row in rows[at : at + count]]
                stack = torch.stack(block) if block else primal.new_zeros(0, *primal.shape)
                leaves.append(stack.reshape((*value.shape, *primal.shape)))
            at += count
        return tuple(leaves), (*engine.values, *engine.carried)
