"""What makes two calls the same, so that what one of them taught serves the other.

A signature is the function and the tree, shapes, dtypes and devices of the arguments. People write
``jac(lambda x: model(x))(x)`` in a loop, so a function is its code and the functions and modules that
the code can reach, never the function object. Nothing in a signature keeps any of them alive.
"""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from collections.abc import Hashable, Mapping
from typing import Any

import torch

from torchjac.foundations.pytree import flatten

__all__ = ["of_arguments", "of_function"]

# What a closure holds beside functions and modules are values, and values do not change which code
# runs; these do, because they are how switches are written.
_SWITCHES = (str, bool, type(None), bytes, torch.dtype, torch.device)


# Of a container or a text, so many items are looked at; functions and modules come in small numbers.
_LONG = 64
_MODULE = 0  # no object has this id
_VALUES = frozenset({torch.Tensor, torch.nn.Parameter, int, float, types.ModuleType})


class _Identity:
    """An object told apart by identity and held weakly: once it is gone it equals nothing."""

    __slots__ = ("_hash", "_ref")

    def __init__(self, subject: object) -> None:
        self._ref = weakref.ref(subject)
        self._hash = id(subject)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        subject = self._ref()
        return isinstance(other, _Identity) and subject is not None and subject is other._ref()


def of_function(func: Any) -> tuple[Hashable, bool]:
    """Describe ``func`` by its code and by the functions and modules that the code can reach.

    Returns:
        The description, and whether a module was among what it reaches.
    """
    seen: set[int] = set()
    described = _describe(func, seen)
    return described, _MODULE in seen


def _describe(subject: Any, seen: set[int]) -> Any:
    kind = type(subject)
    if kind in _VALUES:
        return kind
    if isinstance(subject, _SWITCHES):
        if isinstance(subject, (str, bytes)) and len(subject) > _LONG:
            return (len(subject), hash(subject))
        return subject
    if id(subject) in seen:
        return "seen"
    if isinstance(subject, types.FunctionType):
        seen.add(id(subject))
        return (subject.__code__, *_reached(subject, seen))
    if isinstance(subject, torch.nn.Module):
        seen.add(_MODULE)
        # Training mode changes what runs: batch norm couples the samples, dropout draws.
        return (_Identity(subject), *[module.training for module in subject.modules()])
    if isinstance(subject, types.MethodType):
        return (_describe(subject.__func__, seen), _describe(subject.__self__, seen))
    if isinstance(subject, types.BuiltinMethodType):
        # Made anew at every access, so its identity says nothing; that of what it belongs to does.
        return (subject.__qualname__, _describe(subject.__self__, seen))
    if isinstance(subject, functools.partial):
        parts = (subject.func, *subject.args, *subject.keywords.values())
        return ("partial", *[_describe(part, seen) for part in parts])
    if isinstance(subject, (tuple, list, dict)):
        seen.add(id(subject))
        items = subject.values() if isinstance(subject, dict) else subject
        nested = [part for part in itertools.islice(items, _LONG) if _can_run(part)]
        return (kind, *[_describe(part, seen) for part in nested])
    return _describe_object(subject, seen)


def _can_run(part: Any) -> bool:
    # The rest of a container is values, and those of a log or a counter change with every call.
    return callable(part) or isinstance(part, (tuple, list, dict))


def _describe_object(subject: Any, seen: set[int]) -> Any:
    """Describe a callable by its identity, anything else by its type, and both by what they hold."""
    kind = type(subject)
    seen.add(id(subject))
    held = [part for part in getattr(subject, "__dict__", {}).values() if _can_run(part)]
    parts = [_describe(part, seen) for part in held[:_LONG]]
    if not callable(subject):
        return (kind, *parts)
    try:
        return (_Identity(subject), *parts)
    except TypeError:  # no weak references to it: a built-in, or a class with slots
        return (kind, getattr(subject, "__qualname__", None))


def _reached(function: types.FunctionType, seen: set[int]) -> list[Any]:
    """Describe the contents of a closure, the defaults, and the globals that the code names."""
    parts: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            contents = cell.cell_contents
        except ValueError:  # the cell is still empty
            continue
        kind = type(contents)
        parts.append(kind if kind in _VALUES else _describe(contents, seen))
    if function.__defaults__:
        parts.append(_describe(function.__defaults__, seen))
    if function.__kwdefaults__:
        parts.append(_describe(function.__kwdefaults__, seen))
    space = function.__globals__
    for name in _names(function.__code__):
        known = space.get(name)
        if known is None or type(known) in _VALUES:
            continue
        if isinstance(known, types.FunctionType) and known.__globals__ is not space:
            parts.append(known.__code__)  # a library's function: what it reaches is its own affair
        else:
            parts.append(_describe(known, seen))
    return parts


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The global names (and attributes) that a code object and those nested in it mention."""
    nested = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return tuple({*code.co_names, *(name for part in nested for name in _names(part))})


def of_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """Describe arguments by tree, shapes, dtypes and devices."""
    if not kwargs and all(isinstance(arg, torch.Tensor) for arg in args):
        return tuple([(arg.shape, arg.dtype, arg.device) for arg in args])
    leaves, spec = flatten((args, dict(kwargs)))
    described = [
        (leaf.shape, leaf.dtype, leaf.device)
        if isinstance(leaf, torch.Tensor)
        else _describe(leaf, set())
        for leaf in leaves
    ]
    return (spec, *described)
