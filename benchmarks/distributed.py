"""One process and two, one thread each, in turn: ``python -m benchmarks.distributed``.

Starts the processes itself. Rank 0 alone makes the plain call, then all make the divided one, round after
round; the time of a divided call is that of the slowest rank. What is on paper is computed from what was
measured: what every rank repeats, what is divided, and what is communicated.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .memory import RESULTS

if TYPE_CHECKING:  # torch is for the child processes
    from torch import Tensor

ON_PAPER = (2, 4, 8, 16, 32, 64)

INTRODUCTION = """\
Wall time, medians of interleaved rounds. *Repeated* is what every rank does whatever their number: the
evaluation of the function, for a Hessian with its gradient. *Report* is the exchange of one small report at
the end of every call, which is all that is communicated for a dense derivative or a batch; for a sparse one
the products of the colours are gathered too."""


def workloads() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    """Name to the transform, its arguments, and what is done with the mesh."""
    import torch

    import torchjac

    torch.manual_seed(0)

    def mlp(*sizes: int) -> torch.nn.Module:
        layers: list[torch.nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
        return torch.nn.Sequential(*layers[:-1]).requires_grad_(False)

    square, scalar = mlp(2048, 2048, 2048, 2048), mlp(1024, 1024, 1024, 1)
    small = mlp(64, 512, 512, 64)
    return {
        "MLP 2048 → 2048, Jacobian": (torchjac.jac, (square, torch.randn(2048)), {}),
        "MLP 1024 → 1, Hessian": (torchjac.hessian, (scalar, torch.randn(1024)), {}),
        "MLP 64 → 64, batch of 512": (
            torchjac.batched_jac,
            (small, torch.randn(512, 64)),
            {"per_sample": False},
        ),
    }


def measure(mesh: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Medians, in seconds, of every workload."""
    import torch.distributed as dist

    import torchjac
    from torchjac.foundations.ranks import Ranks

    rank, found = mesh.get_local_rank(), {}
    for name, (transform, (func, x), options) in workloads().items():
        alone = transform(func, **options)
        # A Hessian is the Jacobian of a gradient.
        repeated = torchjac.jac(func) if transform is torchjac.hessian else func
        divided = transform(func, device_mesh=mesh, **options)
        times: dict[str, list[float]] = {"one": [], "all": [], "repeated": [], "report": []}
        for _ in range(rounds + 1):
            dist.barrier()
            if rank == 0:
                times["one"].append(timed(lambda: alone(x)))  # noqa: B023
            dist.barrier()
            times["all"].append(timed(lambda: divided(x)))  # noqa: B023
            dist.barrier()
            times["repeated"].append(timed(lambda: repeated(x)))  # noqa: B023
            dist.barrier()
            times["report"].append(timed(lambda: Ranks("bench", mesh).meet("done")))
        times["all"] = slow(times["all"], mesh)
        found[name] = {
            key: statistics.median(values[1:]) for key, values in times.items() if values
        }
    return found


def slow(times: list[float], mesh: Any) -> list[float]:
    """Round by round, the time of the slowest rank."""
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(times, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=mesh.get_group())
    return tensor.tolist()


def timed(call: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def child(rank: int, size: int, store: str, rounds: int) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(minutes=5),
    )
    found = measure(init_device_mesh("cpu", (size,)), rounds)
    if rank == 0:
        from .report import header

        Path(store + ".out").write_text(report(found, size, header(1)))
    dist.destroy_process_group()


def report(found: dict[str, dict[str, float]], size: int, line: str) -> str:
    rows = [
        "| workload | one rank | two ranks | ratio | repeated | report |",
        "| --- " + "| --: " * 5 + "|",
    ]
    paper = [
        "| workload | " + " | ".join(map(str, ON_PAPER)) + " |",
        "| --- " + "| --: " * len(ON_PAPER) + "|",
    ]
    for name, t in found.items():
        one = t["one"]
        rows.append(
            f"| {name} | {one * 1e3:.1f} ms | {t['all'] * 1e3:.1f} ms | {t['all'] / one:.2f} "
            f"| {t['repeated'] * 1e3:.2f} ms | {t['report'] * 1e3:.2f} ms |"
        )
        repeated = 0 if "batch" in name else t["repeated"]
        cells = [
            (repeated + (one - repeated) / ranks + t["report"] * max(ranks / size, 1) ** 0.5) / one
            for ranks in ON_PAPER
        ]
        paper.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(
        [
            "# Divided over processes",
            "",
            line,
            "",
            INTRODUCTION,
            "",
            *rows,
            "",
            "## On paper",
            "",
            "The time of R ranks to that of one: repeated + (one − repeated)/R + report·√(R/2), where the",
            "last is a guess at how an all-gather of small messages grows.",
            "",
            *paper,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--child", nargs=3)
    given = parser.parse_args()
    if given.child:
        rank, size, store = given.child
        child(int(rank), int(size), store, given.rounds)
        return
    with tempfile.TemporaryDirectory() as room:
        store = f"{room}/store"
        command = [sys.executable, "-m", "benchmarks.distributed", "--rounds", str(given.rounds)]
        processes = [
            subprocess.Popen([*command, "--child", str(rank), "2", store]) for rank in range(2)
        ]
        if any(process.wait() for process in processes):
            sys.exit("a process failed")
        text = Path(store + ".out").read_text()
    (RESULTS / "distributed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
