"""Columns by going backward twice over PyTorch's own database, unchecked, of what is elementary."""

from __future__ import annotations

from typing import Any

import pytest

import torchjac
from tests.ops.database import OPS, Case
from tests.ops.test_jac import samples
from tests.ops.trial import attempt
from torchjac.evaluation.transposed import Transposed
from torchjac.planning import problem
from torchjac.planning.ways import Way

# What is not elementary goes the trusted way, whatever that gives.
WAYS = (Way("forward", True, transposed=True), Way("reverse", False))


def _columns(case: Case) -> Any:
    return torchjac.jac(case.func, case.argnums, check="never")(*case.primals)


@pytest.mark.parametrize("name", OPS)
def test_equals_plain_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "jacobian_ways", lambda *args, **options: WAYS)
    outcomes = [
        attempt(lambda check, case=case: _columns(case), case, truth)
        for case, truth in samples(name)
    ]
    failures = [outcome.detail for outcome in outcomes if outcome.status != "right"]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    "name", ["add", "mul", "pow", "tanh", "softmax", "where", "mm", "nn.functional.linear"]
)
def test_these_are_elementary(name: str) -> None:
    for case, _ in samples(name):

        def func(leaves: Any, case: Case = case) -> Any:
            return tuple(case.func(*leaves)), ()

        Transposed(func, case.primals)
