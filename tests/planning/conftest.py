"""The file that a plan is saved in."""

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.plan"
