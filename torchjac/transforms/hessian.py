"""`hessian`: the Jacobian of the gradient of a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchjac.transforms.asks import asks
from torchjac.transforms.call import Call, Leaves
from torchjac.transforms.delivery import Delivery
from torchjac.transforms.options import Argnums, Check, ChunkSize, HessianMode, Options, Sparsity
from torchjac.transforms.outcome import Outcome
from torchjac.transforms.transformed import Transform, transformed

__all__ = ["hessian"]


def hessian(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    return_value: bool = False,
    mode: HessianMode = "auto",
    chunk_size: ChunkSize = "auto",
    sparsity: Sparsity = None,
    layout: torch.layout = torch.strided,
    check: Check = "first",
    out: Any = None,
    progress: bool = False,
    device_mesh: Any = None,
) -> Callable[..., Any]:
    """Return a function that computes the Hessian of ``func``.

    It is the Jacobian of the Jacobian of ``func``, from one evaluation. A scalar function takes one
    backward pass for the gradient and n passes over that pass's graph (reverse-over-reverse); a
    function with m outputs takes n forward passes of its vmapped backward pass (forward-over-reverse).

    Args:
        func: as for `torchjac.jac`; usually scalar, but any shape will do.
        argnums: as for `torchjac.jac`; several arguments give all the mixed blocks.
        has_aux: whether ``func`` returns ``(output, aux)``.
        return_value: whether to return the value of ``func``, from the same evaluation.
        mode: the outer and the inner mode. ``"auto"`` never takes forward mode inside by itself, because
            PyTorch's second derivatives are least trustworthy there.
        chunk_size: seeds of the outer derivative per vmapped pass; as for `torchjac.jac`.
        sparsity: as for `torchjac.jac`; a pattern is ``(n, n)`` and symmetric, and is coloured so that the
            entries can be read from either side of the diagonal. ``color(pattern, by="symmetric",
            max_terms=4)`` gives fewer colours, for entries that are sums of several products.
        layout: as for `torchjac.jac`.
        check: as for `torchjac.jac`; the Hessian is also compared with a difference of gradients.
        out: as for `torchjac.jac`.
        progress: as for `torchjac.jac`.
        device_mesh: as for `torchjac.jac`.

    Returns:
        A function with the signature of ``func`` that returns the Hessian: the tree of outputs, each
        leaf a tree of inputs of trees of inputs; with ``return_value``, ``has_aux`` and ``plan`` as for
        `jac`.

    Shapes:
        Each leaf is ``(*out, *in_i, *in_j)``.

    Dtypes:
        As for `torchjac.jac`.

    Raises:
        TorchjacError: as for `torchjac.jac`.

    Example:
        >>> import torch, torchjac
        >>> torchjac.hessian(lambda x: x[0] ** 2 * x[1])(torch.tensor([1.0, 2.0]))
        tensor([[4., 2.],
                [2., 0.]])

    Source:
        Griewank & Walther, *Evaluating Derivatives* (2008), chapter 5; on sparsity, Coleman & Moré
        (1984) and Gebremedhin, Tarafdar, Manne & Pothen (2007).
    """
    options = Options.checked(
        "hessian", func, argnums, has_aux, return_value, mode, chunk_size, check, sparsity, layout
    )

    delivery = Delivery.checked("hessian", out, progress, device_mesh, layout)

    def tree(call: Call, outcome: Outcome, leaves: Leaves) -> Any:
        # leaves[output · n + i][j] -> trees by output, then i, then j
        n = len(leaves[0])
        rows = [call.input_trees(row) for row in leaves]
        outputs = [call.input_trees(rows[at : at + n]) for at in range(0, len(rows), n)]
        return outcome.jacobian(outputs)

    ask = asks(options, func, order=2)
    return transformed(Transform("hessian", func, options, ask, tree, delivery=delivery))
