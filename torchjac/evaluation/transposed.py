"""Forward products without a forward rule: the transpose of a backward pass.

NOTE [Double backward]
A backward pass takes a cotangent u to Jᵀu, which is linear in u. So the Jacobian of *that* map, by u, is Jᵀ
wherever it is taken, and its own backward pass takes a tangent v to

    d/du ⟨Jᵀu, v⟩ = J·v.

For f(x) = sin(x) the first pass records p = u * cos(x); going backward over that from v gives v * cos(x).
The evaluation of f is not repeated, no forward rule is needed, and the second graph serves for every v.
What is needed is that each backward formula on the way can be differentiated by the cotangent.

Source: Griewank & Walther, *Evaluating Derivatives* (2008), chapter 3, on the duality of the two modes; as
a trick of reverse-only systems it is Townsend's, *A new trick for calculating Jacobian vector products*
(2017). `torchjac.evaluation.programs.linear` does the same to a traced pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.engines import Engine, Graph, linearize
from torchjac.evaluation.surroundings import without_transforms

__all__ = ["transposed"]


def transposed(engine: Engine, cotangents: Sequence[Tensor]) -> Engine:
    """Record one backward pass of a reverse engine, as an engine that multiplies from the other side.

    Args:
        engine: of the function; a `Graph` has to outlive its passes.
        cotangents: one for each of its values. The products do not depend on them, but what the pass
            itself gives, ``values`` of the result, is their product Jᵀu.

    Returns:
        A reverse engine whose values are the primals of ``engine`` and whose primals are its values: a
        pass from a tangent v gives J·v. It evaluates nothing.
    """
    if not isinstance(engine, Graph):
        return linearize(_Backward(engine), cotangents, "reverse")
    recording = Graph(engine.values, engine.primals, create_graph=True)
    # Where products are wanted within a transform around a graph from outside of it, the second graph
    # belongs outside as well, where it can be kept.
    with without_transforms(), torch.set_grad_enabled(engine.keeps_graph):
        return linearize(_Backward(recording), cotangents, "reverse")


class _Backward:
    """A backward pass as a flat function of the cotangents."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, cotangents: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[()]]:
        products = self._engine.multiply(dict(enumerate(cotangents)), last=False)
        return tuple(
            torch.zeros_like(primal) if product is None else product
            for product, primal in zip(products, self._engine.primals, strict=True)
        ), ()
