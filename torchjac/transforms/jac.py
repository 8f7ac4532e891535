"""`jac`: the Jacobian of a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchjac.transforms.asks import asks
from torchjac.transforms.call import Call, Leaves
from torchjac.transforms.delivery import Delivery
from torchjac.transforms.options import Argnums, Check, ChunkSize, Mode, Options, Sparsity
from torchjac.transforms.outcome import Outcome
from torchjac.transforms.transformed import Transform, transformed

__all__ = ["jac"]


def jac(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    return_value: bool = False,
    mode: Mode = "auto",
    chunk_size: ChunkSize = "auto",
    sparsity: Sparsity = None,
    layout: torch.layout = torch.strided,
    check: Check = "first",
    out: Any = None,
    progress: bool = False,
    device_mesh: Any = None,
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian of ``func``, exactly and by the cheaper mode.

    The result is what `torch.func.jacrev` and `torch.func.jacfwd` return, and is itself
    differentiable, vmappable and nestable. It costs one evaluation of ``func`` and m backward passes
    (reverse mode, m outputs) or n forward passes (n inputs), vmapped; one output or one input is one
    plain pass. With ``sparsity`` it takes one pass per colour of the pattern. The first call with a new
    signature also looks at ``func`` and checks the result; see ``check``.

    Args:
        func: the function, or an ``nn.Module``. It takes and returns trees (tuples, lists, dicts) of
            tensors; output leaves that are None or integer tensors have None for a Jacobian.
        argnums: the positional argument to differentiate by, or a tuple of them; negative numbers
            count from the end. ``"params"`` differentiates a module by those of its parameters that
            require grad. Keyword arguments are passed on and not differentiated.
        has_aux: whether ``func`` returns ``(output, aux)``, where aux is any tree and is handed out.
        return_value: whether to return the value of ``func``, from the same evaluation.
        mode: ``"forward"``, ``"reverse"``, or ``"auto"`` to choose by the sizes and to fall back
            where PyTorch refuses.
        chunk_size: seeds per vmapped pass. ``"auto"`` fits them into free memory, None takes all at
            once, and 1 does not use vmap at all. Forward mode evaluates ``func`` once per chunk, with
            the random state of the first.
        sparsity: where the nonzeros are, so that columns (or rows) without a common row (column) share
            a pass: ``"detect"`` to find out when a signature is first seen, a `torchjac.SparsityPattern`
            or a boolean matrix ``(m, n)``, a `torchjac.Coloring` whose colours are then the seeds, or None. A
            wrong pattern is refused, never believed.
        layout: of the leaves: ``torch.strided``, or with ``sparsity`` also ``torch.sparse_coo`` and
            ``torch.sparse_csr``. Their entries are those of the pattern, zeros among them.
        check: ``"first"`` compares the result with one plain backward pass the first time a signature
            is seen, ``"always"`` at every call, ``"never"`` not at all. A wrong result is made again
            the slow way, with a `DerivativeMismatchWarning`.
        out: tensors that the Jacobian is written into, chunk by chunk where their strides allow it, in the
            tree of the result; memory-mapped ones (`torch.from_file`, `numpy.memmap`) included. They share
            no memory with each other, the arguments, or what else ``func`` reads. The result is then
            ``out`` itself, and carries no graph: what was computed from tensors that require grad is
            refused for an argument, unless under ``torch.no_grad()``.
        progress: whether to show on standard error how many passes are done, their rate and the time
            left; by tqdm where that is installed.
        device_mesh: a one-dimensional `torch.distributed.device_mesh.DeviceMesh`. Every rank makes the same
            call, runs its share of the seeds, and gets a `DTensor` sharded along output rows (reverse mode)
            or input columns (forward mode), without a graph; a sparse layout is whole on every rank. Where
            one rank raises all of them do.

    Returns:
        A function with the signature of ``func`` that returns the Jacobian: the tree of outputs,
        each leaf a tree of the chosen inputs. With ``return_value`` it returns ``(value, jac)``, with
        ``has_aux`` ``(jac, aux)``, with both ``(value, jac, aux)``. Its method ``plan`` takes the arguments
        of a call and returns a `torchjac.Plan` for such arguments.

    Shapes:
        Each leaf is ``(*out, *in)``; with ``argnums="params"`` a dict of ``(*out, *parameter)`` by
        qualified name. A CSR leaf is the matrix ``(out.numel(), in.numel())``.

    Dtypes:
        Inputs and outputs are real floating-point tensors; a leaf has the dtype of its input.

    Raises:
        OptionError, OptionTypeError: an option is not one of those allowed, at once.
        ArgumentError, ArgumentTypeError: at the call, for argnums out of range, arguments that are no
            floating-point tensors, or an ``out`` that does not fit.
        OutputTypeError: ``func`` returned something else than tensors and None.
        PatternError, SparsityMismatchError: the pattern is not one of this Jacobian.
        StructureError: ``sparsity="detect"`` cannot see through ``func``.
        RankError: with ``device_mesh``, another rank raised, or is gone.
        UnsupportedError: PyTorch can differentiate ``func`` in no way that the options allow; or ``out``
            or ``device_mesh`` within another transform.

    Example:
        >>> import torch, torchjac
        >>> f = lambda x: torch.stack([x[0] ** 2 + x[1] ** 2, x[0] * x[1], x[1]])
        >>> torchjac.jac(f)(torch.tensor([1.0, 2.0]))
        tensor([[2., 4.],
                [2., 1.],
                [0., 1.]])

    Source:
        Griewank & Walther, *Evaluating Derivatives* (2008), chapters 3 and 4; on sparsity, Curtis,
        Powell & Reid (1974) and Gebremedhin, Manne & Pothen, *What Color Is Your Jacobian?* (2005).
    """
    options = Options.checked(
        "jac", func, argnums, has_aux, return_value, mode, chunk_size, check, sparsity, layout
    )

    delivery = Delivery.checked("jac", out, progress, device_mesh, layout)

    def tree(call: Call, outcome: Outcome, leaves: Leaves) -> Any:
        return outcome.jacobian([call.input_trees(row) for row in leaves])

    ask = asks(options, func, order=1)
    return transformed(Transform("jac", func, options, ask, tree, delivery=delivery))
