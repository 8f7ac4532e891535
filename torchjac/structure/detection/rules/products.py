"""Matrix products with one factor that depends on the seeds."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from torchjac.structure.detection.index_sets import MOST_ENTRIES, IndexSets, Rows
from torchjac.structure.detection.registry import Operation, Result, rule
from torchjac.structure.detection.rules.elementwise import union
from torchjac.structure.detection.rules.reductions import grouped, labels_along, pairs

__all__ = ["matrix_product"]


@rule("mm", "bmm")
def matrix_product(op: Operation) -> Result:
    """A row of the left factor goes into its row of the product, a column of the right into its column.

    Zeros of a factor that is known cut that off:
    ``[[{0}, {1}]] @ [[1, 0], [1, 1]] = [[{0, 1}, {1}]]``, and of one that is not known
    ``[[{0, 1}, {0, 1}]]``.
    """
    left, right = op["self"], op["mat2"]
    return union([_from_left(op, left, right), _from_right(op, left, right)])


def _from_left(op: Operation, left: Tensor, right: Tensor) -> IndexSets | None:
    sets = op.sets(left)
    if sets is None:
        return None
    *_, m, inner = left.shape
    n = right.shape[-1]
    batch = left.shape[0] if left.dim() == 3 else 1
    zeros = _nonzeros(op, right, m)
    if zeros is not None:
        # Right (b, k, j) ties the rows (b, i, k) of the left to (b, i, j) of the product, for all i.
        b, k, j = (part[:, None] for part in zeros)
        i = np.arange(m)
        return sets.merge(
            pairs(
                ((b * m + i) * n + j).reshape(-1),
                ((b * m + i) * inner + k).reshape(-1),
                (batch * m * n, batch * m * inner),
            )
        )
    # (b, i, k) -> (b, i) -> (b, i, j)
    rows = np.arange(batch * m)
    return grouped(sets, np.repeat(rows, inner), batch * m).gather(np.repeat(rows, n))


def _from_right(op: Operation, left: Tensor, right: Tensor) -> IndexSets | None:
    sets = op.sets(right)
    if sets is None:
        return None
    *_, m, inner = left.shape
    n = right.shape[-1]
    batch = left.shape[0] if left.dim() == 3 else 1
    zeros = _nonzeros(op, left, n)
    if zeros is not None:
        # Left (b, i, k) ties the rows (b, k, j) of the right to (b, i, j) of the product, for all j.
        b, i, k = (part[:, None] for part in zeros)
        j = np.arange(n)
        return sets.merge(
            pairs(
                ((b * m + i) * n + j).reshape(-1),
                ((b * inner + k) * n + j).reshape(-1),
                (batch * m * n, batch * inner * n),
            )
        )
    # (b, k, j) -> (b, j) -> (b, i, j)
    columns = np.arange(batch * n).reshape(batch, 1, n)
    labels = np.broadcast_to(columns, (batch, inner, n)).reshape(-1)
    united = grouped(sets, labels, batch * n)
    return united.gather(np.broadcast_to(columns, (batch, m, n)).reshape(-1))


def _nonzeros(op: Operation, factor: Tensor, copies: int) -> list[Rows] | None:
    """Batch, row and column of the nonzeros of a known factor; None where they would not help."""
    entries = op.entries(factor)
    if entries is not None and len(entries[0]) * copies <= MOST_ENTRIES:
        return [np.zeros_like(entries[0]), *entries]
    value = op.known(factor)
    if value is None:
        return None
    found = (value.reshape(-1, *value.shape[-2:]) != 0).numpy().nonzero()
    if len(found[0]) == value.numel() or len(found[0]) * copies > MOST_ENTRIES:
        return None
    op.rely_on(factor)
    return list(found)


@rule("dot", "vdot")
def dot(op: Operation) -> Result:
    """The union of all that is summed, without what meets a known zero.

    ``dot([{0}, {1}], [1, 0]) = {0}``
    """
    parts = []
    names = [name for name in ("self", "other", "tensor") if name in op.arguments]
    for name, other in (names, names[::-1]):
        sets = op.sets(op[name])
        value = None if sets is None else op.known(op[other])
        if sets is not None and value is not None and not (value != 0).all():
            op.rely_on(op[other])
            sets = sets.keep((value != 0).numpy())
        parts.append(None if sets is None else sets.support())
    return union(parts)


@rule("mv")
def matrix_vector(op: Operation) -> Result:
    """The rows of the matrix, or the vector where the matrix is not known to be zero.

    ``[[1, 0], [1, 1]] @ [{0}, {1}] = [{0}, {0, 1}]``
    """
    matrix, vector = op["self"], op["vec"]
    m, n = matrix.shape
    parts = []
    from_matrix, from_vector = op.sets(matrix), op.sets(vector)
    if from_matrix is not None:
        value = op.known(vector)
        if value is not None and not (value != 0).all():
            op.rely_on(vector)
            from_matrix = from_matrix.keep(np.tile((value != 0).numpy(), m))
        parts.append(grouped(from_matrix, np.repeat(np.arange(m), n), m))
    if from_vector is not None:
        zeros = _nonzeros(op, matrix, 1)
        if zeros is None:
            parts.append(from_vector.support().gather(np.zeros(m, np.int64)))
        else:
            parts.append(from_vector.merge(pairs(zeros[1], zeros[2], (m, n))))
    return union(parts)


@rule("_trilinear")
def trilinear(op: Operation) -> Result:
    """A product of three broadcast tensors, summed along ``sumdim``.

    ``trilinear([{0}, {1}], a, b, sumdim=0) = {0, 1}``
    """
    shapes = []
    for at in "123":
        shape = list(op[f"i{at}"].shape)
        for dim in sorted(op[f"expand{at}"]):
            shape.insert(dim, 1)
        shapes.append(shape)
    whole = np.broadcast_shapes(*shapes)
    groups, count = labels_along(whole, [d % len(whole) for d in op["sumdim"]])
    parts = []
    for at, shape in zip("123", shapes, strict=True):
        sets = op.sets(op[f"i{at}"])
        if sets is not None:
            rows = np.broadcast_to(np.arange(len(sets)).reshape(shape), whole).reshape(-1)
            parts.append(sets.merge(pairs(groups, rows, (count, len(sets)))))
    return union(parts)
