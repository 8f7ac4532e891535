"""Which tensors have elements of memory in common, told from their addresses and strides alone.

Whether two strided tensors have is a problem in integers that can be hard. Those that people have are
slices of one larger tensor, apart in one of its dimensions, and these are told by residues: modulo the
stride of the dimension before, the addresses of either lie in a stretch of their own.

    columns 0-5 and 6-11 of a matrix with 12:  0 ... 5 | 6 ... 11   modulo 12
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["overlapping", "shares_elements"]


class _Span(NamedTuple):
    """The bytes of a tensor: the first, the distance to the last, and how one gets there."""

    start: int
    reach: int
    dims: tuple[tuple[int, int], ...]
    """Of every dimension the steps and the bytes of each; the bytes of an element are one too."""

    def within(self, modulus: int) -> int | None:
        """How far from the first byte others are, modulo a number; None if nearly anywhere."""
        reach = sum(steps * stride for steps, stride in self.dims if stride % modulus)
        return reach if reach < modulus else None


def overlapping(written: Sequence[Tensor], read: Sequence[Tensor] = ()) -> bool:
    """Whether a tensor that is written may share an element with another, written or read.

    False is certain; true can be wrong of tensors that are no slices of one.
    """
    spans = [(_span(tensor), tensor.device, True) for tensor in written if _has_memory(tensor)]
    spans += [(_span(tensor), tensor.device, False) for tensor in read if _has_memory(tensor)]
    spans.sort(key=lambda item: item[0].start)
    before: list[tuple[_Span, torch.device, bool]] = []
    for span, device, is_written in spans:
        before = [item for item in before if item[0].start + item[0].reach >= span.start]
        for other, other_device, other_written in before:
            matters = (is_written or other_written) and device == other_device
            if matters and not _apart(other, span):
                return True
        before.append((span, device, is_written))
    return False


def shares_elements(tensor: Tensor) -> bool:
    """Whether two indices may lead to one element of a tensor; False is certain."""
    reach = 0
    for steps, stride in sorted(_dims(tensor), key=lambda dim: dim[1]):
        if stride <= reach or not stride:
            return tensor.numel() > 0
        reach += steps * stride
    return False


def _has_memory(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not tensor.is_meta


def _span(tensor: Tensor) -> _Span:
    dims = _dims(tensor)
    return _Span(tensor.data_ptr(), sum(steps * stride for steps, stride in dims), tuple(dims))


def _dims(tensor: Tensor) -> list[tuple[int, int]]:
    itemsize = tensor.element_size()
    dims = [(itemsize - 1, 1)] if itemsize > 1 else []
    return dims + [
        (size - 1, stride * itemsize)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size > 1
    ]


def _apart(one: _Span, other: _Span) -> bool:
    """Whether two spans have no byte in common, though the second begins within the first."""
    distance = other.start - one.start
    for modulus in {stride for _, stride in (*one.dims, *other.dims) if stride > 1}:
        first, second, at = one.within(modulus), other.within(modulus), distance % modulus
        if first is not None and second is not None and first < at < modulus - second:
            return True
    return False
