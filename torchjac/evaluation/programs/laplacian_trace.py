"""A function traced to be run on jets, and whether its operations tell its derivatives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchjac.evaluation.engines import FlatFunction
from torchjac.evaluation.programs.forward_laplacian import ForwardLaplacian
from torchjac.evaluation.programs.tracing import (
    UntraceableError,
    as_functional,
    captured_tensors,
    draws_random_numbers,
    trace,
)

__all__ = ["trace_laplacian"]

aten = torch.ops.aten


def trace_laplacian(
    function: Callable[[Sequence[Tensor]], FlatFunction],
    primals: Sequence[Tensor],
    others: Sequence[Tensor],
) -> tuple[ForwardLaplacian, list[Tensor]]:
    """Trace a function once.

    Args:
        function: gives, for the tensors that are not differentiated by, the function of those that are.
        primals: what it is differentiated by.
        others: the tensors that it takes beside them.

    Returns:
        What runs it on jets, and the tensors that the function captured.

    Raises:
        UntraceableError: see `trace`; also for a function that draws random numbers.
    """
    n = len(primals)
    watch = _Watch()  # type: ignore[no-untyped-call]
    custom = False

    def evaluate(*tensors: Tensor) -> list[Tensor]:
        nonlocal custom
        with torch.enable_grad():
            # Leaves of a graph, so that it can be looked at. They are the trace's own.
            leaves = [tensor.requires_grad_() for tensor in tensors[:n]]
            with watch, _decomposed():
                values = function(tensors[n:])(leaves)[0]
        custom = _has_custom_rule(values)
        return list(values)

    graph = as_functional(trace(evaluate, [*primals, *others]))
    if draws_random_numbers(graph):
        raise UntraceableError("it draws random numbers")
    nodes = graph.graph
    nodes.eliminate_dead_code()
    # What PyTorch detaches to save it for a backward pass is dead code by now; what is left was meant.
    held_back = any(node.target is aten.detach.default for node in nodes.nodes)
    is_plain = not (custom or watch.without_grad or held_back)
    run = ForwardLaplacian(graph, n, is_plain=is_plain)
    # One for every node, for several may stand for one tensor.
    held = captured_tensors(graph)
    captured = [held[str(node.target)] for node in run.captured]
    # A graph knows the module that it belongs to, and that holds the tensors.
    nodes.owning_module = None
    return run, captured


def _has_custom_rule(values: Sequence[Tensor]) -> bool:
    """Whether a custom `autograd.Function` went into ``values``."""
    waiting: list[Any] = [value.grad_fn for value in values]
    seen: set[object] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
    return False


class _Watch(TorchDispatchMode):
    """Notices operations that reverse mode would not record."""

    without_grad = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.without_grad |= not torch.is_grad_enabled()
        return func(*args, **(kwargs or {}))


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Operations whose second-order rules are better had from their parts."""
    from torch._decomp import get_decompositions

    norms = (aten.native_layer_norm, aten.native_group_norm, aten._softmax, aten._log_softmax)
    own: dict[Any, Callable[..., Any]] = {
        aten.addmm.default: functools.partial(_sum_and_product, aten.mm),
        aten.addmv.default: functools.partial(_sum_and_product, aten.mv),
        aten.baddbmm.default: functools.partial(_sum_and_product, aten.bmm),
        aten.var.correction: lambda *args, **kwargs: _moments(*args, **kwargs)[0],
        aten.std.correction: lambda *args, **kwargs: _moments(*args, **kwargs)[0].sqrt(),
        aten.convolution.default: _convolution,
        aten.var_mean.correction: lambda *args, **kwargs: _moments(*args, **kwargs),
    }
    return {**get_decompositions(norms), **own}


def _sum_and_product(
    multiply: Callable[..., Tensor],
    x: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    """A product first, and then the sum, so that each is linear by itself."""
    product = multiply(a, b)
    product = product if alpha == 1 else product * alpha
    return product + (x if beta == 1 else x * beta)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Any:
    """A convolution and then the bias, so that what is left of it is a product."""
    if bias is None:
        return NotImplemented
    # (channels,) -> (channels, 1, ..., 1)
    return aten.convolution(x, weight, None, *how) + bias.view(-1, *[1] * (weight.dim() - 2))


def _moments(
    x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Variance and mean."""
    dims = list(range(x.dim())) if dim is None or dim == [] else list(dim)
    mean = x.mean(dims, keepdim=True)
    degrees = math.prod(x.shape[d] for d in dims) - (1 if correction is None else correction)
    variance = (x - mean).square().sum(dims, keepdim=keepdim) / max(degrees, 0)
    return variance, mean if keepdim else x.mean(dims)


def _decomposed() -> Any:
    from torch.fx.experimental import proxy_tensor

    return proxy_tensor.decompose(_decompositions())
