"""device_mesh=: the same numbers from any number of processes, and nobody hangs."""

import pytest
import torch

dtensor = pytest.importorskip("torch.distributed.tensor")
if not torch.distributed.is_available() or not hasattr(dtensor, "DTensor"):
    pytest.skip("results are DTensors, which need torch 2.5", allow_module_level=True)

from tests.distributed.group import run_group  # noqa: E402


@pytest.mark.parametrize(
    ("size", "scenarios"),
    [
        (1, "placements"),
        (2, "programs placements batches colors blocks raising mismatched"),
        (3, "programs batches raising"),
        (6, "placements colors batches blocks"),
    ],
)
def test_ranks_do_what_one_process_does(size, scenarios, tmp_path):
    for rank, ended in enumerate(run_group(scenarios, size, tmp_path)):
        assert ended.code == 0, f"rank {rank}, after {ended.printed.split()}: {ended.errors}"
        assert ended.printed.split() == scenarios.split()


def test_a_rank_that_is_killed(tmp_path):
    *others, last = run_group("killed", 2, tmp_path, seconds=60)
    assert last.code == 9
    for ended in others:
        seconds, message = ended.printed.split(" ", 1)
        assert "has lost contact with the others" in message, ended.errors
        assert float(seconds) < 20


def test_a_rank_that_never_comes(tmp_path):
    one, _ = run_group("silent", 2, tmp_path, seconds=60, timeout=3)
    assert "rank 0 has lost contact with the others" in one.printed, one.errors


def test_ranks_that_make_different_calls(tmp_path):
    for ended in run_group("different_calls", 2, tmp_path, seconds=60):
        assert "the ranks disagree on" in ended.printed, ended.errors
