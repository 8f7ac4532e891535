"""One look at a function nobody has seen yet: how large its outputs and what goes on inside are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchjac.foundations.compiler import uncompiled
from torchjac.planning.modes import Work

__all__ = ["Look", "evaluate_plainly", "look"]

Evaluation: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


# Numbers that a graph behind all forward passes may hold where one behind backward passes would hold less.
_LITTLE = 2**24

_NO_GRAD = re.compile("does not require grad|doesn't require grad|requires_grad=False")


class Look(NamedTuple):
    """What was seen."""

    counts: tuple[int, ...]
    """The elements of each output."""
    largest: int
    """The bytes of the largest result of any op."""
    work: Work
    """What decides between the modes."""


class _Watch(TorchDispatchMode):
    """Notes the size of the largest tensor that any op makes, and what decides between the modes."""

    nbytes = 0
    largest = 0
    """Its elements."""
    convolves = False
    requires_grad = False
    moved = 0
    """Numbers that a pass of either mode reads or writes, op by op."""
    sliced = 0
    """Those that a backward pass fills with zeros and adds up, for views of a part of a tensor."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.convolves |= func is torch.ops.aten.convolution.default
        self.requires_grad |= any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        given = [arg.numel() for arg in args if isinstance(arg, Tensor)]
        results = result if isinstance(result, (tuple, list)) else (result,)
        made = [tensor for tensor in results if isinstance(tensor, Tensor)]
        alias = func._schema.returns[0].alias_info if func._schema.returns else None
        if alias is None or alias.is_write:
            self.moved += max([*given, *(tensor.numel() for tensor in made)], default=0)
        else:
            self.sliced += sum(2 * given[0] for tensor in made if tensor.numel() < given[0])
        if alias is None:  # else a view, or changed in place: no new memory
            for tensor in made:
                if tensor.layout is torch.strided:
                    self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
                    self.largest = max(self.largest, tensor.numel())
        return result


def look(evaluate: Evaluation, primals: Sequence[Tensor]) -> Look:
    """Evaluate a function plainly, once unless it refuses to be watched.

    An exception that this raises is the function's own, for nothing is differentiated here.
    """
    values = None
    with uncompiled(), _Watch() as watch:  # type: ignore[no-untyped-call]
        try:
            values = evaluate_plainly(evaluate, primals)
        except Exception:  # noqa: BLE001 - a compiled function, say, that refuses to be watched
            watch.nbytes = 0
    if values is None:
        values = evaluate_plainly(evaluate, primals)
    # A graph of parameters is kept in less memory behind backward passes; see NOTE [Deferred graphs].
    kept = watch.moved * sum(primal.numel() for primal in primals) if watch.requires_grad else 0
    convolves = watch.convolves and kept <= _LITTLE
    slices = watch.sliced > watch.moved and not watch.requires_grad
    work = Work(convolves, slices, watch.largest)
    return Look(tuple(value.numel() for value in values), watch.nbytes, work)


def evaluate_plainly(evaluate: Evaluation, primals: Sequence[Tensor]) -> Sequence[Tensor]:
    """Evaluate without a graph or, for a function that takes derivatives itself, with one."""
    try:
        with torch.no_grad():
            return evaluate(primals)
    except RuntimeError as error:
        # What autograd says where derivatives are taken or hooks are registered; nothing else is tried twice.
        if not _NO_GRAD.search(str(error)):
            raise
    with torch.enable_grad():
        return evaluate([primal.detach().requires_grad_() for primal in primals])
