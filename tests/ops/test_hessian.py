"""`hessian` over PyTorch's own database of operators, each made scalar, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import torchjac
from tests.ops.database import OPS, Case, Unusable, cases, scalar
from tests.ops.known import PLAIN_DOUBLE_BACKWARD_IS_WRONG
from tests.ops.oracle import Truth, hessian_truth
from tests.ops.trial import Outcome, attempt, worst

# The modes, and up to how many inputs each is tried; nested vmaps take n² evaluations.
MODES = {
    "auto": 130,
    "forward-over-reverse": 130,
    "reverse-over-reverse": 130,
    "reverse-over-forward": 25,
    "forward-over-forward": 25,
}


@pytest.mark.parametrize("name", OPS)
def test_hessian_is_never_silently_wrong(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    known = samples(name)
    sound = all(truth.sound for _, truth in known)
    in_table = name in PLAIN_DOUBLE_BACKWARD_IS_WRONG
    assert sound == (not in_table), "the table of known errors is out of date"
    failures = []
    for mode, largest in MODES.items():
        outcomes = [_tried(case, truth, mode) for case, truth in known if case.size <= largest]
        record_property(f"hessian {mode}", worst(outcomes))
        for outcome in outcomes:
            if outcome.status == "wrong" or (outcome.status == "refused" and mode == "auto"):
                failures.append(f"{mode}: {outcome.status}, {outcome.detail}")
            elif outcome.contradicted and not outcome.mismatch:
                failures.append(f"{mode}: silently as wrong as plain autograd, {outcome.detail}")
    assert not failures, "\n".join(failures)


def samples(name: str) -> list[tuple[Case, Truth]]:
    """The usable samples of an operator with what is known of their Hessians."""
    found, reason = [], ""
    try:
        for case in cases(OPS[name]):
            try:
                summed = scalar(case)
                found.append((summed, hessian_truth(summed)))
            except Unusable as unusable:
                reason = str(unusable)
    except Unusable as unusable:
        reason = str(unusable)
    if not found:
        pytest.skip(f"{name} {reason}")
    return found


def _tried(case: Case, truth: Truth, mode: str) -> Outcome:
    def call(check: str) -> Any:
        transform = torchjac.hessian(case.func, case.argnums, mode=mode, check=check)
        (rows,) = transform(*case.primals)
        return rows

    return attempt(call, case, truth)
