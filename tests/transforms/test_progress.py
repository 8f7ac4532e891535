"""progress=True: passes done, rate and time left on standard error, and nothing without."""

import builtins
import re
import sys
from typing import Any

import pytest
import torch

import torchjac
from torchjac.evaluation import progress

X = torch.linspace(-1, 1, 12, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(progress, "_EVERY", 0)


def shown(capsys: Any) -> list[str]:
    """The states of the line, one after another."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return [state.strip() for state in re.split("[\r\n]", captured.err) if state.strip()]


CALLS: dict[str, Any] = {
    "jac": lambda **o: torchjac.jac(torch.sin, **o)(X),
    "hessian": lambda **o: torchjac.hessian(lambda x: x.sin().sum(), **o)(X),
    "batched_jac": lambda **o: torchjac.batched_jac(torch.sin, **o)(X.expand(3, 12).contiguous()),
    "jac_diag": lambda **o: torchjac.jac_diag(lambda x: x.cumsum(0), **o)(X),
    "laplacian": lambda **o: torchjac.laplacian(lambda x: x.sin().prod(), **o)(X),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_pass_is_counted_once(name: str, capsys: Any) -> None:
    CALLS[name](progress=True, chunk_size=5)
    states = shown(capsys)
    assert states[0] == f"{name}: 0/12 passes (0%)"
    assert [re.search(r"(\d+)/12", state)[1] for state in states] == ["0", "5", "10", "12", "12"]
    assert re.fullmatch(rf"{name}: 12/12 passes \(100%\), \S+ per second, 0:00 left", states[-1])


@pytest.mark.parametrize("name", CALLS)
def test_silence_without(name: str, capsys: Any) -> None:
    CALLS[name](chunk_size=5)
    assert shown(capsys) == []


def test_jac_of(capsys: Any) -> None:
    x = X.clone().requires_grad_()
    torchjac.jac_of(x.sin(), x, chunk_size=6, progress=True)
    assert len(shown(capsys)) == 4


def test_an_estimate_counts_its_samples(capsys: Any) -> None:
    torchjac.divergence(lambda x: x.cumsum(0), method="hutchinson", num_samples=30, progress=True)(
        X
    )
    assert "30/30" in shown(capsys)[-1]


def test_the_line_ends_where_a_pass_raises(capsys: Any) -> None:
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: torch.Tensor) -> torch.Tensor:
            raise KeyError("mine")

    with pytest.raises(KeyError):
        torchjac.jac(lambda x: Refuses.apply(x), mode="reverse", chunk_size=1, progress=True)(X)
    assert capsys.readouterr().err.endswith("\n")


class Gone:
    """Standard error that cannot be written to."""

    def write(self, text: str) -> None:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("stream", [None, Gone()], ids=["none", "closed"])
def test_the_work_is_done_where_nobody_can_be_told(
    stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    torch.testing.assert_close(torchjac.jac(torch.sin, progress=True)(X), X.cos().diag())


def test_tqdm_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            seen.append(options)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *exception: object) -> None:
            seen.append("closed")

        def update(self, done: int) -> None:
            seen.append(done)

    tqdm = type(sys)("tqdm.auto")
    tqdm.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", type(sys)("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", tqdm)
    torchjac.jac(torch.sin, chunk_size=8, progress=True)(X)
    assert seen == [{"total": 12, "desc": "jac", "unit": "pass"}, 8, 4, "closed"]


def test_compiled_calls_are_silent(capsys: Any) -> None:
    try:
        torch.compile(torchjac.jac(torch.sin), backend="eager")(X)
    except Exception as error:  # noqa: BLE001 - see `test_compile`
        pytest.skip(f"torch.compile refuses torch.func itself: {type(error).__name__}")
    compiled = torch.compile(torchjac.jac(torch.sin, progress=True), backend="eager")
    torch.testing.assert_close(compiled(X), X.cos().diag())
    assert shown(capsys) == []


def test_nothing_is_imported_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        assert not name.startswith("tqdm")
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    torchjac.jac(torch.sin)(X)
