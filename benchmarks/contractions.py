"""Laplacians and divergences against the trace of the matrix: ``python -m benchmarks.contractions``.

One process and one thread, entrants in turn, for the times; a process for each measurement for the
peaks of memory, since a peak cannot be taken back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .memory import MEGABYTE, RESULTS, cap_memory, status

if TYPE_CHECKING:  # torch is for the child processes: the parent stays small
    from torch import Tensor

TIMEOUT = 400.0


@dataclass(frozen=True)
class Case:
    """A tanh network, a batch of points, and what is wanted at every one of them."""

    name: str
    what: str
    sizes: tuple[int, ...]
    batch: int
    rounds: int
    train: bool = False
    """Whether the gradients of a loss by the parameters are part of it."""


CASES = [
    Case("small network", "laplacian", (50, 128, 128, 1), 64, 31),
    Case("small network, gradients of a loss", "laplacian", (50, 128, 128, 1), 64, 15, train=True),
    Case("large network", "laplacian", (50, 768, 768, 512, 512, 1), 910, 3),
    Case("PINN", "laplacian", (2, 50, 50, 50, 50, 1), 4096, 9),
    Case("flow", "divergence", (64, 128, 128, 64), 256, 9),
]
ENTRANTS = ("torchjac", "vmap of the matrix", "vmap of products")


def entrant(name: str, case: Case) -> tuple[Callable[[Tensor], Any], Tensor]:
    """What is raced, and the points; the same network and points for everybody."""
    import torch
    from torch.func import hessian, jacrev, jvp, vmap

    import torchjac

    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in zip(case.sizes, case.sizes[1:], strict=False):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.Tanh()]
    network = torch.nn.Sequential(*layers[:-1]).requires_grad_(case.train)
    points = torch.randn(case.batch, case.sizes[0])
    scalar = case.what == "laplacian"

    def func(x: Tensor) -> Tensor:
        return network(x).squeeze(-1) if scalar else network(x)

    def products(x: Tensor) -> Tensor:
        def along(v: Tensor) -> Tensor:
            inner = torch.func.grad(func) if scalar else func
            return v @ jvp(inner, (x,), (v,))[1]

        return vmap(along)(torch.eye(len(x))).sum()

    matrix = hessian(func) if scalar else jacrev(func)
    compute = {
        "torchjac": getattr(torchjac, case.what)(func),
        "vmap of the matrix": lambda x: matrix(x).diagonal().sum(),
        "vmap of products": products,
    }[name]

    def values(x: Tensor) -> Any:
        found = vmap(compute)(x)
        if not case.train:
            return found
        parameters = list(network.parameters())[:-1]  # the last bias has no part in it
        return torch.autograd.grad(found.square().mean(), parameters)

    return values, points


def measure_times(case: Case) -> dict[str, float]:
    """The median seconds of each entrant, in turn, once they agree."""
    import torch

    entrants = {name: entrant(name, case) for name in ENTRANTS}
    answers = [compute(points) for compute, points in entrants.values()]
    for other in answers[1:]:
        torch.testing.assert_close(answers[0], other, rtol=1e-3, atol=1e-4)
    taken: dict[str, list[float]] = {name: [] for name in ENTRANTS}
    for _ in range(case.rounds):
        for name, (compute, points) in entrants.items():
            start = time.perf_counter()
            compute(points)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def measure_peak(case: Case, name: str) -> float:
    """The peak of one call above what was in use before, in bytes."""
    compute, points = entrant(name, case)
    compute(points[:2])  # libraries, and what a first call does
    before = status("VmRSS")
    compute(points)
    return status("VmHWM") - before


def child(index: int, name: str | None) -> None:
    import torch

    torch.set_num_threads(1)
    cap_memory()
    case = CASES[index]
    with torch.set_grad_enabled(case.train):
        print(json.dumps(measure_times(case) if name is None else measure_peak(case, name)))


def in_child(*arguments: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.contractions", "--child", *arguments]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def row(index: int, case: Case) -> str:
    """A line of the table."""
    times = in_child(str(index))
    peaks = {name: in_child(str(index), name) for name in ENTRANTS}
    ours = [f"{1e3 * times['torchjac']:.3g} ms", f"{peaks['torchjac'] / MEGABYTE:.0f} MB"]
    ratios = []
    for name in ENTRANTS[1:]:
        ratios.append(f"{times['torchjac'] / times[name]:.2f}")
        ratios.append(f"{peaks['torchjac'] / peaks[name]:.2f}")
    sizes = "-".join(map(str, case.sizes))
    return f"| {' | '.join([case.name, case.what, sizes, str(case.batch), *ours, *ratios])} |"


HEAD = """\
# Laplacians and divergences

Of tanh networks at every point of a batch, in float32 on one thread: `vmap(torchjac.laplacian(f))(points)`
against `vmap` of the trace of `torch.func.hessian` (or `jacrev`), and against `vmap` of the sum of
vmapped products with unit vectors, `jvp` over `grad` (or `jvp`). Times are medians of turns in one process;
a ratio below 1 is in torchjac's favour. Memory is the peak of one call above what was in use before, each in
a process of its own.

| case | what | network | points | torchjac | peak | time to matrix | peak | time to products | peak |
| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: |"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contractions", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(int(options.child[0]), options.child[1] if len(options.child) > 1 else None)
        return

    lines = [HEAD]
    for index, case in enumerate(CASES):
        lines.append(row(index, case))
        print(lines[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "contractions.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
