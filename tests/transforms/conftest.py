"""Fixtures of several files."""

import pytest

from tests.transforms.spied import Spy


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)
