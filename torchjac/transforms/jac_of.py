"""`jac_of`: the Jacobian of tensors that already hang in an autograd graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from torchjac.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from torchjac.evaluation.engines import Graph
from torchjac.evaluation.graphs import describe
from torchjac.foundations.pytree import flatten, unflatten
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.signature import of_arguments
from torchjac.planning.solve import solve
from torchjac.transforms.options import Check, ChunkSize, check_choice, check_chunk_size, check_flag

__all__ = ["jac_of"]


def jac_of(
    outputs: Any,
    inputs: Any,
    *,
    batched: bool = False,
    chunk_size: ChunkSize = "auto",
    create_graph: bool = False,
    retain_graph: bool | None = None,
    check: Check = "first",
    progress: bool = False,
) -> Any:
    """Return the Jacobian of ``outputs`` by ``inputs``, which have been computed already.

    This is the right form of what feeding all rows to one `torch.autograd.grad` call gets wrong: that
    gives the sum of the rows. It costs m vmapped backward passes over the graph, m being the elements
    of the outputs, or of one sample's outputs with ``batched=True``.

    Args:
        outputs: a tree of tensors with a graph; leaves that are None or integer tensors have None
            for a Jacobian.
        inputs: a tree of tensors that require grad and that the outputs were computed from.
        batched: whether dim 0 of every output and input counts samples that do not influence each
            other; then only each sample's own block is computed.
        chunk_size: seeds per vmapped pass; as for `torchjac.jac`.
        create_graph: whether the result is to be differentiable itself.
        retain_graph: whether the graph is needed afterwards; by default, if ``create_graph`` is set.
            Otherwise it may be freed, as by `torch.autograd.grad`.
        check: as for `torchjac.jac`; a signature is the shapes and the ops of the graph. With ``batched``
            it includes that the samples do not influence each other.
        progress: as for `torchjac.jac`.

    Returns:
        The tree of outputs, each leaf a tree of the inputs.

    Shapes:
        Each leaf is ``(*out, *in)``, or ``(B, *out, *in)`` if batched. An output that does not depend
        on an input has zeros.

    Dtypes:
        Floating-point inputs and outputs; a leaf has the dtype of its input.

    Raises:
        ArgumentError: an input does not require grad, no output has a graph, or one that has been freed;
            or, with ``batched``, the sizes of dim 0 differ.
        ArgumentTypeError: a leaf is no floating-point tensor.
        BatchCouplingError: with ``batched``, where one sample's output depends on another's input.

    Example:
        >>> import torch, torchjac
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        >>> torchjac.jac_of((x**2).sum(1), x, batched=True)
        tensor([[2., 4.],
                [6., 8.]])
    """
    check_chunk_size("jac_of", chunk_size)
    check_choice("jac_of", "check", check, ("first", "always", "never"))
    check_flag("jac_of", "batched", batched)
    check_flag("jac_of", "create_graph", create_graph)
    if retain_graph is not None:
        check_flag("jac_of", "retain_graph", retain_graph)
    check_flag("jac_of", "progress", progress)
    output_leaves, output_spec = flatten(outputs)
    input_leaves, input_spec = flatten(inputs)
    values = [leaf for leaf in output_leaves if _is_differentiable(leaf)]
    _check_inputs(input_leaves)
    if not any(value.requires_grad for value in values):
        raise ArgumentError(
            "jac_of(outputs): no output has an autograd graph, so nothing can be said of how it was "
            "computed. Compute it from inputs that require grad, outside torch.no_grad(), or use "
            "torchjac.jac with the function."
        )
    if batched:
        _check_batch([*values, *input_leaves])
    retain = create_graph if retain_graph is None else retain_graph
    graph = Graph(values, input_leaves, create_graph=create_graph, retain_graph=retain)
    answer = _solved(
        Problem(
            name="jac_of",
            function=lambda leaves: (tuple(values), ()),
            primals=input_leaves,
            signature=lambda: _signature(values, input_leaves, batched, chunk_size),
            recorded=graph,
            batched=batched,
            promised=batched,
            mode="reverse",
            chunk_size=chunk_size,
            check=check,
            shown="jac_of" if progress else None,
        )
    )
    trees = iter([unflatten(row, input_spec) for row in answer.laid_out()])
    return unflatten(
        [next(trees) if _is_differentiable(leaf) else None for leaf in output_leaves], output_spec
    )


def _solved(problem: Problem) -> Answer:
    try:
        return solve(problem)
    except UnsupportedError as error:
        if "backward through the graph a second time" not in str(error.__cause__):
            raise
        raise ArgumentError(
            "jac_of(outputs): their graph has been freed by an earlier backward pass or Jacobian. Pass "
            "retain_graph=True there, or compute the outputs again."
        ) from error.__cause__


def _signature(
    values: Sequence[Tensor], inputs: Sequence[Tensor], batched: bool, chunk_size: ChunkSize
) -> Hashable:
    return (
        "jac_of",
        batched,
        chunk_size,
        of_arguments((*values, *inputs), {}),
        describe(values)[0],
    )


_NESTED = "got a nested tensor; pass what it was made from, or what it was made into."


def _is_differentiable(leaf: object) -> bool:
    if leaf is not None and not isinstance(leaf, Tensor):
        raise ArgumentTypeError(
            f"jac_of(outputs): expected tensors or None, got {type(leaf).__name__}."
        )
    if leaf is not None and leaf.is_complex():
        raise ArgumentTypeError(
            f"jac_of(outputs): got a complex tensor ({leaf.dtype}); pass torch.view_as_real(y) instead."
        )
    if leaf is not None and leaf.is_nested:
        raise ArgumentTypeError(f"jac_of(outputs): {_NESTED}")
    return leaf is not None and leaf.is_floating_point()


def _check_inputs(leaves: Sequence[object]) -> None:
    if not leaves:
        raise ArgumentError("jac_of(inputs): expected at least one tensor, got none.")
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ArgumentTypeError(
                f"jac_of(inputs): expected real floating-point tensors, got {got}."
            )
        if leaf.is_nested:
            raise ArgumentTypeError(f"jac_of(inputs): {_NESTED}")
        if not leaf.requires_grad:
            raise ArgumentError(
                f"jac_of(inputs): an input of shape {tuple(leaf.shape)} does not require grad, so the "
                f"outputs cannot have recorded how they depend on it. Call x.requires_grad_() before "
                f"computing them."
            )


def _check_batch(leaves: Sequence[Tensor]) -> None:
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise ArgumentError(
            f"jac_of(batched=True): dim 0 of every output and input must be the batch; got shapes {shapes}."
        )
