"""In which of their arguments ATen operations are linear: a table, and questions about it.

Every line is checked numerically by ``tests/evaluation/test_forward_laplacian.py``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import torch
from torch._ops import OpOverload

__all__ = ["FACTORS", "INDEPENDENT", "Factors", "factors_of", "is_elementwise"]

Factors: TypeAlias = tuple[tuple[int, ...], ...]

_FIRST: Factors = ((0,),)
_BOTH: Factors = ((0,), (1,))


def _first(names: str) -> dict[str, Factors]:
    return dict.fromkeys(names.split(), _FIRST)


FACTORS: dict[str, Factors] = {
    # Views, and what copies.
    **_first(
        "view _unsafe_view reshape _reshape_alias expand permute transpose t squeeze unsqueeze"
    ),
    **_first(
        "slice select narrow unfold diagonal alias clone contiguous _to_copy lift_fresh movedim"
    ),
    **_first("split split_with_sizes unbind chunk unsafe_split unsafe_chunk as_strided detach"),
    **_first("repeat flip roll rot90 tril triu diag_embed expand_copy view_copy squeeze_copy"),
    **_first("unsqueeze_copy permute_copy transpose_copy select_copy slice_copy real imag"),
    **_first("view_as_real view_as_complex _conj resolve_conj resolve_neg block_diag"),
    # What picks entries; the indices are constants.
    **_first("index index_select gather take _unsafe_index"),
    "embedding": _FIRST,
    # Sums.
    **_first("neg sum mean cumsum trace avg_pool1d avg_pool2d avg_pool3d"),
    **_first("_adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest2d upsample_bilinear2d"),
    "div": _FIRST,
    "mul": _BOTH,
    "dot": _BOTH,
    "mv": _BOTH,
    "mm": _BOTH,
    "bmm": _BOTH,
    "convolution": _BOTH,
    # Several tensors put together: linear in all of them at once.
    "cat": _FIRST,
    "stack": _FIRST,
    "where": ((1, 2),),
    "masked_scatter": ((0, 2),),
    "slice_scatter": ((0, 1),),
    "select_scatter": ((0, 1),),
    "diagonal_scatter": ((0, 1),),
    "index_put": ((0, 2),),
    "index_add": ((0, 3),),
    "index_copy": ((0, 3),),
    "scatter": ((0, 3),),
    "scatter_add": ((0, 3),),
    "add": ((0, 1),),
    "sub": ((0, 1),),
    "copy": ((1,),),
}
"""By name, the factors of a product: an operation is linear in the arguments of one factor together,
zero where these are zero, as long as those of the others stay. Of more than one factor it is multilinear."""

INDEPENDENT = frozenset(
    [
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "sign",
        "floor",
        "ceil",
        "round",
        "trunc",
        "argmax",
        "argmin",
        "bucketize",
        "searchsorted",
        "heaviside",
        "isnan",
        "isinf",
        "isfinite",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "logical_not",
        "logical_and",
        "logical_or",
        "logical_xor",
        "bitwise_and",
        "bitwise_or",
        "new_empty_strided",
    ]
)
"""What looks at a tensor and does not vary with it."""


def factors_of(target: OpOverload, active: Collection[int]) -> Factors | None:
    """The factors that the positions ``active`` touch, each of them once; None if that is no product.

    Example:
        >>> import torch
        >>> factors_of(torch.ops.aten.mm.default, [0])
        ((0,),)
        >>> factors_of(torch.ops.aten.div.Tensor, [1]) is None
        True
    """
    factors = FACTORS.get(_name(target), ())
    touched = tuple([factor for factor in factors if not set(factor).isdisjoint(active)])
    covered = {position for factor in touched for position in factor}
    if not touched or not covered.issuperset(active):
        return None
    return None if _has_offset(target, active) else touched


def is_elementwise(target: OpOverload) -> bool:
    """Whether every element of the result depends on the elements at its own place alone."""
    pointwise = getattr(torch.Tag, "pointwise", None)  # since torch 2.1
    return pointwise is not None and pointwise in target.tags


def _name(target: OpOverload) -> str:
    namespace, _, name = target._schema.name.partition("::")
    return name if namespace == "aten" else ""


def _has_offset(target: OpOverload, active: Collection[int]) -> bool:
    """Whether a number or a mode among the arguments makes it affine, or rounds."""
    del active
    return target._overloadname in ("value", "Tensor_mode", "Scalar_mode", "value_reduce", "reduce")
