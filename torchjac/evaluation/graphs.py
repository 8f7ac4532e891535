"""What can be read off an autograd graph by walking over it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["borders", "captures", "describe", "failing_op"]

# Of the nodes those that accumulate into a leaf; no other has a variable, and asking it for one takes long.
_AccumulateGrad = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]


def _nodes(values: Iterable[Tensor], stops: Iterable[Any] = ()) -> Iterator[Any]:
    """Every node that went into ``values``, once, in an order that the graph alone determines.

    The walk does not enter the nodes ``stops``.
    """
    seen = set(stops)
    roots = dict.fromkeys(value.grad_fn for value in values if value.grad_fn is not None)
    stack = [node for node in roots if node not in seen]
    seen.update(stack)
    while stack:
        node = stack.pop()
        yield node
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)


def captures(values: Iterable[Tensor], leaves: Sequence[Tensor]) -> bool:
    """Whether anything but ``leaves`` that requires grad (a captured parameter) went into ``values``.

    Without looking for it, either every Jacobian would drag a graph along or training through one
    would silently drop the parameters. The walk costs about a tenth of one backward pass.
    """
    # Written out, for every call walks here.
    own = [id(leaf) for leaf in leaves]
    stack: list[Any] = [value.grad_fn for value in values if value.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if type(node) is _AccumulateGrad:
            if id(node.variable) not in own:
                return True
            continue
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return False


def _leaves(values: Iterable[Tensor]) -> Iterator[Tensor]:
    return (node.variable for node in _nodes(values) if type(node) is _AccumulateGrad)


def borders(
    values: Sequence[Tensor],
    primals: Sequence[Tensor],
    outside: Sequence[Tensor],
    start: int,
    stop: int,
) -> list[Tensor] | None:
    """The tensors where a function's graph ends: ``outside``, and the parameters it captured.

    Args:
        values: the outputs.
        primals: the inputs; the walk stops there.
        outside: those of the inputs that the caller can differentiate by.
        start: the sequence number that the first node of the function got.
        stop: the one that the next node after it would have got.

    Returns:
        The tensors, or None where they cannot be told: the function captured a tensor in the middle of
        an older graph, or a leaf that an input was computed from as well.
    """
    stops = {primal.grad_fn for primal in primals if primal.grad_fn is not None}
    own = {id(primal) for primal in primals}
    found: dict[int, Tensor] = {}
    for node in _nodes(values, stops):
        if type(node) is _AccumulateGrad:
            found[id(node.variable)] = node.variable
        elif not start <= node._sequence_nr() < stop:
            return None
    parameters = {key: leaf for key, leaf in found.items() if key not in own}
    if any(id(leaf) in parameters for leaf in _leaves(primals)):
        return None
    return [*outside, *parameters.values()]


def describe(values: Sequence[Tensor]) -> tuple[Hashable, int]:
    """The ops of a graph, as a signature, and the bytes of its largest intermediate result.

    Ops of PyTorch are known by name. An autograd.Function of a user's is known by its class, held weakly:
    those of two closures have the same name.
    """
    largest = max((value.numel() * value.element_size() for value in values), default=0)
    names, written = [], []
    for node in _nodes(values):
        names.append(type(node).__name__)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            written.append(weakref.ref(type(node)))
        # Private, and absent before torch 2.1: the estimate is then only that of the outputs.
        for metadata in getattr(node, "_input_metadata", ()):
            largest = max(largest, math.prod(metadata.shape) * metadata.dtype.itemsize)
    return (hash(tuple(names)), *written), largest


def failing_op(values: Sequence[Tensor], backward: Callable[[], object]) -> str | None:
    """The op whose backward ``backward`` fails in, found by running it once more and watching."""
    reached: list[str] = []

    def watch(node: Any) -> Any:
        return node.register_prehook(lambda _: reached.append(type(node).__name__))

    handles = [watch(node) for node in _nodes(values) if type(node) is not _AccumulateGrad]
    try:
        backward()
    except Exception:  # noqa: BLE001 - it is known to fail; where is the question
        return reached[-1] if reached else None
    finally:
        for handle in handles:
            handle.remove()
    return None
