"""Sums and products over the elements of diagonal seeds: where the diagonal ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torchjac.evaluation.programs.diagonals import Diagonal, of_one_seed
from torchjac.evaluation.programs.rewriting import Call, Value

__all__ = ["PRODUCTS", "summed"]

aten = torch.ops.aten


def summed(call: Call, seeds: Diagonal) -> Any:
    """A sum over the core leaves the diagonal, one seed after the other; one beside it sums that."""
    write, rank = call.write, seeds.like.dim()
    given = call.get("dim")
    dims = {dim % rank for dim in given} if given else set(range(rank))
    if 0 in dims or call.get("dtype") not in (None, seeds.like.dtype):
        return None
    inner = sorted(dim - 1 for dim in dims)
    core = set(range(seeds.start, seeds.stop))
    if core.isdisjoint(inner):
        d = write(aten.sum.dim_IntList, seeds.d, inner, True)
        summed: Value = seeds.with_d(write, d)
        return write.reshape(summed, call.like.shape)
    if not core.issubset(inner):
        return None
    beside = [dim for dim in inner if dim not in core]
    d = write(aten.sum.dim_IntList, seeds.d, beside, True) if beside else seeds.d
    # (*left, *core, *right) -> (*core, *left, *right) -> (k, *out)
    others = [dim for dim in range(len(seeds.rest)) if dim not in core]
    d = write.permute(d, [*sorted(core), *others])
    return write.reshape(d, call.like.shape)


def _from_left(call: Call, seeds: Diagonal, name: str) -> Any:
    """Seeds times a matrix.

    ``diag(d) @ W = d[:, None] * W`` where the core is summed over; else the diagonal is multiplied.
    """
    if name != "self":
        return _from_right(call, seeds)
    write, matrix = call.write, call["mat2"]
    if call.name == "bmm":
        matrix = of_one_seed(write, matrix, 3) if seeds.like.shape[0] == seeds.seeds else None
        if matrix is None:
            return None
    length, columns = write.shape(matrix)
    split = _split_of_rows(seeds, length)
    if split is None:
        return None
    beside = math.prod(seeds.rest[:split])
    d = write.reshape(seeds.d, (beside, length))
    if seeds.stop <= split:
        d = write.reshape(write(aten.mm.default, d, matrix), (*seeds.rest[:split], columns))
        return write.reshape(seeds.with_d(write, d), call.like.shape)
    if beside == 1:
        rows = write(aten.mul.Tensor, write.reshape(d, (length, 1)), matrix)
        return write.reshape(rows, call.like.shape)
    # (beside, length) -> (length, beside, 1), times (length, 1, columns)
    d = write.reshape(write.permute(d, (1, 0)), (length, beside, 1))
    rows = write(aten.mul.Tensor, d, write.reshape(matrix, (length, 1, columns)))
    return write.reshape(rows, call.like.shape)


def _split_of_rows(seeds: Diagonal, length: int) -> int | None:
    """The first dimension of ``rest`` that is summed over, with the core wholly on one side."""
    for split in range(len(seeds.rest), -1, -1):
        if math.prod(seeds.rest[split:]) != length:
            continue
        if seeds.stop <= split and len(seeds.rest) > split:
            return split
        if seeds.start >= split and seeds.seeds == length:
            return split
    return None


def _from_right(call: Call, seeds: Diagonal) -> Any:
    """``W @ diag(d)`` has the columns of W scaled."""
    write = call.write
    if call.name != "mm" or not seeds.is_stack or len(seeds.rest) != 1 or seeds.stop == seeds.start:
        return None
    return write(aten.mul.Tensor, call["self"], seeds.d)


def _vector(call: Call, seeds: Diagonal, name: str) -> Any:
    if name != "self":
        return None
    write = call.write
    column = write.reshape(call["vec"], (*write.shape(call["vec"]), 1))
    return write.reshape(write(aten.mm.default, seeds, column), call.like.shape)


def _added(call: Call, seeds: Diagonal, name: str) -> Any:
    """A product plus something."""
    del seeds
    if name == "self" or call["alpha"] != 1 or call["beta"] != 1:
        return None
    target = aten.mm if call.name == "addmm" else aten.bmm
    factors = [call[given] for given in call.arguments if given.startswith(("mat", "batch"))]
    product = call.write(target.default, *factors)
    return call.write(aten.add.Tensor, product, call["self"])


PRODUCTS: dict[str, Callable[[Call, Diagonal, str], Any]] = {
    "mm": _from_left,
    "bmm": _from_left,
    "mv": _vector,
    "addmm": _added,
    "baddbmm": _added,
}
