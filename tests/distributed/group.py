"""Several processes that run the same scenarios, named on the command line.

One process imports PyTorch and forks the others, which takes a fifth of the time of as many imports.
"""

import datetime
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 60  # seconds that the processes wait for each other; machines are busy
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork has no others


@dataclass
class Ended:
    """How one process ended."""

    code: int
    printed: str
    errors: str


def run_group(scenarios: str, size: int, folder: Path, *, seconds: float = 300) -> list[Ended]:
    """Run scenarios, one after another, in so many processes, and kill them if they take too long."""
    launcher = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.group", scenarios, str(size), str(folder)],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        start_new_session=True,
    )
    try:
        launcher.wait(timeout=seconds)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)  # with those that it forked
    return [
        Ended(int(_text(folder, rank, "code")), *(_text(folder, rank, end) for end in ENDS))
        for rank in range(size)
    ]


ENDS = ("out", "err")


def _text(folder: Path, rank: int, end: str) -> str:
    return (folder / f"{rank}.{end}").read_text()


def launch(names: str, size: int, folder: Path) -> None:
    """Fork a group, and write down how its processes ended."""
    from tests.distributed import faults, scenarios

    known = {**vars(scenarios), **vars(faults)}
    work = [(name, known[name]) for name in names.split()]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run, args=(work, rank, size, folder)) for rank in range(size)]
    for process in ranks:
        process.start()
    for rank, process in enumerate(ranks):
        process.join()
        (folder / f"{rank}.code").write_text(str(process.exitcode))


def run(work: list, rank: int, size: int, folder: Path) -> None:
    """Be one rank."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    for stream, end in zip((sys.stdout, sys.stderr), ENDS, strict=True):
        os.dup2(os.open(folder / f"{rank}.{end}", os.O_CREAT | os.O_WRONLY), stream.fileno())
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    mesh = init_device_mesh("cpu", (size,))
    for name, scenario in work:
        torch.manual_seed(0)
        scenario(mesh)
        print(name, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    launch(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
