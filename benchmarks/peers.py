"""The hand-made ways that torchjac is held against, each declared once.

A peer takes ``(func, *args)`` and returns the derivative by the first argument, written the way its
own documentation would have it. Each is called as people call it, the transform built anew inline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import functional
from torch.func import hessian, jacfwd, jacrev, vmap

import torchjac

from .workloads import Func, Kind, Workload

Derivative = Callable[..., Tensor]


@dataclass(frozen=True)
class Peer:
    """One column of the table: a way to differentiate the workloads of its kind."""

    name: str
    kind: Kind
    call: Derivative


PEERS: list[Peer] = []


def peer(name: str, kind: Kind = "jac") -> Callable[[Derivative], Derivative]:
    """Register the decorated function as a way to do workloads of ``kind``."""

    def register(call: Derivative) -> Derivative:
        PEERS.append(Peer(name, kind, call))
        return call

    return register


def ours(workload: Workload) -> Derivative:
    """Return the same in torchjac, with every option left alone."""

    def call(func: Func, *args: Any) -> Tensor:
        if workload.kind == "jac":
            return torchjac.jac(func)(*args)
        if workload.kind == "hessian":
            return torchjac.hessian(func)(*args)
        return torchjac.batched_jac(func, per_sample=workload.per_sample)(*args)

    return call


# --- Jacobians -----------------------------------------------------------------------------------


@peer("jacrev")
def func_jacrev(func: Func, *args: Any) -> Tensor:
    return jacrev(func)(*args)


@peer("jacfwd")
def func_jacfwd(func: Func, *args: Any) -> Tensor:
    return jacfwd(func)(*args)


@peer("functional, loop")
def functional_loop(func: Func, x: Tensor, *rest: Any) -> Tensor:
    return functional.jacobian(lambda x: func(x, *rest), x)


@peer("functional, vectorized reverse")
def functional_reverse(func: Func, x: Tensor, *rest: Any) -> Tensor:
    return functional.jacobian(lambda x: func(x, *rest), x, vectorize=True)


@peer("functional, vectorized forward")
def functional_forward(func: Func, x: Tensor, *rest: Any) -> Tensor:
    return functional.jacobian(lambda x: func(x, *rest), x, vectorize=True, strategy="forward-mode")


@peer("is_grads_batched")
def batched_grad(func: Func, x: Tensor, *rest: Any) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = func(x, *rest)
    rows = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    (jac,) = torch.autograd.grad(y, x, rows, is_grads_batched=True)
    return jac.view(y.shape + x.shape)


@peer("row loop")
def row_loop(func: Func, x: Tensor, *rest: Any) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = func(x, *rest)
        flat = y.reshape(-1)
        rows = [torch.autograd.grad(flat[i], x, retain_graph=True)[0] for i in range(len(flat))]
    return torch.stack(rows).view(y.shape + x.shape)


# --- Hessians ------------------------------------------------------------------------------------


@peer("func.hessian", "hessian")
def func_hessian(func: Func, *args: Any) -> Tensor:
    return hessian(func)(*args)


@peer("jacrev(jacrev)", "hessian")
def reverse_over_reverse(func: Func, *args: Any) -> Tensor:
    return jacrev(jacrev(func))(*args)


@peer("functional, loop", "hessian")
def functional_hessian_loop(func: Func, x: Tensor, *rest: Any) -> Tensor:
    return functional.hessian(lambda x: func(x, *rest), x)


@peer("functional, vectorized reverse", "hessian")
def functional_hessian_reverse(func: Func, x: Tensor, *rest: Any) -> Tensor:
    return functional.hessian(lambda x: func(x, *rest), x, vectorize=True)


@peer("functional, vectorized forward", "hessian")
def functional_hessian_forward(func: Func, x: Tensor, *rest: Any) -> Tensor:
    return functional.hessian(
        lambda x: func(x, *rest), x, vectorize=True, outer_jacobian_strategy="forward-mode"
    )


# --- batches -------------------------------------------------------------------------------------


@peer("vmap(jacrev)", "batched")
def vmap_jacrev(func: Func, *args: Any) -> Tensor:
    return vmap(jacrev(func))(*args)


@peer("vmap(jacfwd)", "batched")
def vmap_jacfwd(func: Func, *args: Any) -> Tensor:
    return vmap(jacfwd(func))(*args)


@peer("summed jacrev", "batched")
def summed_jacrev(func: Func, *args: Any) -> Tensor:
    """Samples are independent, so the gradient of a sum over them holds each one's own."""
    return jacrev(lambda *args: func(*args).sum(0))(*args).movedim(-2, 0)


@peer("summed row loop", "batched")
def summed_row_loop(func: Func, x: Tensor, *rest: Any) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        sums = func(x, *rest).sum(0)
        rows = [torch.autograd.grad(sums[i], x, retain_graph=True)[0] for i in range(len(sums))]
    return torch.stack(rows, dim=1)
