"""Fingerprints of functions: of the computation where it was traced, else of the code.

What counts of a computation are its operations, shapes, strides, dtypes, devices and constants. Names,
addresses and the values of what was captured do not.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import map_arg

from torchjac.evaluation.programs.tracing import captured_tensors

__all__ = ["code_fingerprint", "graph_fingerprint", "numbered", "value_fingerprint"]


class _Word(str):
    """Shown as it is among constants."""

    __slots__ = ()
    __repr__ = str.__str__


def graph_fingerprint(graph: GraphModule) -> str:
    """The SHA-256 of a graph's text, in which operations and captured tensors are numbers."""
    number = {id(tensor): at for at, tensor in enumerate(numbered(graph))}
    words: dict[Any, _Word] = {}
    lines = []
    for at, node in enumerate(graph.graph.nodes):
        args, kwargs = map_arg((node.args, node.kwargs), words.__getitem__)
        what = (
            f"captured {number[id(getattr(graph, node.target))]}" if node.op == "get_attr" else ""
        )
        if node.op == "call_function":
            what = _name(node.target)
        lines.append(f"%{at} {node.op} {what} {args} {kwargs} {_kinds(node.meta.get('val'))}")
        words[node] = _Word(f"%{at}")
    return _digest(lines)


def numbered(graph: GraphModule) -> list[Tensor]:
    """The tensors that a graph captured, each once, in the order in which it mentions them."""
    return list({id(tensor): tensor for tensor in captured_tensors(graph).values()}.values())


def value_fingerprint(tensors: Iterable[Tensor]) -> str:
    """The SHA-256 of the values of strided tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def code_fingerprint(func: Callable[..., Any]) -> str:
    """The SHA-256 of a function's own code, not of what it calls; of a module, of all its modules'."""
    while isinstance(func, functools.partial):
        func = func.func
    if isinstance(func, torch.nn.Module):
        return _digest(
            f"{name} {type(part).__qualname__} {_code(type(part).forward)}"
            for name, part in func.named_modules()
        )
    return _digest([_code(func)])


def _code(func: Any) -> str:
    func = getattr(func, "__func__", func)
    code = getattr(func, "__code__", None) or getattr(type(func).__call__, "__code__", None)
    return _name(func) if code is None else _text(code)


def _text(code: types.CodeType) -> str:
    """What code does; where it stands does not count."""
    return f"{code.co_code.hex()} {code.co_names} {[_constant(c) for c in code.co_consts]}"


def _constant(constant: object) -> str:
    if isinstance(constant, types.CodeType):
        return _text(constant)
    if isinstance(constant, frozenset):  # its order is another one in every process
        return f"frozenset {sorted(map(repr, constant))}"
    return repr(constant)


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}.{named.__qualname__}"


def _kinds(value: Any) -> str:
    if isinstance(value, Tensor):
        stride = value.stride() if value.layout is torch.strided else value.layout
        return f"{tuple(value.shape)} {stride} {value.dtype} {value.device}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_kinds, value))}]"
    return repr(value)


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()
