"""Linear algebra: matrix by matrix of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchjac.structure.detection.index_sets import IndexSets
from torchjac.structure.detection.interpret import tensors_in
from torchjac.structure.detection.registry import SHAPES, Operation, Result, rule
from torchjac.structure.detection.rules.elementwise import broadcast_rows
from torchjac.structure.detection.rules.reductions import (
    grouped,
    labels_along,
    pairs,
    union_so_far,
)

__all__ = ["by_matrix"]


def by_matrix(
    op: Operation, tensor: Tensor, output: Tensor, core: int = 2, left: int | None = None
) -> IndexSets | None:
    """What a whole matrix of a batch depends on, at every element of its matrix of the output.

    Args:
        op: the operation.
        tensor: ``(*batch, ...)`` with ``core`` dimensions after the batch.
        output: the same with ``left`` dimensions, as many where that is None.
        core: dimensions of a matrix.
        left: dimensions that a matrix has in the output.
    """
    sets = op.sets(tensor)
    if sets is None:
        return None
    core, left = min(core, tensor.dim()), core if left is None else left
    inner = range(tensor.dim() - core, tensor.dim())
    labels, count = labels_along(tensor.shape, list(inner))
    united = grouped(sets, labels, count)
    return _spread(united, tensor.shape[: tensor.dim() - core], output.shape, left)


def _spread(united: IndexSets, batch: Sequence[int], shape: Sequence[int], left: int) -> IndexSets:
    """(*batch) -> (*batch of the output) -> (*batch, and ``left`` more)."""
    outer = tuple(shape[: len(shape) - left])
    per = int(np.prod(shape[len(shape) - left :], dtype=np.int64))
    rows = broadcast_rows(batch, outer)
    count = int(np.prod(outer, dtype=np.int64))
    rows = np.arange(count) if rows is None else rows
    return united.gather(np.repeat(rows, per))


@rule("linalg_matrix_exp")
def matrix_function(op: Operation) -> Result:
    """A function of each matrix: dense in it, and blind to the others of the batch.

    Its derivative is a block of the exponential of a larger matrix, so it can depend on the seeds.
    ``matrix_exp([[[{0}]], [[{1}]]]) = [[[{0}]], [[{1}]]]``
    """
    return by_matrix(op, op["self"], op.outputs[0])


@rule("_linalg_solve_ex", "linalg_lu_solve", "cholesky_solve")
def solve(op: Operation) -> Result:
    """A column of the solution depends on its right-hand side, and on the whole of its matrix.

    ``solve(A, [[{0}, {1}], [{2}, {3}]]) = [[{0, 2}, {1, 3}], [{0, 2}, {1, 3}]]``
    """
    output = op.outputs[0]
    right = op["self"] if op.func._schema.name == "aten::cholesky_solve" else op["B"]
    others = [t for t in tensors_in(op.arguments.values()) if t is not right]
    if any(op.sets(other) is not None for other in others):
        raise NotImplementedError
    return [
        _columns(op, right, output, left=bool(op.arguments.get("left", True))),
        *[None] * (len(op.outputs) - 1),
    ]


def _columns(op: Operation, right: Tensor, output: Tensor, *, left: bool) -> IndexSets | None:
    """Every element depends on all of its column, or of its row where the matrix is on the right."""
    sets = op.sets(right)
    if sets is None:
        return None
    if right.dim() < 2 or output.dim() != right.dim() or output.shape[-2:] != right.shape[-2:]:
        raise NotImplementedError  # a vector on the right, or a batch of them
    dim = right.dim() - (2 if left else 1)
    labels, count = labels_along(right.shape, [dim])
    united = grouped(sets, labels, count)
    shape = [1 if at == dim else side for at, side in enumerate(right.shape)]
    return united.gather(broadcast_rows(shape, output.shape))


def _least_squares(op: Operation) -> Sequence[Tensor]:
    """What `torch.linalg.lstsq` returns: solution, residuals, rank, singular values.

    Its derivatives are made of products with the pseudoinverse, matrix by matrix of the batch.
    """
    matrix, right = op["self"], op["b"]
    driver = op["driver"] or ("gelsy" if matrix.device.type == "cpu" else "gels")
    rows, columns = matrix.shape[-2:]
    # (*batch, rows) beside (*batch, rows, columns): one right-hand side for each matrix
    is_vector = right.dim() == 1 or right.shape == matrix.shape[:-1]
    width = [] if is_vector else [right.shape[-1]]
    batch = torch.broadcast_shapes(matrix.shape[:-2], right.shape[: -1 if is_vector else -2])
    has_rank, has_values = driver != "gels", driver in ("gelsd", "gelss")
    if has_values and rows > columns:
        raise NotImplementedError  # residuals where every matrix has full rank, and otherwise none
    has_residuals = not has_rank and rows > columns
    real = matrix.real.dtype
    return [
        matrix.new_empty((*batch, columns, *width)),
        matrix.new_empty((*batch, *(width or [1])) if has_residuals else (0,), dtype=real),
        matrix.new_empty(batch if has_rank else (0,), dtype=torch.int64),
        matrix.new_empty((*batch, min(rows, columns)) if has_values else (0,), dtype=real),
    ]


SHAPES["aten::linalg_lstsq"] = _least_squares


@rule("linalg_solve_triangular", "triangular_solve")
def solve_triangular(op: Operation) -> Result:
    """Substitution reaches what is solved later in the column, or in the row from the right.

    ``solve_triangular(lower, [[{0}], [{1}]]) = [[{0}], [{0, 1}]]``
    """
    old = op.func._schema.name == "aten::triangular_solve"
    matrix, right = (op["A"], op["self"]) if old else (op["self"], op["B"])
    sets, output = op.sets(right), op.outputs[0]
    if op.sets(matrix) is not None or sets is None or output.shape[-2:] != right.shape[-2:]:
        raise NotImplementedError
    left = bool(op.arguments.get("left", True))
    # From the left, lower: forward; with the matrix on the right it is the other way round.
    backward = bool(op["upper"]) ^ bool(op.arguments.get("transpose", False)) ^ (not left)
    dim = right.dim() - (2 if left else 1)
    found = union_so_far(sets, right.shape, dim, backward=backward)
    found = found.gather(broadcast_rows(right.shape, output.shape))
    return [found, *[None] * (len(op.outputs) - 1)]


def _first(op: Operation) -> Tensor:
    """The gradient that an op takes: ``grad``, or since PyTorch 2.14 ``grad_output``."""
    first: Tensor = next(iter(op.arguments.values()))
    return first


@rule("_cdist_backward")
def cdist_backward(op: Operation) -> Result:
    """A point collects from its distances to all points of the other set.

    ``cdist_backward([[{0}, {1}]], one point in the plane) = [[{0, 1}, {0, 1}]]``
    """
    grad, output = _first(op), op.outputs[0]
    others = [op[name] for name in ("x1", "x2", "cdist")]
    if any(op.sets(other) is not None for other in others):
        raise NotImplementedError
    # (*batch, p, r) -> (*batch, p) -> (*batch, p, d)
    return by_matrix(op, grad, output, core=1)


@rule("_pdist_backward")
def pdist_backward(op: Operation) -> Result:
    """Point i collects from its distances to all others; distances are listed by pairs i < j.

    ``pdist_backward([{0}, {1}, {2}], three points on a line) = [{0, 1}, {0, 2}, {1, 2}]``
    """
    sets, points = op.sets(_first(op)), op["self"]
    if sets is None or op.sets(points) is not None:
        raise NotImplementedError
    count, width = points.shape
    first, second = np.triu_indices(count, 1)
    groups = pairs(np.append(first, second), np.tile(np.arange(len(sets)), 2), (count, len(sets)))
    return sets.merge(groups).gather(np.repeat(np.arange(count), width))


@rule("_scaled_dot_product_flash_attention_for_cpu_backward")
@rule("_scaled_dot_product_flash_attention_backward")
@rule("_scaled_dot_product_efficient_attention_backward")
@rule("_scaled_dot_product_cudnn_attention_backward")
def attention_backward(op: Operation) -> Result:
    """Every head by itself; within one, a query collects from its own place alone.

    ``attention_backward([[{0}], [{1}]], two places) = [[{0}], [{1}]], [[{0, 1}], [{0, 1}]], same``
    """
    grad = op["grad_out_"] if "grad_out_" in op.arguments else op["grad_out"]
    others = [t for t in tensors_in(op.arguments.values()) if t is not grad]
    query, key, value = op["query"], op["key"], op["value"]
    batched = [query.shape[:-2], key.shape[:-2], value.shape[:-2]]
    if any(op.sets(other) is not None for other in others) or len(set(batched)) > 1:
        raise NotImplementedError
    by_query = by_matrix(op, grad, op.outputs[0], core=1)
    rest = [by_matrix(op, grad, output) for output in op.outputs[1:3]]
    return [by_query, *rest, *[None] * (len(op.outputs) - 3)]


@rule("grid_sampler_2d_backward", "grid_sampler_3d_backward")
def grid_sampler_backward(op: Operation) -> Result:
    """A place of the image may collect from all samples of its channel, a grid point from its own.

    ``by image: (b, c) whole; by grid: (b, place) over all channels``
    """
    grad, image, grid = op["grad_output"], op["input"], op["grid"]
    sets = op.sets(grad)
    if sets is None or op.sets(image) is not None or op.sets(grid) is not None:
        raise NotImplementedError
    spatial = grad.dim() - 2
    labels, count = labels_along(grad.shape, range(2, grad.dim()))
    shape = image.shape[:2] + (1,) * spatial
    by_image = grouped(sets, labels, count).gather(broadcast_rows(shape, image.shape))
    # (b, c, *places) -> (b, *places) -> (b, *places, coordinates)
    labels, count = labels_along(grad.shape, [1])
    by_grid = grouped(sets, labels, count).gather(np.repeat(np.arange(count), spatial))
    return [by_image, by_grid]
