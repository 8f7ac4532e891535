"""What a graph of operations costs, counted: integers in, a number out, nothing measured.

Times are estimated in picoseconds of one CPU core. They are right to a factor of two on a machine nobody
has seen, and that is all a choice between ways needs; where it does not suffice, `tune` measures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

__all__ = ["Cost", "cost_of", "estimated_time"]

# Of a product of matrices in caches, of a byte that comes from memory and goes there, of the call of an
# operation that PyTorch dispatches.
_PER_FLOP, _PER_BYTE, _PER_OPERATION = 10, 20, 2_000_000
# A convolution is no product of large matrices.
_CONVOLUTION = 3

_WRITES_ENTRIES = {torch.ops.aten.index_copy, torch.ops.aten.index_put, torch.ops.aten.index_add}


class Cost(NamedTuple):
    """What some operations do."""

    flops: int
    """Multiplications and additions of products and convolutions."""
    nbytes: int
    """Read and written."""
    operations: int

    @property
    def time(self) -> int:
        """Estimated, in picoseconds."""
        return estimated_time(self.flops, self.nbytes, self.operations)

    def __add__(self, other: object) -> Cost:
        assert isinstance(other, Cost)
        return Cost(*[mine + theirs for mine, theirs in zip(self, other, strict=True)])


def estimated_time(flops: int, nbytes: int, operations: int) -> int:
    """Picoseconds that so much work takes.

    Example:
        >>> estimated_time(0, 0, 1), estimated_time(2 * 256**3, 3 * 4 * 256**2, 1)
        (2000000, 353272960)
    """
    return flops * _PER_FLOP + nbytes * _PER_BYTE + operations * _PER_OPERATION


def cost_of(nodes: Iterable[Node]) -> Cost:
    """Count what the operations among ``nodes`` do; views cost their call alone."""
    total = Cost(0, 0, 0)
    for node in nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            total = total + _cost(node)
    return total


def _cost(node: Node) -> Cost:
    assert isinstance(node.target, torch._ops.OpOverload)
    if any(returned.alias_info is not None for returned in node.target._schema.returns):
        return Cost(0, 0, 1)
    involved = [*node.all_input_nodes, node]
    if node.target.overloadpacket in _WRITES_ENTRIES:
        involved = node.all_input_nodes[1:]  # in place, into what was made for it
    nbytes = sum(t.numel() * t.element_size() for n in involved for t in _tensors(n))
    return Cost(_flops(node), nbytes, 1)


def _tensors(node: Node) -> list[Tensor]:
    value = node.meta.get("val")
    many = value if isinstance(value, (tuple, list)) else (value,)
    return [t for t in many if isinstance(t, Tensor)]


def _flops(node: Node) -> int:
    from torch.utils.flop_counter import flop_registry

    packet: Any = getattr(node.target, "overloadpacket", None)
    if packet not in flop_registry:
        return 0
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    flops = int(flop_registry[packet](*args, **kwargs, out_val=node.meta["val"]))
    return flops * _CONVOLUTION if "convolution" in str(packet) else flops
