"""The public face of `torchjac.testing`, and what it costs to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import torchjac.testing

WITHOUT_HYPOTHESIS = """
import sys
sys.modules["hypothesis"] = None
import torchjac.testing
torchjac.testing.check_jac, torchjac.testing.finite_difference_jac
try:
    torchjac.testing.strategies
except ImportError as error:
    print(error)
try:
    from torchjac.testing import strategies
except ImportError as error:
    print(error)
"""


def test_works_without_hypothesis_and_says_what_strategies_need() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HYPOTHESIS], capture_output=True, text=True, check=True
    )
    message = (
        "torchjac.testing.strategies needs Hypothesis, which is not installed: "
        "pip install 'torchjac[testing]'\n"
    )
    assert done.stdout == 2 * message


def test_importing_it_does_not_import_hypothesis() -> None:
    program = "import sys, torchjac.testing; sys.exit('hypothesis' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_is_there() -> None:
    for name in torchjac.testing.__all__:
        assert getattr(torchjac.testing, name).__doc__


def test_other_names_are_not() -> None:
    with pytest.raises(
        AttributeError, match=r"module 'torchjac\.testing' has no attribute 'check_grad'"
    ):
        torchjac.testing.check_grad  # noqa: B018
