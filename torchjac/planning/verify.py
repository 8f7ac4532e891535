"""The self-check: an answer is compared once per signature, and made again where it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchjac.errors import DerivativeMismatchWarning
from torchjac.evaluation.engines import FlatFunction, Graph, linearize
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.probes import adjoint_probe, agree, difference_probe, tolerance
from torchjac.evaluation.surroundings import Draw
from torchjac.planning.coupling import refuse_coupling
from torchjac.planning.fallback import warn_user
from torchjac.planning.memory import Record
from torchjac.planning.problem import Answer, Problem

__all__ = ["verified"]


def verified(
    problem: Problem, answer: Answer, record: Record, draw: Draw, again: Callable[[], Answer]
) -> Answer:
    """Return ``answer`` if it stands the check, else the one that ``again`` makes the trusted way.

    A Jacobian is compared with one plain backward pass, a Hessian with that and with a difference of
    gradients. Where the trusted way agrees with the answer after all, within the rounding of an
    ill-conditioned function, nothing is said.
    """
    trusted = answer.way.trusted
    reason = _disagreement(problem, answer, draw)
    record.checked.add(answer.way)
    if reason is None:
        return answer
    if answer.way == trusted:
        _warn(problem, answer, reason, "No way is left that could be trusted more")
        return answer
    with draw.aside():
        replaced = again()
    if _same(answer, replaced):
        return answer
    record.distrusted = True
    record.checked.add(trusted)
    _warn(
        problem, answer, reason, f"The result was made again, {trusted} ({replaced.passes} passes)"
    )
    return replaced


def _disagreement(problem: Problem, answer: Answer, draw: Draw) -> str | None:
    """Say what the answer disagrees with, or None."""
    backward = Jacobian(problem.function, "reverse", vectorise=False)
    function: FlatFunction = problem.function if problem.order == 1 else backward
    if problem.promised or answer.way != answer.way.trusted:
        graph = answer.graph or _recorded(problem, function, answer, draw)
        if graph is not None and problem.promised:
            refuse_coupling(problem.name, graph)
        if graph is not None and not adjoint_probe(graph, answer.leaves, batched=problem.batched):
            return "one plain backward pass"
    fine = problem.order == 2 and all(p.dtype in _FINE for p in problem.primals)
    if fine and not _survives_difference(problem, backward, answer.leaves, draw):
        return "a difference of gradients"
    return None


_FINE = (torch.float64, torch.float32)


def _recorded(problem: Problem, function: FlatFunction, answer: Answer, draw: Draw) -> Graph | None:
    """Record a graph to compare a forward answer with; None if that cannot be done.

    A function that gives other values the second time draws from a generator that cannot be set
    back; there is nothing to compare then.
    """
    try:
        with draw.aside():
            graph = linearize(function, [p.detach() for p in problem.primals], "reverse")
    except Exception:  # noqa: BLE001 - an op without a backward formula: forward mode is all there is
        return None
    assert isinstance(graph, Graph)
    # A Jacobian carries the outputs of its function first, and maybe more behind them.
    values = graph.values if problem.order == 1 else graph.carried
    for value, known in zip(values, answer.values, strict=False):
        a, b = value.detach(), known.detach()
        if a.shape != b.shape or not torch.allclose(
            a, b, rtol=tolerance([a]), atol=tolerance([a]), equal_nan=True
        ):
            return None
    return graph


def _survives_difference(
    problem: Problem, gradient: FlatFunction, leaves: Sequence[Sequence[Tensor]], draw: Draw
) -> bool:
    def replayed(primals: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        with draw.aside(), torch.no_grad():
            return gradient(primals)

    try:
        return difference_probe(replayed, problem.primals, leaves)
    except Exception:  # noqa: BLE001 - no reverse mode, or no value beside this point: nothing to compare with
        return True


def _same(answer: Answer, other: Answer) -> bool:
    for row, other_row in zip(answer.leaves, other.leaves, strict=True):
        for got, expected in zip(row, other_row, strict=True):
            got, expected = got.detach().reshape(-1), expected.detach().reshape(-1)
            if got.numel() and not agree(
                got, expected, expected.square(), tolerance([got, *answer.values])
            ):
                return False
    return True


def _warn(problem: Problem, answer: Answer, reason: str, remedy: str) -> None:
    warn_user(
        f"{problem.name}: the derivative computed in {answer.way} disagrees with {reason}. A derivative "
        f"rule that it uses is wrong: a batching (vmap) or forward (jvp) rule of a custom "
        f"autograd.Function, or one of PyTorch's own. {remedy}. torchjac.testing.check_jac shows where "
        f"the results differ.",
        DerivativeMismatchWarning,
    )
