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

from torchjac.evaluation.engines import Direction, Engine, FlatFunction, Graph, linearize, record
from torchjac.evaluation.graphs import operations
from torchjac.evaluation.surroundings import without_transforms
from torchjac.foundations.seeds import Chunk

__all__ = ["NotElementaryError", "Transposed", "transposed"]

# Backward formulas that are linear combinations and products of such operations again, so that every
# derivative of them is. What a custom autograd.Function does backwards need not be differentiable, and of a
# formula that masks what is not finite (sinc, xlogy, powers with a tensor for an exponent) a pass over it
# would bring nan back. A power with a number for an exponent is the first overload.
_NAMES = """
    Abs Acos Acosh Add Addbmm Addcdiv Addcmul Addmm Addmv Addr Alias Asin Asinh Atan Atanh Baddbmm Bmm
    Cat Clamp ClampMax ClampMin Clone Cos Cosh Cumsum Diagonal Div Dot Erf Erfc Exp Exp2 Expand Expm1 Flip
    Gather Gelu Hypot Index IndexSelect LeakyRelu Lerp Linear Log Log10 Log1P Log2 LogSigmoid LogSoftmax
    Logaddexp MaskedFill Maximum Mean Minimum Mm Mul Mv Neg Permute Reciprocal Relu Repeat ReshapeAlias
    Roll Rsqrt Rsub Select Sigmoid Silu Sin Sinh Slice Softmax Softplus Split Sqrt Squeeze Stack Sub Sum
    T Tan Tanh ToCopy Trace Transpose Tril Triu Unbind UnsafeView Unsqueeze View Where
"""
_ELEMENTARY = frozenset({*_NAMES.split(), "PowBackward0"})


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


class NotElementaryError(RuntimeError):
    """A function that is not made of elementary operations alone, for which there are other engines."""


class Transposed(Engine):
    """Forward products by backward passes over a backward pass; see NOTE [Double backward].

    A pass on dual numbers evaluates the function anew, and spends much on operands that have no tangent.

    Args:
        function: the flat function.
        primals: where.

    Raises:
        NotElementaryError: it is not.
    """

    direction: Direction = "forward"

    def __init__(self, function: FlatFunction, primals: Sequence[Tensor]) -> None:
        self._graph = graph = record(function, primals)
        # At every call, for a function may come to others: it takes a hundredth of the passes.
        if not _ELEMENTARY.issuperset(operations(graph.values)):
            raise NotElementaryError("func is not made of elementary operations alone")
        self.primals, self.values, self.carried = graph.primals, graph.values, graph.carried
        self.keeps_graph = graph.keeps_graph
        self._across = transposed(graph, [torch.zeros_like(value) for value in self.values])

    @property
    def graph(self) -> Graph:
        """Of the function, evaluated once for all passes."""
        return self._graph

    @property
    def evaluates_anew(self) -> bool:
        """The function was evaluated once for all passes."""
        return False

    def multiply(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        return self._across.multiply(seeds, last=last)

    def multiply_all(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        return self._across.multiply_all(seeds, last=last)
