"""Several processes that run the same scenarios, named on the command line."""

import datetime
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 60  # seconds that the processes wait for each other; machines are busy


@dataclass
class Ended:
    """How one process ended."""

    code: int
    printed: str
    errors: str


def run_group(
    scenarios: str, size: int, tmp_path: Path, *, seconds: float = 300, timeout: float = TIMEOUT
) -> list[Ended]:
    """Run scenarios, one after another, in so many processes, and kill them if they take too long."""
    store = tmp_path / "store"
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.distributed.group", scenarios),
                *(str(rank), str(size), str(store), str(timeout)),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def main(names: str, rank: int, size: int, store: str, timeout: float) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from tests.distributed import scenarios

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
    )
    mesh = init_device_mesh("cpu", (size,))
    for name in names.split():
        torch.manual_seed(0)
        getattr(scenarios, name)(mesh)
        print(name, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    words, number, count, path, wait = sys.argv[1:]
    main(words, int(number), int(count), path, float(wait))
