"""Counts over all operators: printed after the run, and held against what is pinned."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.ops.known import COUNTS

_STATUSES = ("right", "refused", "wrong")
_found: dict[str, Counter[str]] = {}
_MISSED = pytest.StashKey[dict[str, tuple[int, int]]]()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count what the tests recorded; under pytest-xdist this runs where the reports come in."""
    if report.when == "call":
        for name, status in report.user_properties:
            _found.setdefault(name, Counter())[str(status)] += 1


def _right() -> dict[str, int]:
    return {name: counts["right"] for name, counts in sorted(_found.items())}


def _is_complete(config: pytest.Config) -> bool:
    """Whether all operators ran, so that the counts mean something."""
    return not (config.option.keyword or config.option.maxfail or ".py" in str(config.args))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    expected = COUNTS.get(torch.__version__.split("+")[0])
    is_worker = hasattr(session.config, "workerinput")
    if _found and expected and not is_worker and _is_complete(session.config):
        session.config.stash[_MISSED] = missed = {
            name: (count, _right().get(name, 0))
            for name, count in expected.items()
            if _right().get(name, 0) != count
        }
        if missed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _found:
        return
    terminalreporter.section("operators")
    for name, counts in sorted(_found.items()):
        numbers = ", ".join(f"{counts[status]} {status}" for status in _STATUSES)
        terminalreporter.write_line(f"{name}: {numbers} of {counts.total()} usable")
    for name, (wanted, got) in terminalreporter.config.stash.get(_MISSED, {}).items():
        terminalreporter.write_line(f"{name}: {got} right, but {wanted} are pinned", red=True)
