"""`jac_blocks`: a Jacobian larger than memory, block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from torchjac.errors import UnsupportedError
from torchjac.evaluation.surroundings import compiling, inside_transform
from torchjac.foundations.ranks import Ranks
from torchjac.planning.products.blocks import Blocks
from torchjac.transforms.delivery import refuse_followed
from torchjac.transforms.facts import argument_facts, option_facts
from torchjac.transforms.operators import maker
from torchjac.transforms.options import (
    Argnums,
    ChunkSize,
    check_choice,
    check_chunk_size,
    check_flag,
)
from torchjac.transforms.transformed import like_func

__all__ = ["jac_blocks"]

_BY = ("rows", "columns", "auto")


def jac_blocks(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    by: Literal["rows", "columns", "auto"] = "auto",
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
    device_mesh: Any = None,
) -> Callable[..., Blocks]:
    """Return a function that gives the Jacobian of ``func`` in blocks, and never holds the matrix.

    It evaluates ``func`` once. A block of k rows is then one vmapped backward pass, and one of k columns
    one vmapped pass of J·v, made when the iterator gets there; as for `torchjac.jac_operator`, with
    the same fallbacks and checks. What is held is the graph of ``func``, and one block.

    Args:
        func: as for `torchjac.jac`.
        argnums: as for `torchjac.jac`.
        by: whether a block is some rows of the Jacobian or some columns; ``"auto"`` takes whichever costs
            fewer passes. The iterator's ``by`` says which.
        chunk_size: rows, or columns, in a block. ``"auto"`` fits a pass into free memory, None makes a
            single block.
        progress: as for `torchjac.jac`.
        device_mesh: as for `torchjac.jac`; every rank gets the blocks of its share of the rows, or columns,
            as plain tensors, the slices being those of the whole matrix. The ranks meet when the call is
            made and when the last block has been taken, so go through all of them.

    Returns:
        A function with the signature of ``func`` that returns an iterator of ``(slice, block)``, to be gone
        through once. It has ``shape`` ``(m, n)``, ``by``, ``chunk_size``, ``dtype``, ``device`` and
        ``value``, which is what ``func`` returned; its length is the number of blocks to come.

    Shapes:
        The matrix is over the elements of all outputs and all inputs, leaf after leaf, as for
        `torchjac.jac_operator`. By rows a block is ``J[slice]``, ``(k, n)``; by columns ``J[:, slice]``,
        ``(m, k)``.

    Dtypes:
        Inputs and outputs are real floating-point tensors; blocks have the dtype that all of them promote
        to. They carry no graph.

    Raises:
        OptionError, OptionTypeError: an option is not one of those allowed, at once.
        UnsupportedError: within vmap, grad, jvp or torch.compile; or in grad mode, for arguments that were
            computed from tensors that require grad.
        TorchjacError: as for `torchjac.jac_operator`.

    Example:
        >>> import torch, torchjac
        >>> blocks = torchjac.jac_blocks(torch.square, by="rows", chunk_size=2)(torch.arange(3.0))
        >>> for at, block in blocks:
        ...     print(at, block)
        slice(0, 2, None) tensor([[0., 0., 0.],
                [0., 2., 0.]])
        slice(2, 3, None) tensor([[0., 0., 4.]])
    """
    name = "jac_blocks"
    check_chunk_size(name, chunk_size)
    check_choice(name, "by", by, _BY)
    check_flag(name, "progress", progress)
    if device_mesh is not None:
        Ranks.check(name, device_mesh)
    make = maker(name, func, argnums, order=1)

    @like_func(func, name, argnums, by, chunk_size)
    def blocks(*args: Any, **kwargs: Any) -> Blocks:
        if compiling() or inside_transform():
            raise UnsupportedError(
                f"{name}: blocks are made one after another in plain eager code, not within vmap, grad, jvp "
                f"or torch.compile. Use jac or jac_operator there."
            )
        if device_mesh is None:
            refuse_followed(name, args, kwargs)
            with torch.no_grad():
                op = make(*args, **kwargs)
            return Blocks(op, by, chunk_size, shown=name if progress else None)
        return divided(Ranks(name, device_mesh), args, kwargs)

    def divided(ranks: Ranks, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Blocks:
        # It takes torch.distributed, which most calls do without.
        from torchjac.planning.shares import tell_values, together

        def work() -> Blocks:
            refuse_followed(name, args, kwargs)
            options = {"argnums": argnums, "by": by}
            ranks.facts |= option_facts(options) | argument_facts(args, kwargs)
            with torch.no_grad():
                op = make(*args, **kwargs)
            tell_values(ranks, op._point.engine.values)
            shown = name if progress and ranks.rank == 0 else None
            return Blocks(op, by, chunk_size, shown=shown, ranks=ranks)

        return together(ranks, work)

    return blocks
