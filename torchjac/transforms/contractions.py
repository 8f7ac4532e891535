"""`jac_diag`, `hessian_diag`, `divergence`, `laplacian`: parts of derivatives without the matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchjac.errors import OptionError, OptionTypeError, OutputTypeError
from torchjac.evaluation.forms import Kind
from torchjac.foundations.pytree import flatten
from torchjac.planning.captured.traces import Reached
from torchjac.planning.contractions.contract import contract
from torchjac.planning.contractions.contraction import Contraction
from torchjac.transforms.asks import asks
from torchjac.transforms.call import Call
from torchjac.transforms.options import Argnums, ChunkSize, Options, check_choice, check_flag
from torchjac.transforms.outcome import Outcome
from torchjac.transforms.transformed import like_func

__all__ = ["divergence", "hessian_diag", "jac_diag", "laplacian"]

DiagonalMethod: TypeAlias = Literal["exact", "hutchinson"]
TraceMethod: TypeAlias = Literal["exact", "hutchinson", "hutch++"]

_DIAGONAL_METHODS = ("exact", "hutchinson")
_TRACE_METHODS = ("exact", "hutchinson", "hutch++")
_SAMPLES = 16


def jac_diag(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    method: DiagonalMethod = "exact",
    num_samples: int = _SAMPLES,
    generator: torch.Generator | None = None,
    chunk_size: ChunkSize = "auto",
    return_error: bool = False,
    progress: bool = False,
) -> Callable[..., Any]:
    """Return a function that computes the diagonal of the Jacobian of ``func``.

    The output of ``func`` is like the input: the same tree of the same shapes. Exactly it takes n passes,
    vmapped in chunks, and O(n) memory; or, where the sparsity pattern has been found, one pass for each
    colour of it: one in all for an elementwise function, two for a tridiagonal Jacobian.

    Args:
        func: the function, or an ``nn.Module``.
        argnums: as for `torchjac.jac`. With a tuple, ``func`` returns a tuple of outputs like them.
        method: ``"exact"``, or ``"hutchinson"`` for the mean of v ∗ J·v over random signs v, which is
            unbiased. Its variance is the sum of the squares beside the diagonal, over ``num_samples``.
        num_samples: the products that an estimate takes.
        generator: of the random signs; by default PyTorch's own. Under vmap all samples share them,
            unless vmap was given ``randomness="different"``.
        chunk_size: seeds per vmapped pass, as for `torchjac.jac`.
        return_error: whether to return ``(estimate, standard_error)``; with ``method="exact"`` the error
            is zero.
        progress: as for `torchjac.jac`.

    Returns:
        A function with the signature of ``func`` that returns the diagonal, in the tree of the input.

    Shapes:
        Those of the input.

    Dtypes:
        Those of the input: real floating-point tensors.

    Raises:
        OptionError, OptionTypeError: an option is not one of those allowed, at once.
        OutputTypeError: what ``func`` returns is not like the input.
        TorchjacError: as for `torchjac.jac`.

    Example:
        >>> import torch, torchjac
        >>> torchjac.jac_diag(torch.square)(torch.tensor([1.0, 2.0, 3.0]))
        tensor([2., 4., 6.])

    Source:
        Bekas, Kokiopoulou & Saad, *An Estimator for the Diagonal of a Matrix* (2007).
    """
    how = _How("jac_diag", method, num_samples, generator, return_error, progress)
    return _contraction(how, func, argnums, chunk_size, order=1, kind="diagonal")


def hessian_diag(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    method: DiagonalMethod = "exact",
    num_samples: int = _SAMPLES,
    generator: torch.Generator | None = None,
    chunk_size: ChunkSize = "auto",
    return_error: bool = False,
    progress: bool = False,
) -> Callable[..., Any]:
    """Return a function that computes the diagonal of the Hessian of a scalar function.

    Exactly it takes n Hessian-vector products, vmapped in chunks, and O(n) memory; or one for each colour
    of the sparsity pattern, which is one in all for a sum of functions of single inputs.

    Args:
        func: the function, or an ``nn.Module``; it returns one tensor with a single element.
        argnums: as for `torchjac.hessian`.
        method: as for `torchjac.jac_diag`.
        num_samples: as for `torchjac.jac_diag`.
        generator: as for `torchjac.jac_diag`.
        chunk_size: as for `torchjac.jac_diag`.
        return_error: as for `torchjac.jac_diag`.
        progress: as for `torchjac.jac`.

    Returns:
        A function with the signature of ``func`` that returns the diagonal, in the tree of the input.

    Shapes:
        Those of the input.

    Dtypes:
        Those of the input: real floating-point tensors.

    Raises:
        OutputTypeError: ``func`` returns more than one number.
        TorchjacError: as for `torchjac.jac_diag`.

    Example:
        >>> import torch, torchjac
        >>> torchjac.hessian_diag(lambda x: (x**3).sum() + x[0] * x[1])(torch.tensor([1.0, 2.0]))
        tensor([ 6., 12.])

    Source:
        As for `torchjac.jac_diag`.
    """
    how = _How("hessian_diag", method, num_samples, generator, return_error, progress)
    return _contraction(how, func, argnums, chunk_size, order=2, kind="diagonal")


def divergence(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    method: TraceMethod = "exact",
    num_samples: int = _SAMPLES,
    generator: torch.Generator | None = None,
    chunk_size: ChunkSize = "auto",
    return_error: bool = False,
    progress: bool = False,
) -> Callable[..., Any]:
    """Return a function that computes the divergence of ``func``: the trace of its Jacobian.

    The output of ``func`` is like the input. It costs what `torchjac.jac_diag` costs; the trace of
    several leaves is the sum of theirs.

    Args:
        func: as for `torchjac.jac_diag`.
        argnums: as for `torchjac.jac_diag`.
        method: ``"exact"``; ``"hutchinson"`` for the mean of v·(J·v) over random signs v; or
            ``"hutch++"``, which takes the same number of products, finds the directions in which J is
            large with a third of them, and leaves only the rest to chance. All are unbiased.
        num_samples: the products that an estimate takes.
        generator: as for `torchjac.jac_diag`.
        chunk_size: as for `torchjac.jac_diag`.
        return_error: as for `torchjac.jac_diag`.
        progress: as for `torchjac.jac`.

    Returns:
        A function with the signature of ``func`` that returns the divergence.

    Shapes:
        ``()``.

    Dtypes:
        That of the input: real floating-point tensors.

    Raises:
        TorchjacError: as for `torchjac.jac_diag`.

    Example:
        >>> import torch, torchjac
        >>> torchjac.divergence(lambda x: x * x.sum())(torch.tensor([1.0, 2.0, 3.0]))
        tensor(24.)

    Source:
        Hutchinson, *A Stochastic Estimator of the Trace of the Influence Matrix* (1989); Meyer, Musco,
        Musco & Woodruff, *Hutch++: Optimal Stochastic Trace Estimation* (2021).
    """
    how = _How("divergence", method, num_samples, generator, return_error, progress)
    return _contraction(how, func, argnums, chunk_size, order=1, kind="trace")


def laplacian(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    method: TraceMethod = "exact",
    num_samples: int = _SAMPLES,
    generator: torch.Generator | None = None,
    chunk_size: ChunkSize = "auto",
    return_error: bool = False,
    progress: bool = False,
) -> Callable[..., Any]:
    """Return a function that computes the Laplacian of ``func``: the trace of its Hessian.

    Exactly it is pushed forward through the graph of ``func``, which is traced when a signature is first
    seen: the value, n directional derivatives and the Laplacian go together from operation to operation,
    and no Hessian appears. For a network that is a half of the work of n Hessian-vector products, or
    less; these are taken where the graph cannot be had. Of a function of the whole batch whose samples are
    independent, the directions are those of one sample.

    Args:
        func: the function, or an ``nn.Module``; its outputs may have any shape.
        argnums: as for `torchjac.hessian`; several inputs are one, for their Laplacians are added.
        method: as for `torchjac.divergence`; ``"hutch++"`` for a single number alone.
        num_samples: as for `torchjac.divergence`.
        generator: as for `torchjac.jac_diag`.
        chunk_size: directions, or seeds, that are pushed at a time, as for `torchjac.jac`.
        return_error: as for `torchjac.jac_diag`.
        progress: as for `torchjac.jac`.

    Returns:
        A function with the signature of ``func`` that returns the Laplacian of every output element, in
        the tree of the outputs.

    Shapes:
        Those of the outputs: ``()`` for a scalar function.

    Dtypes:
        Those of the outputs: real floating-point tensors, as the inputs are.

    Raises:
        OutputTypeError: ``method="hutch++"``, and ``func`` returns more than one number.
        TorchjacError: as for `torchjac.hessian`.

    Example:
        >>> import torch, torchjac
        >>> torchjac.laplacian(lambda x: (x**4).sum())(torch.tensor([1.0, 2.0]))
        tensor(60.)
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        ... )
        >>> torch.func.vmap(torchjac.laplacian(network))(torch.randn(16, 2)).shape
        torch.Size([16, 1])

    Source:
        Li, Ye, Zhang et al., *A Computational Framework for Neural Network-Based Variational Monte Carlo
        with Forward Laplacian* (2023); Dangel, Siebert, Zeinhofer & Walther, *Collapsing Taylor Mode
        Automatic Differentiation* (2025). On estimates as for `torchjac.divergence`.
    """
    how = _How("laplacian", method, num_samples, generator, return_error, progress)
    return _contraction(how, func, argnums, chunk_size, order=2, kind="trace")


@dataclass(frozen=True)
class _How:
    """The options that only contractions have."""

    name: str
    method: Any
    num_samples: int
    generator: torch.Generator | None
    return_error: bool
    progress: bool

    def check(self, kind: Kind) -> None:
        """Refuse what cannot be meant, naming the call and what would be right."""
        name, methods = self.name, _TRACE_METHODS if kind == "trace" else _DIAGONAL_METHODS
        check_choice(name, "method", self.method, methods)
        check_flag(name, "return_error", self.return_error)
        check_flag(name, "progress", self.progress)
        least = {"hutch++": 3}.get(self.method, 1)
        if self.return_error:
            least = {"hutch++": 4, "hutchinson": 2}.get(self.method, 1)
        if isinstance(self.num_samples, bool) or not isinstance(self.num_samples, int):
            raise OptionTypeError(
                f"{name}(num_samples={self.num_samples!r}): expected an int, the number of random probes."
            )
        if self.num_samples < least:
            raise OptionError(
                f"{name}(num_samples={self.num_samples!r}, method={self.method!r}): expected at least "
                f"{least}{' for a standard error' if self.return_error else ''}."
            )
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise OptionTypeError(
                f"{name}(generator=...): expected a torch.Generator or None, got "
                f"{type(self.generator).__name__}."
            )


def _contraction(
    how: _How,
    func: Callable[..., Any],
    argnums: Argnums,
    chunk_size: ChunkSize,
    order: int,
    kind: Kind,
) -> Callable[..., Any]:
    options = Options.checked(how.name, func, argnums, chunk_size=chunk_size)
    how.check(kind)
    reached, ask = Reached(func), asks(options, func, order)

    @like_func(func, options, how.method, how.num_samples, how.return_error, order, kind)
    def contracted(*args: Any, **kwargs: Any) -> Any:
        call, problem = ask(args, kwargs)
        if how.progress:
            problem.shown = how.name
        asked = Contraction(
            problem,
            kind,
            validate=functools.partial(_validate, how, call, order, kind),
            reached=reached,
            arguments=flatten((args, kwargs))[0],
            method=how.method,
            num_samples=how.num_samples,
            generator=how.generator,
            return_error=how.return_error,
        )
        estimate, outcome = contract(asked)
        found = _given(call, outcome, order, kind, estimate.leaves)
        if not how.return_error:
            return found
        errors = estimate.errors or [torch.zeros_like(leaf) for leaf in estimate.leaves]
        return found, _given(call, outcome, order, kind, errors)

    return contracted


def _given(call: Call, outcome: Outcome, order: int, kind: Kind, leaves: Sequence[Tensor]) -> Any:
    """The leaves of a result in the tree that they belong to."""
    if kind == "diagonal":
        return call.input_trees(leaves)
    return leaves[0] if order == 1 else outcome.jacobian(leaves)


def _validate(how: _How, call: Call, order: int, kind: Kind, values: Sequence[Tensor]) -> None:
    """Refuse outputs that have no such contraction."""
    shapes = [tuple(value.shape) for value in values]
    if order == 1:
        expected = [tuple(primal.shape) for primal in call.primals]
        tree = flatten(call.input_trees(call.primals))[1]
        if shapes != expected or call.outcome.spec != tree:
            raise OutputTypeError(
                f"{how.name}: func must return what is like its input, for only a square Jacobian has a "
                f"diagonal: expected a tree {tree} of shapes {expected}, got a tree {call.outcome.spec} "
                f"of shapes {shapes}."
            )
    elif (kind == "diagonal" or how.method == "hutch++") and [v.numel() for v in values] != [1]:
        what = "func" if kind == "diagonal" else 'func, with method="hutch++",'
        raise OutputTypeError(
            f"{how.name}: {what} must return a single number, got outputs of shapes {shapes}. Sum them, or "
            f"choose one."
        )
