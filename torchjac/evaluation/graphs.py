"""What can be read off an autograd graph by walking over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

__all__ = ["describe", "failing_op", "reaches_beyond"]


def _nodes(values: Iterable[Tensor]) -> Iterator[Any]:
    """Every node that went into ``values``, once, in an order that the graph alone determines."""
    stack = [value.grad_fn for value in values if value.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)


def reaches_beyond(values: Iterable[Tensor], leaves: Sequence[Tensor]) -> bool:
    """Whether anything but ``leaves`` that requires grad (a captured parameter) went into ``values``.

    Without this, either every Jacobian would drag a graph along or training through one would
    silently drop the parameters. The walk costs about a tenth of one backward pass.
    """
    own = {id(leaf) for leaf in leaves}
    # Only the node that accumulates into a leaf has a variable.
    return any(id(node.variable) not in own for node in _nodes(values) if hasattr(node, "variable"))


def describe(values: Sequence[Tensor]) -> tuple[Hashable, int]:
    """The ops of a graph, as a signature, and the bytes of its largest intermediate result."""
    largest = max((value.numel() * value.element_size() for value in values), default=0)
    names = []
    for node in _nodes(values):
        names.append(type(node).__name__)
        # Private, and absent before torch 2.1: the estimate is then only that of the outputs.
        for metadata in getattr(node, "_input_metadata", ()):
            largest = max(largest, math.prod(metadata.shape) * metadata.dtype.itemsize)
    return hash(tuple(names)), largest


def failing_op(values: Sequence[Tensor], backward: Callable[[], object]) -> str | None:
    """The op whose backward ``backward`` fails in, found by running it once more and watching."""
    reached: list[str] = []

    def watch(node: Any) -> Any:
        return node.register_prehook(lambda _: reached.append(type(node).__name__))

    handles = [watch(node) for node in _nodes(values) if not hasattr(node, "variable")]
    try:
        backward()
    except Exception:  # noqa: BLE001 - it is known to fail; where is the question
        return reached[-1] if reached else None
    finally:
        for handle in handles:
            handle.remove()
    return None
