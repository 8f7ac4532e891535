"""What chooses between the ways through a module."""

from __future__ import annotations

import enum
import types
from typing import Any

import torch

__all__ = ["WORDS", "switches_of"]

WORDS = frozenset({str, bool, type(None)})
"""Types of switches among what an object, a module or a container holds; numbers there may be counters."""

# What is told apart by identity where a module holds it.
_CODE = frozenset({types.FunctionType, types.BuiltinFunctionType, types.MethodType, type})
_OF_MODULES = list(vars(torch.nn.Module()))
_COMMON = len(_OF_MODULES)
_WALK, _MODULES = torch.nn.Module.named_modules, torch.nn.Module.modules


def switches_of(module: torch.nn.Module) -> list[Any]:
    """What turns ways through a module on and off, and what it lacks.

    Batch norm couples the samples in training mode, and also without running statistics.
    """
    found: list[Any] = []
    # The walk of `Module.modules`, which is of generators within each other.
    seen: set[int] = set()
    stack: list[torch.nn.Module | None] = [module]
    while stack:
        part = stack.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        kind = part.__class__
        has_own_walk = kind.named_modules is not _WALK or kind.modules is not _MODULES
        stack += part.modules() if has_own_walk else part._modules.values()
        held = vars(part)
        names = list(held)
        found += (part.training, id(part), id(kind))
        found += part._forward_hooks
        found += part._forward_pre_hooks
        # Every module begins with the same dicts, which makes it quick to see what it has beside them.
        for name in names[_COMMON:] if names[:_COMMON] == _OF_MODULES else names:
            value = held[name].__class__
            if value in WORDS:
                found.append(held[name])
            elif value in _CODE or value.__class__ is enum.EnumMeta:
                found.append(id(held[name]))
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    found.append(name)
    return found
