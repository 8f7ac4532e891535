"""Where the nonzeros of a problem's derivative are: what the user says, or what detection finds.

What is looked at is the derivative and not the function: the graph of uᵀ·J, or of J·v where PyTorch has
no backward rule, as a linear map of u or v. So a custom `autograd.Function` cannot hide a
dependence behind a forward of its own, and what the derivative drops (a linear term of a Hessian, what
is detached) is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchjac.errors import (
    ArgumentTypeError,
    PatternError,
    StructureError,
    TorchjacError,
    TorchjacFallbackWarning,
)
from torchjac.evaluation.engines import FlatFunction
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.surroundings import (
    Draw,
    exclusively,
    has_values,
    is_fake,
    is_out_of_memory,
    out_of_inference,
    without_modes,
    without_transforms,
)
from torchjac.foundations.checksums import summed_elements
from torchjac.planning.compressed import Compression
from torchjac.planning.fallback import warn_user
from torchjac.planning.look import evaluate_plainly
from torchjac.structure.coloring import Coloring
from torchjac.structure.pattern import SparsityPattern
from torchjac.structure.soundness import flaw

if TYPE_CHECKING:
    from torchjac.planning.problem import Problem
    from torchjac.structure.detection import Detected

__all__ = ["compress", "find_pattern", "still_holds"]

_MUCH = 2**17  # numbers


def compress(problem: Problem, output_counts: Sequence[int]) -> Compression:
    """Take the pattern that was given, or find it, and refuse one that cannot be the derivative's."""
    if any(map(is_fake, problem.primals)) and not torch._C._len_torch_dispatch_stack():
        # Seeds are real tensors, and PyTorch is left in disorder by a backward pass that mixes the two.
        raise ArgumentTypeError(
            f"{problem.name}(sparsity=...): got a fake tensor outside of its FakeTensorMode. Make the call "
            f"within the mode, or with a tensor that has values."
        )
    n, m = sum(primal.numel() for primal in problem.primals), sum(output_counts)
    rows = m if problem.order == 1 else m * n
    constants: Sequence[Tensor] = ()
    given = problem.sparsity if isinstance(problem.sparsity, Coloring) else None
    if given is not None:
        _refuse_flawed(problem.name, given)
        pattern = given.pattern
    elif isinstance(problem.sparsity, SparsityPattern):
        pattern = problem.sparsity
    else:
        pattern, constants = find_pattern(problem)
    compression = Compression(
        pattern,
        constants,
        given=given,
        symmetric=problem.order == 2 and m == 1,
        name=problem.name,
        forward_cost=problem.work.forward_cost(pattern.nnz),
    )
    compression.check_shape(rows, n)
    if compression.symmetric and not pattern.is_symmetric:
        raise PatternError(
            f"{problem.name}(sparsity=...): the pattern of a Hessian is symmetric, and this one is not. "
            f"Give pattern | pattern.T."
        )
    return compression


def _refuse_flawed(name: str, coloring: Coloring) -> None:
    """Anybody can make a colouring; from a wrong one wrong numbers would be read."""
    wrong = flaw(coloring)
    if wrong:
        raise PatternError(
            f"{name}(sparsity={coloring!r}): from these colours the derivative does not come back: {wrong}. "
            f"torchjac.color makes some that do; torchjac.structure.validate.check_coloring says more."
        )


def find_pattern(
    problem: Problem, *, warn: bool = True
) -> tuple[SparsityPattern, Sequence[Tensor]]:
    """The pattern of the derivative, true for all values of the arguments.

    Args:
        problem: what the derivative is of.
        warn: whether to tell the user of ops without a rule.

    Returns:
        The pattern, and the captured tensors that it holds for as long as these do not change.
    """
    # It loads SciPy, and much of PyTorch that nobody else needs.
    from torchjac.structure.detection import linear_pattern

    function = _differentiated(problem, problem.function)
    with torch.inference_mode(False), Draw(problem.primals).aside():
        here = out_of_inference(problem.primals)
        outputs = evaluate_plainly(lambda primals: function(primals)[0], here)
    others, substituted = problem.others() if problem.others else ([], None)
    sides = (problem.primals, outputs, others)

    def at(point: Sequence[Tensor]) -> tuple[FlatFunction, Sequence[Tensor]]:
        """The function with the values of its other arguments unknown, and the primals of a point."""
        if substituted is None:
            return function, point
        n = len(problem.primals)
        return _differentiated(problem, substituted(point[n:])), point[:n]

    with torch.inference_mode(False), without_transforms(), without_modes(), exclusively():
        primals, likes, unknown = [[_zeros(tensor) for tensor in side] for side in sides]
        point = [*primals, *unknown]
        try:
            found = linear_pattern(lambda p, u: _pull(*at(p), u), point, likes)
            pattern = SparsityPattern.from_scipy(found.matrix).T
        except Exception as error:
            own = isinstance(error, TorchjacError) and not isinstance(error, StructureError)
            if own or is_out_of_memory(error):
                raise
            if problem.order == 2:
                raise _as_refusal(problem.name, error) from error
            # No backward rule, or one that cannot be seen through.
            found = _pushed(problem.name, lambda p, v: _push(*at(p), v), point, primals, error)
            pattern = SparsityPattern.from_scipy(found.matrix)
    if warn:
        _tell_of_unknown(problem, found)
    # A Hessian is symmetric, so what is found on one side only is no nonzero.
    square = problem.order == 2 and pattern.shape[0] == pattern.shape[1]
    return (pattern & pattern.T if square else pattern), found.constants


def still_holds(compression: Compression, primals: Sequence[Tensor]) -> bool:
    """Whether the constants that a pattern was found with are certainly what they were.

    Where there are many, to sum them up takes longer than to compare an answer: that is to be done then.
    """
    if not compression.relies_on_constants:
        return True
    is_much = sum(map(summed_elements, compression.constants)) > _MUCH
    return not (is_much and has_values(primals)) and compression.is_true_to_constants


def _pushed(
    name: str,
    push: Callable[..., Sequence[Tensor]],
    point: Sequence[Tensor],
    tangents: Sequence[Tensor],
    refusal: Exception,
) -> Detected:
    """The pattern by way of J·v; if that fails too, ``refusal`` says why."""
    from torchjac.structure.detection import linear_pattern

    try:
        return linear_pattern(push, point, tangents)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _as_refusal(name, refusal) from refusal


def _as_refusal(name: str, error: Exception) -> StructureError:
    """What is said of a function that ran on its own, but not without values."""
    if isinstance(error, StructureError):
        return error
    return StructureError(
        f"{name}: func cannot be followed on tensors without values ({error}). If it captures a tensor of a "
        f"surrounding transform, pass that as an argument; else give the pattern by hand, or sparsity=None."
    )


def _tell_of_unknown(problem: Problem, found: Detected) -> None:
    if found.unknown:
        warn_user(
            f"{problem.name}: detection has no rule for {', '.join(found.unknown)}, and takes each of its "
            f"outputs to depend on all of its inputs. The pattern is safe, but may have more entries than "
            f"it needs; if you know better, give it by hand.",
            TorchjacFallbackWarning,
        )


def _zeros(tensor: Tensor) -> Tensor:
    """Zeros like what func gets, a copy of ``tensor``: what it makes of the strides is part of it."""
    # Not of the tensor itself, which may be one of a surrounding transform.
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return torch.zeros_like(like, device=tensor.device)


def _differentiated(problem: Problem, function: FlatFunction) -> FlatFunction:
    return function if problem.order == 1 else Jacobian(function, "reverse", vectorise=True)


def _push(
    function: FlatFunction, primals: Sequence[Tensor], tangents: Sequence[Tensor]
) -> Sequence[Tensor]:
    def values(*leaves: Tensor) -> tuple[Tensor, ...]:
        return function(leaves)[0]

    products: Sequence[Tensor] = torch.func.jvp(values, tuple(primals), tuple(tangents))[1]
    return products


def _pull(
    function: FlatFunction, primals: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> Sequence[Tensor]:
    with torch.enable_grad():
        leaves = [primal.detach().requires_grad_() for primal in primals]
        values = function(leaves)[0]
    reached = [at for at, value in enumerate(values) if value.requires_grad]
    if not reached:
        return [torch.zeros_like(leaf) for leaf in leaves]
    pulled: Sequence[Tensor | None] = torch.autograd.grad(
        [values[at] for at in reached],
        leaves,
        [cotangents[at] for at in reached],
        allow_unused=True,
    )
    return [
        torch.zeros_like(leaf) if product is None else product
        for leaf, product in zip(leaves, pulled, strict=True)
    ]
