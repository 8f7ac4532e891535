"""What is known of PyTorch 2.13 and cannot be helped, and how many operators come out right."""

from __future__ import annotations

__all__ = ["COUNTS", "PLAIN_AUTOGRAD_IS_WRONG", "PLAIN_DOUBLE_BACKWARD_IS_WRONG"]

_STATISTICS = "the saved mean and deviation, which are outputs too, have no derivative"
_DUPLICATES = "where indices repeat one value wins, but all of them receive its derivative"
_SAMPLING = "the draw depends on the mean and the deviation, but has no derivative"

PLAIN_AUTOGRAD_IS_WRONG: dict[str, str] = {
    "_batch_norm_with_update": _STATISTICS,
    "_native_batch_norm_legit": _STATISTICS,
    "as_strided_scatter": "its backward pass reads strides that the gradient does not have",
    "linalg.lstsq": "the singular values that it returns have no derivative",
    "native_batch_norm": _STATISTICS,
    "native_layer_norm": _STATISTICS,
    "nn.functional.max_unpool1d": _DUPLICATES,
    "nn.functional.max_unpool2d": _DUPLICATES,
    "nn.functional.max_unpool3d": _DUPLICATES,
    "normal": _SAMPLING,
    "normal.number_mean": _SAMPLING,
}
"""Operators whose Jacobian from a loop of plain backward passes differs from finite differences."""

PLAIN_DOUBLE_BACKWARD_IS_WRONG: dict[str, str] = {
    "as_strided_scatter": PLAIN_AUTOGRAD_IS_WRONG["as_strided_scatter"],
    "nn.functional.linear_cross_entropy.chunked": "its gradient is saved without a graph of its own",
    "nn.functional.max_unpool1d": _DUPLICATES,
    "nn.functional.max_unpool2d": _DUPLICATES,
    "nn.functional.max_unpool3d": _DUPLICATES,
}
"""Operators whose Hessian from plain backward passes differs from differences of their gradients."""

COUNTS: dict[str, dict[str, int]] = {
    "2.13.0": {
        "jac auto": 529,
        "jac forward": 505,
        "jac reverse": 529,
        "hessian auto": 469,
        "hessian reverse-over-reverse": 469,
    },
}
"""Operators that are right in every sample taken, by version of PyTorch. Over the same samples
`torch.func.jacrev` is right on about 514 operators and `torch.func.jacfwd` on about 485."""
