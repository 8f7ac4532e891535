"""What patterns are made from: shapes, indices and matrices, taken in or refused by name."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchjac.errors import PatternError

__all__ = [
    "Indices",
    "as_indices",
    "as_matrix",
    "as_shape",
    "check_range",
    "frozen",
    "shortened",
    "starts_of",
]

Indices: TypeAlias = npt.NDArray[np.int64]

# An entry is compared and sorted by its number in row-major order, which has to fit an int64.
_MOST_ENTRIES = 2**63 - 1


def frozen(indices: Indices) -> Indices:
    """The same memory, not to be written into: a pattern is hashed, and its colours are remembered."""
    view = indices.view()
    view.flags.writeable = False
    return view


def as_shape(name: str, shape: Any) -> tuple[int, int]:
    """The numbers of rows and columns."""
    try:
        m, n = (int(size) for size in shape)
    except (TypeError, ValueError):
        m = n = -1
    if m < 0 or n < 0 or m * n > _MOST_ENTRIES:
        raise PatternError(
            f"{name}(shape={shape!r}): expected the numbers of rows and columns, (m, n)."
        )
    return m, n


def as_indices(name: str, which: str, values: Any) -> Indices:
    """A copy of ``values``, so that no one else can change it."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise PatternError(
            f"{name}({which}): expected a list of integers, got {array.dtype} of shape {array.shape}."
        )
    return np.array(array, dtype=np.int64)


def check_range(name: str, which: str, indices: Indices, size: int) -> None:
    """Refuse an index of a row, or column, that is not there."""
    outside = (indices < 0) | (indices >= size)
    if outside.any():
        what = "row" if which == "rows" else "column"
        raise PatternError(
            f"{name}({which}): there is no {what} {indices[outside.argmax()]} in a pattern with {size} "
            f"of them; expected indices from 0 to {size - 1}."
            if size
            else f"{name}({which}): got an entry of a pattern without a {what}."
        )


def starts_of(sorted_by: Indices, size: int) -> Indices:
    """Where each of ``size`` rows (or columns) begins, and the end."""
    starts = np.zeros(size + 1, dtype=np.int64)
    np.cumsum(np.bincount(sorted_by, minlength=size), out=starts[1:])
    return starts


def shortened(values: Indices) -> str:
    """The first and the last of them, in words."""
    return np.array2string(values, threshold=8, edgeitems=3, separator=", ")


def as_matrix(name: str, matrix: Any) -> npt.NDArray[Any]:
    """A matrix of numbers as an array."""
    if isinstance(matrix, Tensor):
        if matrix.layout is not torch.strided:
            raise PatternError(
                f"{name}(matrix): expected a strided tensor, got {matrix.layout}. from_coo and from_csr take "
                f"the indices of a sparse one."
            )
        if matrix.is_meta:
            raise PatternError(f"{name}(matrix): got a tensor on the meta device, without values.")
        matrix = (matrix.detach() != 0).cpu().numpy()
    try:
        array = np.asarray(matrix)
    except ValueError as error:
        raise PatternError(f"{name}(matrix): expected rows of one length.") from error
    if array.ndim != 2 or array.dtype.kind not in "biufc":
        raise PatternError(
            f"{name}(matrix): expected two dimensions of numbers, got shape {array.shape} of {array.dtype}."
        )
    return array
