"""The tree that a Jacobian or Hessian must be, and reading one into a single dense tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchjac.foundations.pytree import flatten, unflatten
from torchjac.testing.point import Point, flat, unravel
from torchjac.testing.report import DerivativeError, Place

__all__ = ["Axis", "axes_of", "read"]


class Axis(NamedTuple):
    """The entries of some leaves one after another, along one side of a derivative."""

    labels: Sequence[str]
    likes: Sequence[Tensor]
    scale: Tensor
    """The power of two next to each entry's magnitude, and no less than one: a usual step."""

    @property
    def size(self) -> int:
        """How many entries there are."""
        return len(self.scale)

    def place(self, position: int) -> Place:
        """The leaf and the index within it of the entry at ``position``."""
        for label, like in zip(self.labels, self.likes, strict=True):
            if position < like.numel():
                return Place(label, unravel(position, like.shape))
            position -= like.numel()
        raise IndexError(position)


def axes_of(point: Point, order: int) -> list[Axis]:
    """The axes of the ``order``-th derivative: outputs first, then inputs ``order`` times."""
    ones = torch.ones_like(flat(point.outputs))
    outputs = Axis([point.output_labels[index] for index in point.kept], point.outputs, ones)
    magnitude = flat(point.leaves).abs().nan_to_num(1.0, 1.0).clamp(min=1)
    inputs = Axis(point.input_labels, point.leaves, magnitude.log2().floor().exp2())
    return [outputs, *[inputs] * order]


def read(point: Point, derivative: Any, order: int, *, check_dtype: bool) -> Tensor:
    """Check the structure of ``derivative`` and return it as one float64 tensor.

    Raises:
        DerivativeError: it is another tree, or a leaf has another shape or dtype.
    """
    _check_tree(point, derivative, order)
    axes = axes_of(point, order)
    leaves = iter([leaf for leaf in flatten(derivative)[0] if leaf is not None])
    tensor = _assemble(point.where, leaves, axes, (), check_dtype)
    return tensor.reshape([axis.size for axis in axes])


def _check_tree(point: Point, derivative: Any, order: int) -> None:
    like: Any = torch.empty(0)
    for _ in range(order):
        like = unflatten([like] * point.input_spec.num_leaves, point.input_spec)
    places: list[Any] = [None] * point.output_spec.num_leaves
    for index in point.kept:
        places[index] = like
    expected_leaves, expected = flatten(unflatten(places, point.output_spec))
    got_leaves, got = flatten(derivative)
    if got != expected or any(
        isinstance(leaf, Tensor) != isinstance(wanted, Tensor)
        for leaf, wanted in zip(got_leaves, expected_leaves, strict=True)
    ):
        raise DerivativeError(
            f"{point.where}: the result is the wrong tree: got {_shape_tree(derivative)}; expected "
            f"{_shape_tree(unflatten(places, point.output_spec))}: the tree of the outputs, in it "
            "the tree of the chosen inputs, and None for outputs that are not floating-point"
        )


def _shape_tree(tree: Any) -> str:
    leaves, spec = flatten(tree)
    return str(unflatten([_Shown(leaf) for leaf in leaves], spec))


class _Shown:
    """A leaf that prints as a star where it is a tensor."""

    def __init__(self, leaf: Any) -> None:
        self._text = "*" if isinstance(leaf, Tensor) else repr(leaf)

    def __repr__(self) -> str:
        return self._text


def _assemble(
    where: str,
    leaves: Iterator[Tensor],
    axes: Sequence[Axis],
    path: tuple[int, ...],
    check_dtype: bool,
) -> Tensor:
    """Join the blocks below ``path`` (a leaf index per axis so far) along the axes that follow."""
    depth = len(path)
    if depth == len(axes):
        return _checked_block(where, next(leaves), axes, path, check_dtype)
    blocks = [
        _assemble(where, leaves, axes, (*path, index), check_dtype)
        for index in range(len(axes[depth].likes))
    ]
    # (..., k_1, ...) and (..., k_2, ...) -> (..., k_1 + k_2, ...)
    return torch.cat(blocks, dim=depth) if blocks else torch.zeros(0, dtype=torch.float64)


def _checked_block(
    where: str, leaf: Tensor, axes: Sequence[Axis], path: tuple[int, ...], check_dtype: bool
) -> Tensor:
    likes = [axis.likes[index] for axis, index in zip(axes, path, strict=True)]
    labels = [axis.labels[index] for axis, index in zip(axes, path, strict=True)]
    block = f"{where}: the block of {labels[0]} by {' and '.join(labels[1:])}"
    shape = tuple(side for like in likes for side in like.shape)
    if tuple(leaf.shape) != shape:
        turned = tuple(side for like in reversed(likes) for side in like.shape)
        hint = "; that is the transpose" if tuple(leaf.shape) == turned else ""
        raise DerivativeError(
            f"{block} has shape {tuple(leaf.shape)}; expected {shape}, "
            f"the output's shape and then the input's{hint}"
        )
    dtypes = {like.dtype for like in likes[1:]}
    if check_dtype and leaf.dtype not in dtypes:
        raise DerivativeError(
            f"{block} has dtype {leaf.dtype}; expected {likes[-1].dtype}, the input's, as any "
            "gradient has. Pass check_dtype=False to let it be"
        )
    if leaf.is_meta:
        raise DerivativeError(f"{block} is on the meta device, and has no values to compare")
    dense = leaf.detach() if leaf.layout == torch.strided else leaf.detach().to_dense()
    return dense.to("cpu", torch.float64).reshape([like.numel() for like in likes])
