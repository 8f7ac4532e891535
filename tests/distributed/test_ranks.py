"""device_mesh=: the same numbers from any number of processes, and nobody hangs."""

import multiprocessing
from pathlib import Path

import pytest
import torch

dtensor = pytest.importorskip("torch.distributed.tensor")
if not torch.distributed.is_available() or not hasattr(dtensor, "DTensor"):
    pytest.skip("results are DTensors, which need torch 2.5", allow_module_level=True)
if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("groups are forked", allow_module_level=True)

from tests.distributed.group import run_group  # noqa: E402

NUMBERS = "programs placements refusals alone batches colors half_precision inference blocks"
FAULTS = "raising exceptions mismatched alike held_back silent"


@pytest.mark.parametrize(
    ("size", "scenarios"),
    [
        (2, f"{NUMBERS} {FAULTS} example"),
        (4, f"{NUMBERS} raising parts_of_a_world"),
    ],
)
def test_ranks_do_what_one_process_does(size: int, scenarios: str, tmp_path: Path) -> None:
    for rank, ended in enumerate(run_group(scenarios, size, tmp_path)):
        assert ended.code == 0, f"rank {rank}, after {ended.printed.split()}: {ended.errors}"
        assert ended.printed.split() == scenarios.split()


def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    one, last = run_group("killed", 2, tmp_path, seconds=60)
    assert last.code == 9
    assert one.printed == "killed\n", one.errors
