"""A transform tried on a sample: right, refused, or wrong, and what was said on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from tests.ops.database import Case
from tests.ops.oracle import Blocks, Truth, same
from torchjac.errors import DerivativeMismatchWarning, TorchjacError
from torchjac.planning.memory import forget_everything

__all__ = ["Outcome", "attempt", "worst"]


class Outcome(NamedTuple):
    """What became of one call."""

    status: str
    """One of "right", "refused", "wrong"."""
    detail: str
    """The error of a refusal, or what is wrong."""
    mismatch: bool
    """Whether a `DerivativeMismatchWarning` was issued."""
    contradicted: bool = False
    """Whether a difference contradicts the answer, be it what plain autograd says too."""


def attempt(call: Callable[[str], Any], case: Case, truth: Truth) -> Outcome:
    """Judge ``call(check)``, which applies a transform to ``case`` and returns blocks.

    An error that is no `TorchjacError` comes out as it is.
    """
    forget_everything()
    try:
        got, said = _blocks(call, "first")
    except TorchjacError as refusal:
        return Outcome("refused", f"{type(refusal).__name__}: {refusal}", mismatch=False)
    mismatch = any(warning.category is DerivativeMismatchWarning for warning in said)
    if not truth.accepts(got):
        detail = f"off by {_distance(got, truth.plain):.3g} from plain autograd, {case.sample}"
        return Outcome("wrong", detail, mismatch)
    if mismatch and truth.sound and case.exact and same(_blocks(call, "never")[0], truth.plain):
        return Outcome("wrong", f"a false alarm, {case.sample}", mismatch)
    return Outcome("right", case.sample, mismatch, truth.contradicts(got))


def worst(outcomes: Sequence[Outcome]) -> str:
    """The status that speaks for several samples of an operator."""
    statuses = [outcome.status for outcome in outcomes]
    return next((s for s in ("wrong", "refused", "right") if s in statuses), "too large")


def _blocks(call: Callable[[str], Any], check: str) -> tuple[Blocks, list[warnings.WarningMessage]]:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tree = call(check)
    return [list(row) for row in tree if row is not None], said


def _distance(got: Blocks, expected: Blocks) -> float:
    pairs = [pair for rows in zip(got, expected, strict=True) for pair in zip(*rows, strict=True)]
    return max([float((a - b).abs().max()) for a, b in pairs if a.numel()], default=0.0)
