"""Large matrix products by the library that is faster here.

PyTorch's matrix products go to the BLAS that it was built with, on most builds MKL, which on processors
of other makers than its own leaves half of their speed unused. oneDNN comes with PyTorch as well, for
convolutions and linear layers, and multiplies matrices all the same. Which of the two is faster is
measured once in a process.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

__all__ = ["use_faster_products"]

aten = torch.ops.aten

# Below so many multiplications the call of oneDNN, 10 µs, costs more than it saves.
_LEAST = 1 << 21
# A library has to be so much faster to be worth another one's rounding.
_MARGIN = 1.3


def use_faster_products(graph: GraphModule) -> None:
    """Replace large products of single-precision matrices on a CPU, where oneDNN is faster."""
    found = [node for node in graph.graph.nodes if _is_large(node)]
    if not found or not _onednn_is_faster(torch.get_num_threads()):
        return
    for node in found:
        *bias, left, right = node.args
        node.target, node.args = torch.ops.torchjac.product.default, (left, right, *bias)
    graph.recompile()


# An operation of our own, for Inductor has plans for those of oneDNN that fit into linear layers alone.
_library = torch.library.Library("torchjac", "DEF")
_library.define("product(Tensor left, Tensor right, Tensor? term=None) -> Tensor")


def _product(left: Tensor, right: Tensor, term: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(
        left, right.t(), term, "none", [], ""
    )
    return product


def _product_of_fakes(left: Tensor, right: Tensor, term: Tensor | None = None) -> Tensor:
    del term
    return left.new_empty(left.shape[0], right.shape[1])


_library.impl("product", _product, "CPU")
_library.impl("product", _product_of_fakes, "Meta")


def _is_large(node: Node) -> bool:
    if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
        return False
    operands: Any = node.args
    *bias, left, right = [operand.meta["val"] for operand in operands]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (*bias, left, right)):
        return False
    if any(t.dim() != 1 for t in bias) or left.stride(1) != 1:
        return False
    return bool(left.shape[0] * right.numel() >= _LEAST)


@functools.cache
def _onednn_is_faster(threads: int) -> bool:
    """Tried once for a number of threads."""
    del threads
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(512, 256, generator=generator, device="cpu"),
        torch.randn(256, 256, generator=generator, device="cpu"),
    )
    blas = _least_time(lambda: torch.mm(left, right))
    onednn = _least_time(lambda: _product(left, right))
    return onednn * _MARGIN < blas


def _least_time(product: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(6):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return min(times)
