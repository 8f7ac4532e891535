"""The examples run, and print what they promise."""

import importlib.util
import types
from pathlib import Path

import pytest

from tests.sparse import DETECTS

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not DETECTS, reason="detection needs torch 2.1")
def test_brusselator(capsys: pytest.CaptureFixture[str]) -> None:
    load("brusselator").main(size=6)
    printed = capsys.readouterr().out
    assert "SparsityPattern(72×72, nnz=432" in printed
    steps = [
        line.split()[-3]
        for line in printed.splitlines()
        if "SciPy's" in line or "torchjac," in line
    ]
    assert len(steps) == 3
    assert len(set(steps)) <= 2, (
        "an exact Jacobian takes the steps that differences take, or nearly"
    )


def test_pinn_poisson(capsys: pytest.CaptureFixture[str]) -> None:
    load("pinn_poisson").main(steps=60)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-2]]
    assert float(rows[-1][2]) < float(rows[0][2]) / 5, "the error falls"


def test_flow_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    load("flow_divergence").main(dimensions=16)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["exact", *["hutchinson", "hutch++"] * 3]
    exact = float(rows[0][3])
    for row in rows[3:]:
        assert abs(float(row[3]) - exact) <= 4 * float(row[4]) + 1e-3
