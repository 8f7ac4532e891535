"""Whether an operation of a traced backward pass is linear in what depends on the seed.

The whole pass is linear, but PyTorch writes some formulas down by way of logarithms or branches on the
cotangent's sign; and what a user's own backward does need not be linear at all. Neither can be transposed
operation by operation. Operations that nobody knows count as linear only where they are no elementwise
ones: the self-check of a plan holds them to it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.fx import Node

__all__ = ["is_linear"]

# Elementwise, and linear, ...
_SUMS = {"neg", "_to_copy", "clone", "alias", "positive", "detach", "conj", "real"}
# ... in one of two factors, or in the first argument alone.
_PRODUCTS = {"mul", "mm", "bmm", "mv", "dot", "matmul", "addmm", "baddbmm", "convolution"}
_FIRST = {"div", "zeros_like"}
# What is put in where the seed was has to be nothing; by the position of the value.
_FILLS = {"fill": 1, "masked_fill": 2}
# Not elementwise, and not linear.
_OTHERS = {
    *("amax", "amin", "max", "min", "aminmax", "prod", "norm", "linalg_vector_norm", "logsumexp"),
    *("_softmax", "_log_softmax", "logcumsumexp", "_logcumsumexp", "cumprod", "cummax", "cummin"),
    *(
        "var",
        "std",
        "var_mean",
        "std_mean",
        "any",
        "all",
        "argmax",
        "argmin",
        "median",
        "nanmedian",
    ),
    *("sort", "topk", "kthvalue", "mode", "nonzero", "histc", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
}


def is_linear(node: Node, seeded: Collection[Node]) -> bool:
    """Whether ``node`` is linear in those of its arguments that are in ``seeded``."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True  # takes one of several results
    name = target._schema.name.partition("::")[2]
    touched = [at for at, a in enumerate(node.args) if isinstance(a, Node) and a in seeded]
    if name in _PRODUCTS:
        return len(touched) == 1 or (name in ("addmm", "baddbmm") and touched in ([0, 1], [0, 2]))
    if name == "where":
        return 0 not in touched
    if name in _FIRST:
        return touched == [0]
    if name in _FILLS:
        return touched == [0] and _adds_nothing(node.args[_FILLS[name]])
    if name in ("add", "sub", "rsub"):
        return all(_adds_nothing(a) or (isinstance(a, Node) and a in seeded) for a in node.args[:2])
    if name in _SUMS or name.endswith("_backward"):
        return True
    return name not in _OTHERS and torch.Tag.pointwise not in target.tags


def _adds_nothing(term: object) -> bool:
    """Whether a term of a sum is a zero; with any other beside the seed, the sum is affine."""
    if not isinstance(term, Node):
        return term == 0
    aten = torch.ops.aten
    if term.target in (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default):
        return True
    moves = (aten.expand.default, aten.view.default, aten.alias.default, aten._to_copy.default)
    return term.target in moves and _adds_nothing(term.args[0])
