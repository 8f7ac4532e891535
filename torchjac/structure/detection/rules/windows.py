"""Pooling and resizing: windows along each spatial dimension, the same in every channel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from scipy import sparse

from torchjac.structure.detection.index_sets import IndexSets
from torchjac.structure.detection.registry import WINDOWS, Operation, Result, rule
from torchjac.structure.detection.rules.convolution import taps_of
from torchjac.structure.detection.rules.linalg import by_matrix
from torchjac.structure.detection.rules.reductions import pairs

__all__ = ["pooled"]

# Up to here a dimension is resized by resizing the unit vectors.
_LONGEST = 4096


def _separable(sets: IndexSets, along: Sequence[Any], *, back: bool = False) -> IndexSets:
    """Apply the relation (places in the output × in the input) of each of the last dimensions."""
    whole = reduce(lambda one, other: sparse.kron(one, other, "csr"), along)
    whole = whole.T.tocsr() if back else whole.tocsr()
    planes = len(sets) // max(whole.shape[1], 1)
    return sets.merge(sparse.kron(sparse.identity(planes, bool, "csr"), whole, "csr"))


def _pointing(along: Sequence[Any], planes: int) -> IndexSets:
    """The places that each index can point to, over all planes."""
    whole = IndexSets(reduce(lambda one, other: sparse.kron(one, other, "csr"), along).tocsr())
    return whole.gather(np.tile(np.arange(len(whole)), planes))


def pool_windows(op: Operation) -> IndexSets:
    """An index of max pooling points into its window.

    ``max_pool1d([a, b, c, d], 2)`` returns indices within ``[{0, 1}, {2, 3}]``
    """
    shape, out = op["self"].shape, op.outputs[1].shape
    along = pooled(op, shape, out)
    return _pointing(along, int(np.prod(out[: -len(along)])))


def adaptive_windows(op: Operation) -> IndexSets:
    """The same for the windows of `adaptive_pool`."""
    dims = len(op["output_size"])
    shape, out = op["self"].shape, op.outputs[1].shape
    along = list(map(_adaptive, shape[-dims:], out[-dims:]))
    return _pointing(along, int(np.prod(out[:-dims])))


WINDOWS.update(
    {
        "aten::max_pool2d_with_indices": pool_windows,
        "aten::max_pool3d_with_indices": pool_windows,
        "aten::adaptive_max_pool2d": adaptive_windows,
        "aten::adaptive_max_pool3d": adaptive_windows,
    }
)


def _each(value: Any, dims: int, default: Any = None) -> list[int]:
    """An argument for each dimension, from one that may be given once, or not at all."""
    listed = list(value) if value else list(default)
    return listed * dims if len(listed) == 1 else listed


def pooled(op: Operation, inputs: Sequence[int], outputs: Sequence[int]) -> list[Any]:
    """The windows of a pooling op along each of its dimensions."""
    kernel = list(op["kernel_size"])
    # The name ends in 1d, 2d or 3d; a kernel may be given once for all.
    dims = int(op.func._schema.name.partition("pool")[2][0])
    kernel = _each(kernel, dims)
    stride = _each(op["stride"], dims, kernel)
    padding = _each(op["padding"], dims)
    dilation = _each(op.arguments.get("dilation", [1]), dims)
    relations = []
    for at in range(dims):
        size, out = inputs[at - dims], outputs[at - dims]
        x, _, y = taps_of(size, out, kernel[at], stride[at], padding[at], dilation[at])
        relations.append(pairs(y, x, (out, size)))
    return relations


@rule("avg_pool2d", "avg_pool3d")
def pool(op: Operation) -> Result:
    """The union of each window.

    In one dimension: ``avg_pool([{0}, {1}, {2}, {3}], 2) = [{0, 1}, {2, 3}]``
    """
    sets = op.sets(op["self"])
    if sets is None:
        return None
    return _separable(sets, pooled(op, op["self"].shape, op.outputs[0].shape))


@rule("avg_pool2d_backward", "avg_pool3d_backward", "max_pool2d_with_indices_backward")
@rule("max_pool3d_with_indices_backward")
def pool_backward(op: Operation) -> Result:
    """Each place collects from the windows that it lies in.

    In one dimension: ``avg_pool_backward([{0}, {1}], 2) = [{0}, {0}, {1}, {1}]``
    """
    sets = op.sets(op["grad_output"])
    if sets is None:
        return None
    return _separable(sets, pooled(op, op["self"].shape, op["grad_output"].shape), back=True)


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def adaptive_pool(op: Operation) -> Result:
    """Window o of O over n places is [⌊on/O⌋, ⌈(o+1)n/O⌉).

    In one dimension: ``adaptive_avg_pool([{0}, {1}, {2}], 2) = [{0, 1}, {1, 2}]``
    """
    sets = op.sets(op["self"])
    dims = len(op["output_size"])
    shape, out = op["self"].shape[-dims:], op.outputs[0].shape[-dims:]
    return None if sets is None else _separable(sets, list(map(_adaptive, shape, out)))


@rule("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
@rule("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward")
def adaptive_pool_backward(op: Operation) -> Result:
    """The windows of `adaptive_pool`, the other way.

    ``backward([{0}, {1}], 3 places) = [{0}, {0, 1}, {1}]``
    """
    sets = op.sets(op["grad_output"])
    dims = int(op.func._schema.name.partition("pool")[2][0])
    shape, out = op["self"].shape[-dims:], op["grad_output"].shape[-dims:]
    return None if sets is None else _separable(sets, list(map(_adaptive, shape, out)), back=True)


def _adaptive(size: int, out: int) -> Any:
    first = np.arange(out) * size // out
    stop = -(-(np.arange(1, out + 1) * size) // out)
    places = np.arange(size)
    inside = (places >= first[:, None]) & (places < stop[:, None])
    return sparse.csr_matrix(inside)


@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def resize(op: Operation) -> Result:
    """Each place takes from its neighbours along each dimension.

    ``upsample_linear1d([{0}, {1}], 3, align_corners=True) = [{0}, {0, 1}, {1}]``
    """
    tensor, output = op["self"], op.outputs[0]
    sets = op.sets(tensor)
    dims = output.dim() - 2
    sizes = zip(tensor.shape[-dims:], output.shape[-dims:], _scales(op, dims), strict=True)
    return None if sets is None else _separable(sets, [_resized(op, *size) for size in sizes])


@rule("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_trilinear3d_backward")
@rule("upsample_bicubic2d_backward", "_upsample_bilinear2d_aa_backward")
@rule("_upsample_bicubic2d_aa_backward", "upsample_nearest1d_backward")
@rule("upsample_nearest2d_backward", "upsample_nearest3d_backward")
@rule("_upsample_nearest_exact1d_backward", "_upsample_nearest_exact2d_backward")
@rule("_upsample_nearest_exact3d_backward")
def resize_backward(op: Operation) -> Result:
    """The neighbours of `resize`, the other way.

    ``backward([{0}, {1}, {2}], 2 places) = [{0, 1}, {1, 2}]``
    """
    grad, output = op["grad_output"], op.outputs[0]
    sets = op.sets(grad)
    dims = grad.dim() - 2
    sizes = zip(output.shape[-dims:], grad.shape[-dims:], _scales(op, dims), strict=True)
    along = [_resized(op, *size) for size in sizes]
    return None if sets is None else _separable(sets, along, back=True)


def _scales(op: Operation, dims: int) -> list[float | None]:
    if "scales" in op.arguments:
        return [op["scales"]]
    return [op.arguments.get(name) for name in ("scales_d", "scales_h", "scales_w")[-dims:]]


def _resized(op: Operation, size: int, out: int, scale: float | None) -> Any:
    """The relation along one dimension: what the unit vectors become when they are resized."""
    if max(size, out) > _LONGEST:
        raise NotImplementedError
    aten = torch.ops.aten
    name = op.func._schema.name.removeprefix("aten::").removesuffix("_backward")
    corners = op.arguments.get("align_corners")
    units = torch.eye(size, dtype=torch.float64)[None]
    if "cubic" in name or "_aa" in name:
        forward = getattr(aten, name).default
        # (1, n, n) -> (1, n, n, 2): the other dimension stays as it is. It is not left at a single
        # place, for PyTorch then gives the antialiased rows all alike.
        image = units[..., None].expand(1, size, size, 2).contiguous()
        image = forward(image, [out, 2], corners, scale, None)[..., 0]
    elif "nearest" in name:
        exact = "exact" in name
        forward = aten._upsample_nearest_exact1d if exact else aten.upsample_nearest1d
        image = forward.default(units, [out], scale)
    else:
        image = aten.upsample_linear1d.default(units, [out], corners, scale)
    return sparse.csr_matrix((image[0] != 0).T.numpy())


@rule("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward")
@rule("replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward")
def pad_backward(op: Operation) -> Result:
    """Each place collects from all its copies.

    ``reflection_pad1d_backward([{0}, {1}, {2}], (1, 0)) = [{1}, {0, 2}]``
    """
    sets = op.sets(op["grad_output"])
    tensor, padding = op["self"], list(op["padding"])
    reflects = "reflection" in op.func._schema.name
    dims = len(padding) // 2
    along = []
    for at, size in enumerate(tensor.shape[-dims:]):
        # Padding is listed from the last dimension on; a negative one cuts off.
        before, after = padding[2 * (dims - 1 - at) : 2 * (dims - at)]
        places = np.arange(-before, size + after)
        if reflects:
            places = np.abs(places)
            places = np.minimum(places, 2 * (size - 1) - places)
        places = places.clip(0, size - 1)
        along.append(pairs(np.arange(len(places)), places, (len(places), size)))
    return None if sets is None else _separable(sets, along, back=True)


@rule("fractional_max_pool2d_backward", "fractional_max_pool3d_backward")
def random_pool_backward(op: Operation) -> Result:
    """The windows are drawn at random: each place of a plane may collect from all of it.

    ``backward([{0}, {1}], 4 places) = [{0, 1}, {0, 1}, {0, 1}, {0, 1}]``
    """
    dims = 3 if "3d" in op.func._schema.name else 2
    return by_matrix(op, op["grad_output"], op.outputs[0], core=dims)
