"""`jac` over PyTorch's own database of operators, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import torchjac
from tests.ops.database import OPS, Case, Unusable, cases
from tests.ops.known import PLAIN_AUTOGRAD_IS_WRONG
from tests.ops.oracle import Truth, jac_truth
from tests.ops.trial import Outcome, attempt, worst

# Mode, chunk size, and up to how many inputs it is tried.
VARIANTS: tuple[tuple[str, Any, int], ...] = (
    ("auto", "auto", 450),
    ("forward", "auto", 450),
    ("reverse", "auto", 450),
    ("auto", 1, 80),
    ("forward", 1, 80),
    ("reverse", 2, 80),
)


@pytest.mark.parametrize("name", OPS)
def test_jac_is_never_silently_wrong(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    known = samples(name)
    sound = all(truth.sound for _, truth in known)
    assert sound == (name not in PLAIN_AUTOGRAD_IS_WRONG), (
        "the table of known errors is out of date"
    )
    failures = []
    for mode, chunk_size, largest in VARIANTS:
        outcomes = [_tried(*one, mode, chunk_size) for one in known if one[0].size <= largest]
        if chunk_size == "auto":
            record_property(f"jac {mode}", worst(outcomes))
        failures += [
            f"{mode}, chunk_size={chunk_size}: {outcome.status}, {outcome.detail}"
            for outcome in outcomes
            if outcome.status == "wrong" or (outcome.status == "refused" and mode != "forward")
        ]
    assert not failures, "\n".join(failures)


def samples(name: str) -> list[tuple[Case, Truth]]:
    """The usable samples of an operator with what is known of their Jacobians."""
    found, reason = [], ""
    try:
        for case in cases(OPS[name]):
            try:
                found.append((case, jac_truth(case)))
            except Unusable as unusable:
                reason = str(unusable)
    except Unusable as unusable:
        reason = str(unusable)
    if not found:
        pytest.skip(f"{name} {reason}")
    return found


def _tried(case: Case, truth: Truth, mode: str, chunk_size: Any) -> Outcome:
    def call(check: str) -> Any:
        transform = torchjac.jac(
            case.func, case.argnums, mode=mode, chunk_size=chunk_size, check=check
        )
        return transform(*case.primals)

    return attempt(call, case, truth)
