"""Operations on each element for itself, and which of their arguments they are linear in."""

from __future__ import annotations

from torchjac.evaluation.programs.rewriting import Call
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


def linear_arguments(call: Call) -> tuple[str, ...]:
    """The arguments that an elementwise operation is linear in, one at a time."""
    if call.name == "mul":
        return ("self", "other")
    if call.name in ("div", "neg", "_to_copy", "clone") and call.get("rounding_mode") is None:
        return ("self",)
    if call.name == "where":
        return tuple(
            one for one, other in (("self", "other"), ("other", "self")) if is_zero(call[other])
        )
    if call.name == "masked_fill" and is_zero(call["value"]):
        return ("self",)
    first = next(iter(call.arguments))
    if call.name in _ELEMENTWISE_BACKWARDS and first.startswith("grad"):
        return (first,)
    return ()
