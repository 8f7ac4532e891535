"""The examples run, and print what they promise."""

import importlib.util
import re
import types
from pathlib import Path

import pytest

from tests.sparse import DETECTS

EXAMPLES = Path(__file__).parents[2] / "examples"
needs_detection = pytest.mark.skipif(not DETECTS, reason="detection needs torch 2.1")


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(printed: str, first: str) -> list[list[float]]:
    """The numbers of the rows of a table that begin with a word, which may itself have spaces."""
    found = [
        [float(word) for word in line[len(first) :].split() if is_number(word)]
        for line in printed.splitlines()
        if line.startswith(first)
    ]
    assert found, (first, printed)
    return found


def is_number(word: str) -> bool:
    return re.fullmatch(r"-?[\d.]+(e[-+]\d+)?", word) is not None


@needs_detection
def test_brusselator(capsys: pytest.CaptureFixture[str]) -> None:
    load("brusselator").main(size=6)
    printed = capsys.readouterr().out
    assert "SparsityPattern(72×72, nnz=432" in printed
    exact, grouped, dense = [
        numbers(printed, name)[0]
        for name in (
            "torchjac, sparse",
            "SciPy's differences, with the pattern",
            "SciPy's differences, dense",
        )
    ]
    assert grouped[0] == dense[0] == pytest.approx(exact[0], abs=2), "the steps are the same"
    assert exact[2] < grouped[2] < dense[2], "and fewer evaluations"


@needs_detection
def test_stiff_ode(capsys: pytest.CaptureFixture[str]) -> None:
    load("stiff_ode").main(cells=8)
    printed = capsys.readouterr().out
    for method in ("BDF", "Radau"):
        # Of both problems: steps, Jacobians, evaluations, error, seconds.
        differences = numbers(printed, f"{method:<8}differences  ")
        exact = numbers(printed, f"{method:<8}torchjac  ")
        for ours, theirs in zip(exact, differences, strict=True):
            assert ours[0] == pytest.approx(theirs[0], rel=0.05)
            assert ours[2] < theirs[2]


def test_pinn_poisson(capsys: pytest.CaptureFixture[str]) -> None:
    load("pinn_poisson").main(steps=60)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-2]]
    assert float(rows[-1][2]) < float(rows[0][2]) / 5, "the error falls"


def test_flow_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    load("flow_divergence").main(dimensions=16)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["exact", *["hutchinson", "hutch++"] * 3]
    exact = float(rows[0][2])
    for row in rows[3:]:
        assert abs(float(row[2]) - exact) <= 4 * float(row[3]) + 1e-3


# Each of these says in its own asserts what has to hold; here it runs at a small size.


def test_levenberg_marquardt(capsys: pytest.CaptureFixture[str]) -> None:
    load("levenberg_marquardt").main(steps=20)
    printed = capsys.readouterr().out
    assert "337 parameters, 256 residuals" in printed
    ours, theirs = (numbers(printed, name) for name in ("Levenberg-Marquardt", "Adam"))
    assert [steps for steps, *_ in ours] == [2, 6, 20]
    assert [steps for steps, *_ in theirs] == [100, 300, 1000]
    assert ours[-1][1] < theirs[-1][1] / 10


def test_flow_logdet(capsys: pytest.CaptureFixture[str]) -> None:
    load("flow_logdet").main(steps=60)
    printed = capsys.readouterr().out
    losses = [float(line.split()[1]) for line in printed.splitlines()[4:-2]]
    assert len(losses) == 7
    assert losses[-1] < losses[0] - 0.5
    assert printed.count("sums to ") == 2


def test_last_layer_laplace(capsys: pytest.CaptureFixture[str]) -> None:
    load("last_layer_laplace").main(steps=150)
    printed = capsys.readouterr().out
    (data,), (far,) = numbers(printed, "at the data"), numbers(printed, "at radius 64")
    assert far[0] > 10 * data[0]
    assert far[1] - far[2] > data[1] - data[2] > 0, "the further, the more it is doubted"


def test_ntk(capsys: pytest.CaptureFixture[str]) -> None:
    load("ntk").main(width=512)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["8", "32", "128", "512"]
    distances = [float(row[-1]) for row in rows]
    assert distances == sorted(distances, reverse=True), "the wider, the closer to its kernel"


def test_inverse_kinematics(capsys: pytest.CaptureFixture[str]) -> None:
    load("inverse_kinematics").main(count=10)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:-2]]
    arrived = [int(row[2]) for row in rows]
    assert arrived == sorted(arrived)
    assert int(rows[-1][3]) == 10


def test_conv_jacobian(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("agg")
    load("conv_jacobian").main(str(tmp_path / "picture.png"), steps=80, tests=60)
    assert "13 pixels wide, 13 by kernels and strides" in capsys.readouterr().out
    assert (tmp_path / "picture.png").stat().st_size > 10_000
