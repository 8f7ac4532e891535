"""`jac_sparsity` and `hessian_sparsity`: where the nonzeros of a derivative are, for every argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchjac.planning.sparsity import find_pattern
from torchjac.structure.pattern import SparsityPattern
from torchjac.transforms.asks import asks
from torchjac.transforms.options import Argnums, Options
from torchjac.transforms.transformed import like_func

__all__ = ["hessian_sparsity", "jac_sparsity"]


def jac_sparsity(func: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., SparsityPattern]:
    """Return a function that finds the sparsity pattern of the Jacobian of ``func``.

    The pattern is *global*: it covers every entry that is nonzero for some values of the arguments,
    whose shapes alone matter. It is *safe*: an op without a rule counts as dense. It is found on the
    graph of the derivative itself, traced once, with no pass over the Jacobian.

    Args:
        func: as for `torchjac.jac`.
        argnums: as for `torchjac.jac`.

    Returns:
        A function with the signature of ``func`` that returns a `torchjac.SparsityPattern`.

    Shapes:
        ``(m, n)``: a row for every element of the outputs, a column for every element of the chosen
        inputs, leaf after leaf.

    Raises:
        StructureError: ``func`` branches on values, or what it depends on cannot be traced.
        TorchjacError: as for `torchjac.jac`.

    Example:
        >>> import torch, torchjac
        >>> pattern = torchjac.jac_sparsity(torch.diff)(torch.randn(5))
        >>> pattern.shape, pattern.nnz
        ((4, 5), 8)

    Source:
        Hill & Dalle, *Sparser, Better, Faster, Stronger: Efficient Automatic Differentiation for Sparse
        Jacobians and Hessians* (2025), on index sets.
    """
    return _finder("jac_sparsity", func, argnums, order=1)


def hessian_sparsity(
    func: Callable[..., Any], argnums: Argnums = 0
) -> Callable[..., SparsityPattern]:
    """Return a function that finds the sparsity pattern of the Hessian of ``func``.

    It is the pattern of the Jacobian of the gradient, found on the graph of a Hessian-vector product,
    where everything that is linear in the inputs has vanished.

    Args:
        func: as for `torchjac.hessian`.
        argnums: as for `torchjac.jac`.

    Returns:
        A function with the signature of ``func`` that returns a `torchjac.SparsityPattern`.

    Shapes:
        ``(n, n)`` for one output, ``(m·n, n)`` for m of them.

    Raises:
        TorchjacError: as for `torchjac.jac_sparsity`.

    Example:
        >>> import torch, torchjac
        >>> rosenbrock = lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
        >>> torchjac.hessian_sparsity(rosenbrock)(torch.randn(10)).nnz
        28

    Source:
        As for `torchjac.jac_sparsity`.
    """
    return _finder("hessian_sparsity", func, argnums, order=2)


def _finder(
    name: str, func: Callable[..., Any], argnums: Argnums, order: int
) -> Callable[..., SparsityPattern]:
    options = Options.checked(name, func, argnums)
    ask = asks(options, func, order)

    @like_func(func, options)
    def pattern(*args: Any, **kwargs: Any) -> SparsityPattern:
        return find_pattern(ask(args, kwargs)[1])[0]

    return pattern
