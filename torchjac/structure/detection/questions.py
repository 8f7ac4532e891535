"""What looks at values while there are none: whose question it is, and what is said to the user."""

from __future__ import annotations

from typing import Any

import torch

from torchjac.errors import StructureError

__all__ = ["ADVICE", "asks_in_vain", "looks_at_values"]

ADVICE = (
    "pass sparsity=None to compute without a pattern, or give the pattern by hand: "
    "sparsity=SparsityPattern(...)"
)
# Backward passes of products: where several factors are zero they forbid to differentiate twice, and
# compute the same nevertheless.
_ASK_IN_VAIN = ("ScatterReduceBackward0", "IndexReduceBackward0")


def asks_in_vain(func: Any) -> bool:
    """Whether a formula of PyTorch's own looks at values, and goes the same way with any."""
    if func is not torch.ops.aten._local_scalar_dense.default:
        return False
    node: Any = torch._C._current_autograd_node()
    return node is not None and node.name() in _ASK_IN_VAIN


# What Python's own questions to a tensor come down to.
_QUESTIONS = ("_local_scalar_dense", "equal", "nonzero", "unique", "index", "masked_select")


def looks_at_values(what: str) -> StructureError:
    """The error where an op, or a part of Python, asks for values that are not known."""
    if what.startswith("aten.") and not any(name in what for name in _QUESTIONS):
        return StructureError(
            f"PyTorch runs {what} on values alone, so that nobody can follow what depends on what; {ADVICE}"
        )
    return StructureError(
        f"func looks at values that depend on its input ({what}), so that its structure may be "
        "another at another input: a branch such as `if x.sum() > 0`, `.item()`, or a boolean mask as an "
        f"index; use torch.where, or {ADVICE}"
    )
