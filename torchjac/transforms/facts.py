"""What the ranks of a mesh have to agree on before they divide a call, by the names its user knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchjac.foundations.digests import digest
from torchjac.foundations.pytree import flatten
from torchjac.structure.coloring import Coloring
from torchjac.structure.pattern import SparsityPattern
from torchjac.transforms.call import Call

__all__ = ["argument_facts", "option_facts", "parameter_facts"]

# What a rank may have its own of: they change no number.
_OWN = ("chunk_size", "check")


def option_facts(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the call is asked for; of a pattern its sizes."""
    return {
        f"the option {name}": _shown(value) for name, value in options.items() if name not in _OWN
    }


def argument_facts(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Trees, shapes, dtypes and numbers of the arguments."""
    facts: dict[str, Any] = {"the number of arguments": len(args)}
    named = [(f"argument {k}", arg) for k, arg in enumerate(args)]
    named += [(f"the keyword argument {name}", arg) for name, arg in sorted(kwargs.items())]
    for name, arg in named:
        leaves, spec = flatten(arg)
        facts[f"the tree of {name}"] = repr(spec)
        for k, leaf in enumerate(leaves):
            facts |= _of_leaf(name if len(leaves) == 1 else f"{name}, leaf {k}", leaf)
    return facts


def parameter_facts(call: Call) -> dict[str, Any]:
    """The numbers of the parameters that are differentiated by."""
    pairs = zip(call.names, call.primals, strict=False)
    return {f"the parameter {name}": digest(primal) for name, primal in pairs}


def _shown(value: object) -> str:
    if isinstance(value, Coloring):
        return f"{value!r} of {_shown(value.pattern)}"
    if isinstance(value, SparsityPattern):
        return f"a pattern {tuple(value.shape)} of {value.nnz} entries"
    return repr(value)


def _of_leaf(name: str, leaf: object) -> dict[str, Any]:
    if not isinstance(leaf, Tensor):
        is_plain = leaf is None or isinstance(leaf, (bool, int, float, str))
        return {name: repr(leaf) if is_plain else type(leaf).__name__}
    facts: dict[str, Any] = {
        f"the shape of {name}": tuple(leaf.shape),
        f"the dtype of {name}": str(leaf.dtype),
    }
    if leaf.layout is torch.strided and not leaf.is_complex() and not leaf.is_meta:
        facts[name] = digest(leaf)
    return facts
