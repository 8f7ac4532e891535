"""Traced functions kept for later calls, without keeping alive what the functions captured."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from torchjac.evaluation.programs.forward_laplacian import ForwardLaplacian
from torchjac.evaluation.programs.tracing import UntraceableError
from torchjac.evaluation.surroundings import without_transforms
from torchjac.foundations.identity import Identity
from torchjac.foundations.layout import Layout
from torchjac.planning.captured.bindings import CONSTANTS
from torchjac.planning.captured.captures import Captures
from torchjac.planning.problem import Problem

__all__ = ["KeptTrace", "Reached", "can_trace", "keep_trace"]


class KeptTrace:
    """A traced function whose captured tensors are held weakly."""

    def __init__(
        self, run: ForwardLaplacian, captured: list[Tensor], owned: tuple[Tensor, ...]
    ) -> None:
        self.run = run
        own = {id(tensor) for tensor in owned}
        # What only the trace knows, constants that the function makes anew, is the trace's to keep.
        self._held = [weakref.ref(t) if id(t) in own else _Held(t) for t in captured]
        self._kinds = [(t.shape, t.dtype, t.device) for t in captured]

    def captured(self) -> list[Tensor] | None:
        """The tensors, or None if one of them is gone, or has become another in kind."""
        found = [held() for held in self._held]
        tensors = [tensor for tensor in found if tensor is not None]
        same = [(t.shape, t.dtype, t.device) for t in tensors] == self._kinds
        return tensors if same else None


class _Held:
    """A strong reference that is read as a weak one is."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __call__(self) -> Tensor:
        return self._tensor


class Reached:
    """What a function reaches: the bindings of a trace of it, described so that nothing is kept alive."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self._func = func
        self._captures: Captures | None = None
        self._described: Hashable = None

    def describe(self) -> Hashable | None:
        """What two functions of one code must have in common to have one trace; None if unknown."""
        if self._captures is None or self._captures.changed() is not None:
            self._captures = Captures.of(self._func)
            self._described = _Description(self._captures, self._func)
        return self._described if self._captures.is_sure else None

    @property
    def unsure_of(self) -> str | None:
        """What was met whose contents cannot be followed."""
        return self._captures.unsure_of if self._captures is not None else None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the function reaches."""
        return self._captures.tensors if self._captures is not None else ()


class _Description:
    """The labels of all bindings and what they hold, hashed once."""

    __slots__ = ("_hash", "_parts")

    def __init__(self, captures: Captures, func: Callable[..., Any]) -> None:
        seen: dict[int, int] = {}
        given: list[Hashable] = []
        # What a function is called with nothing binds, where it is the function that is differentiated.
        while isinstance(func, functools.partial):
            given.append(_weakly((func.args, *func.keywords.items()), seen))
            func = func.func
        names = [(name.label, _weakly(name.held, seen)) for name in captures._names]
        items = [
            tuple(
                [
                    # Most keys are texts, and nothing else is described by one.
                    (key if type(key) is str else _weakly(key, seen), _weakly(value, seen))
                    for key, value in container.items().items()
                ]
            )
            for container in captures._containers
        ]
        self._parts = (*given, *names, *items)
        self._hash = hash(self._parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Description) and self._parts == other._parts


def _weakly(value: Any, seen: dict[int, int]) -> Hashable:
    """Describe what a binding holds.

    Args:
        value: what is held.
        seen: by their ids, how many others came before those whose contents are bound elsewhere. Two
            bindings that hold the same list are not two that hold equal ones.
    """
    if isinstance(value, CONSTANTS):
        return (type(value), repr(value))
    if isinstance(value, tuple):
        return tuple([_weakly(part, seen) for part in value])
    if isinstance(value, types.FunctionType):
        return (value.__code__, seen.setdefault(id(value), len(seen)))
    if isinstance(value, (list, dict, set)):
        return (type(value), seen.setdefault(id(value), len(seen)))
    try:
        return Identity(value)
    except TypeError:  # no weak references to it
        name = getattr(value, "__qualname__", None)
        return (type(value), name) if name else object()  # equal to nothing else


def can_trace() -> bool:
    """Whether PyTorch has what a trace needs, which came with torch 2.1."""
    return hasattr(torch.Tag, "pointwise") and hasattr(torch, "compiler")


def keep_trace(problem: Problem, reached: Reached, *, portable: bool) -> KeptTrace:
    """Trace the function of ``problem``.

    Args:
        problem: the function, at arguments of the right kinds.
        reached: what the function reaches.
        portable: whether the trace depends on nothing that an argument hides.

    Raises:
        UntraceableError: it cannot be traced, or nobody could tell later whether the trace still holds.
    """
    # It loads much of PyTorch that nobody else needs.
    from torchjac.evaluation.programs.laplacian_trace import trace_laplacian

    if not portable:
        raise UntraceableError("an argument is neither a tensor nor a constant")
    if reached.describe() is None:
        raise UntraceableError(f"it reaches {reached.unsure_of}")
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, reached.tensors)):
        raise UntraceableError(
            "it captures a tensor of a surrounding transform; pass that as an argument instead"
        )
    tensors, with_others = problem.others() if problem.others else ([], None)
    n, kinds = len(problem.primals), Layout([*problem.primals, *tensors]).kinds
    with without_transforms():
        # What is made inside a transform belongs to it.
        likes = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in kinds]
        function = with_others or (lambda _: problem.function)
        run, captured = trace_laplacian(function, likes[:n], likes[n:])
    return KeptTrace(run, captured, reached.tensors)
