"""Operations on each element for itself, and which of their arguments they are linear in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchjac.evaluation.programs.zeros import is_zero

__all__ = ["linear_arguments"]


_ELEMENTWISE_BACKWARDS = frozenset(
    f"{name}_backward"
    for name in (
        *("tanh", "sigmoid", "threshold", "gelu", "silu", "mish", "elu", "hardtanh", "leaky_relu"),
        *("softplus", "hardswish", "hardsigmoid", "log_sigmoid", "softshrink", "hardshrink"),
        *("native_dropout", "logit"),
    )
)


def linear_arguments(name: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments that an elementwise operation is linear in, one at a time."""
    if name == "mul":
        return ("self", "other")
    if name in ("div", "neg", "_to_copy", "clone") and arguments.get("rounding_mode") is None:
        return ("self",)
    if name == "where":
        return tuple(
            one
            for one, other in (("self", "other"), ("other", "self"))
            if is_zero(arguments[other])
        )
    if name == "masked_fill" and is_zero(arguments["value"]):
        return ("self",)
    first = next(iter(arguments))
    if name in _ELEMENTWISE_BACKWARDS and first.startswith("grad"):
        return (first,)
    return ()
