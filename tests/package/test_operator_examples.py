"""The examples with operators run, and show what they promise."""

import pytest

from tests.package.test_examples import load
from tests.sparse import DETECTS


def test_newton_krylov(capsys: pytest.CaptureFixture[str]) -> None:
    load("newton_krylov").main(size=16)
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()[1:]]
    steps = [row for row in rows if len(row) == 4]
    assert len(steps) > 3
    assert all(int(evaluations) == int(step) + 1 for step, _, _, evaluations in steps)
    assert float(printed.split()[-1]) == pytest.approx(2, abs=0.1)


@pytest.mark.skipif(not DETECTS, reason="detection needs torch 2.1")
def test_least_squares(capsys: pytest.CaptureFixture[str]) -> None:
    load("least_squares").main(size=20)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["dense", "sparse", "operator"]
    assert all(float(row[3]) < 1e-6 for row in rows)
    assert rows[1][1] == rows[2][1], "the same matrix in another form takes the same steps"


def test_newton_cg(capsys: pytest.CaptureFixture[str]) -> None:
    load("newton_cg").main(size=40)
    printed = capsys.readouterr().out
    assert "Newton-CG" in printed
    assert "trust-constr" in printed
    line = next(line for line in printed.splitlines() if "products, at" in line)
    products, points, evaluations = [int(word) for word in line.split() if word.isdigit()]
    assert products > points == evaluations


@pytest.mark.skipif(not DETECTS, reason="detection needs torch 2.1")
def test_trust_constr(capsys: pytest.CaptureFixture[str]) -> None:
    load("trust_constr").main(size=6)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[:2] for row in rows] == [
        [method, hessian]
        for method in ("trust-constr", "Newton-CG")
        for hessian in ("exact", "differences")
    ]
    gradients = [int(row[3]) for row in rows]
    assert gradients[0] < gradients[1]
    assert gradients[2] < gradients[3]


def test_gauss_newton(capsys: pytest.CaptureFixture[str]) -> None:
    load("gauss_newton").main(size=16)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["LSQR", "LSMR"]
    assert all(int(evaluations) == int(steps) + 1 for _, steps, _, evaluations, *_ in rows)
    assert rows[0][5] == rows[1][5], "both find the same image"
