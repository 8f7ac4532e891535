"""Derivatives as linear maps, and their matrices by multiplying with every unit vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from torchjac.structure.detection import Detected, linear_pattern

Map: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], "list[Tensor | None]"]


def leaves(result: Any) -> list[Tensor]:
    found = list(result) if isinstance(result, (tuple, list)) else [result]
    return [leaf for leaf in found if leaf.is_floating_point()]


def forward(func: Callable[..., Any]) -> Map:
    """Tangents to output tangents, by `torch.func.jvp`."""

    def jvp(primals, tangents):
        return leaves(torch.func.jvp(func, tuple(primals), tuple(tangents))[1])

    return jvp


def reverse(func: Callable[..., Any]) -> Map:
    """Cotangents to input cotangents, by `torch.func.vjp`."""

    def vjp(primals, cotangents):
        pull = torch.func.vjp(lambda *xs: tuple(leaves(func(*xs))), *primals)[1]
        return [*pull(tuple(cotangents))]

    return vjp


def plain(func: Callable[..., Any]) -> Map:
    """The same by `torch.autograd.grad`."""

    def backward(primals, cotangents):
        xs = [primal.detach().requires_grad_() for primal in primals]
        pairs = zip(leaves(func(*xs)), cotangents, strict=True)
        reached = [(value, seed) for value, seed in pairs if value.requires_grad]
        if not reached:
            return [None] * len(xs)
        values, seeds = zip(*reached, strict=True)
        return [*torch.autograd.grad(values, xs, seeds, allow_unused=True)]

    return backward


def hessian_plain(func: Callable[..., Tensor]) -> Map:
    """Hessian-vector products by two backward passes."""

    def product(primals, vectors):
        xs = [primal.detach().requires_grad_() for primal in primals]
        grads = torch.autograd.grad(func(*xs), xs, create_graph=True)
        reached = [(g, v) for g, v in zip(grads, vectors, strict=True) if g.requires_grad]
        if not reached:
            return [None] * len(xs)
        values, seeds = zip(*reached, strict=True)
        return [*torch.autograd.grad(values, xs, seeds, allow_unused=True)]

    return product


def hessian_forward(func: Callable[..., Tensor]) -> Map:
    """Hessian-vector products by a forward pass through the gradient."""

    def product(primals, vectors):
        gradient = torch.func.grad(func, tuple(range(len(primals))))
        return [*torch.func.jvp(gradient, tuple(primals), tuple(vectors))[1]]

    return product


def hessian_reverse(func: Callable[..., Tensor]) -> Map:
    """Hessian-vector products by a backward pass through the gradient."""

    def product(primals, vectors):
        gradient = torch.func.grad(func, tuple(range(len(primals))))
        return [*torch.func.vjp(gradient, *primals)[1](tuple(vectors))]

    return product


JACOBIANS = {"forward": forward, "reverse": reverse, "plain": plain}
HESSIANS = {"forward": hessian_forward, "reverse": hessian_reverse, "plain": hessian_plain}


def dense(detected: Detected, rows: Sequence[int]) -> Any:
    """The pattern as one boolean array, with rows of zeros for outputs that are None."""
    columns = detected.matrix.shape[1]
    blocks = [
        np.zeros((count, columns), bool) if block is None else block.toarray()
        for block, count in zip(detected.blocks, rows, strict=True)
    ]
    return np.concatenate(blocks) if blocks else np.zeros((0, columns), bool)


def truth(
    function: Map, primals: Sequence[Tensor], seeds: Sequence[Tensor], rows: Sequence[int]
) -> Any:
    """Where the map is not zero at these values, one unit vector after the other."""
    columns = []
    for leaf, seed in enumerate(seeds):
        for element in range(seed.numel()):
            unit = [torch.zeros(s.shape, dtype=s.dtype) for s in seeds]
            unit[leaf].view(-1)[element] = 1
            products = function([primal.clone() for primal in primals], unit)
            flat = [
                torch.zeros(count, dtype=torch.float64) if p is None else p.detach().reshape(-1)
                for p, count in zip(products, rows, strict=True)
            ]
            columns.append(torch.cat(flat) if flat else torch.zeros(0))
    if not columns:
        return np.zeros((sum(rows), 0), bool)
    matrix = torch.stack(columns, 1)
    return (matrix.isfinite() & (matrix != 0)).numpy()


def random_like(primals: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in primals]


def jacobian(
    func: Callable[..., Any], primals: Sequence[Tensor], way: str, points: int = 3
) -> tuple[Any, Any, Detected]:
    """The pattern (outputs × inputs), the union of the nonzeros at random points, and the rest."""
    outputs = leaves(func(*random_like(primals, 0)))
    seeds = list(primals) if way == "forward" else outputs
    rows = [side.numel() for side in (outputs if way == "forward" else primals)]
    function = JACOBIANS[way](func)
    detected = linear_pattern(function, primals, seeds)
    found = dense(detected, rows)
    nonzeros = np.zeros_like(found)
    for point in range(points):
        nonzeros |= truth(function, random_like(primals, point), seeds, rows)
    return (found, nonzeros, detected) if way == "forward" else (found.T, nonzeros.T, detected)
