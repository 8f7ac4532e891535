"""Probes: compare a Jacobian with what a way that shares no code with it says.

The adjoint probe takes a random cotangent u and compares uᵀ·J with one plain backward pass, which
uses no batching rule and no forward rule. The difference probe compares J·v with a central
difference; a Jacobian that is a Hessian is compared so with a difference of gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.engines import FlatFunction, Graph

__all__ = ["adjoint_probe", "agree", "difference_probe", "tolerance"]

# Relative to the norm of the column that is looked at. Rounding in an ill-conditioned function stays
# below, a rule that is wrong is off by a good part of the column itself.
_TOLERANCES = {
    torch.float64: 1e-7,
    torch.float32: 2e-3,
    torch.float16: 1e-1,
    torch.bfloat16: 3e-1,
}

Leaves = Sequence[Sequence[Tensor]]


def tolerance(tensors: Sequence[Tensor]) -> float:
    """The relative tolerance for results of the coarsest dtype among ``tensors``."""
    return max(_TOLERANCES.get(tensor.dtype, 1e-1) for tensor in tensors)


def _signs(like: Tensor) -> Tensor:
    """Random signs that are the same in every run, and leave the caller's generator alone."""
    generator = torch.Generator().manual_seed(like.numel())
    signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (signs * 2 - 1).to(dtype=like.dtype, device=like.device)


def _wide(tensor: Tensor) -> Tensor:
    """Sum half precision in single precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _matrix(leaf: Tensor, output: Tensor, primal: Tensor, batched: bool) -> Tensor:
    # (*out, *in) -> (1, m, n), or (B, *out, *in) -> (B, m, n)
    first = 1 if batched else 0
    samples = output.shape[:first].numel()
    shape = (samples, output.shape[first:].numel(), primal.shape[first:].numel())
    return _wide(leaf.detach()).reshape(shape)


def adjoint_probe(graph: Graph, leaves: Leaves, *, batched: bool) -> bool:
    """Whether uᵀ·J agrees with one plain backward pass over ``graph``, entry by entry.

    Args:
        graph: the function recorded by plain autograd; it is kept for further passes.
        leaves: the Jacobian, ``leaves[output][input]``.
        batched: whether its leaves are ``(B, *out, *in)``.
    """
    outputs = [value.detach() for value in graph.values]
    cotangents = [_signs(value) for value in outputs]
    trusted = graph.multiply(dict(enumerate(cotangents)), last=False)
    for i, (primal, pulled) in enumerate(zip(graph.primals, trusted, strict=True)):
        got = torch.zeros((), device=primal.device)
        squares = torch.zeros((), device=primal.device)
        for row, output, cotangent in zip(leaves, outputs, cotangents, strict=True):
            matrix = _matrix(row[i], output, primal, batched)
            # (B, 1, m) @ (B, m, n) -> (B, 1, n)
            got = (
                got
                + _wide(cotangent).to(matrix.dtype).reshape(len(matrix), 1, matrix.shape[1])
                @ matrix
            )
            squares = squares + matrix.square().sum(1, keepdim=True)
        if got.numel() == 0:
            continue
        expected = _wide(torch.zeros_like(primal) if pulled is None else pulled).detach()
        if not agree(got, expected.reshape(got.shape), squares, tolerance([primal, *outputs])):
            return False
    return True


def agree(got: Tensor, expected: Tensor, squares: Tensor, rtol: float) -> bool:
    """Whether two vectors agree, each entry held against the size of its column of the Jacobian.

    Where the trusted value is not finite there is nothing to compare with.
    """
    comparable = expected.isfinite()
    scale = squares.sqrt() + squares[squares.isfinite()].mean().sqrt()
    wrong = comparable & ~((got - expected).abs() <= rtol * scale)
    return not bool(wrong.any())


def difference_probe(function: FlatFunction, primals: Sequence[Tensor], leaves: Leaves) -> bool:
    """Whether J·v agrees with a central difference of ``function`` along a random direction.

    The difference is taken with two steps. What they disagree by, at a kink say, is the error of the
    difference itself and is not held against J.
    """
    directions = [_signs(primal) for primal in primals]
    width = max(torch.finfo(primal.dtype).eps for primal in primals) ** (1 / 3)
    size = max((float(primal.abs().max()) for primal in primals if primal.numel()), default=0.0)
    step = width * max(size, 1)
    coarse, _ = _difference(function, primals, directions, 2 * step)
    fine, noise = _difference(function, primals, directions, step)
    for row, twice, once, rounding in zip(leaves, coarse, fine, noise, strict=True):
        matrices = [
            _wide(leaf.detach()).reshape(once.numel(), primal.numel())
            for leaf, primal in zip(row, primals, strict=True)
        ]
        product = sum(m @ _wide(v).reshape(-1) for m, v in zip(matrices, directions, strict=True))
        squares = sum(matrix.square().sum(1) for matrix in matrices)
        if isinstance(product, int) or isinstance(squares, int) or product.numel() == 0:
            continue
        slack = 4 * (once - twice).abs() + rounding
        nearest = once + (product - once).clamp(-slack, slack)
        # A difference has two thirds of the digits at best.
        if not agree(product, nearest, squares, 100 * tolerance([*row, once])):
            return False
    return True


def _difference(
    function: FlatFunction, primals: Sequence[Tensor], directions: Sequence[Tensor], step: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Central differences along one direction, flattened, and the rounding error to expect of them."""
    ahead, _ = function([p.detach() + step * v for p, v in zip(primals, directions, strict=True)])
    behind, _ = function([p.detach() - step * v for p, v in zip(primals, directions, strict=True)])
    quotients, noise = [], []
    for a, b in zip(ahead, behind, strict=True):
        high, low = _wide(a.detach()).reshape(-1), _wide(b.detach()).reshape(-1)
        quotients.append((high - low) / (2 * step))
        noise.append(16 * torch.finfo(a.dtype).eps * (high.abs() + low.abs()) / (2 * step))
    return quotients, noise
