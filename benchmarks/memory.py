"""Peak memory of large Jacobians: ``python -m benchmarks.memory``.

Every measurement is a process of its own, since a peak cannot be taken back. torchjac is to finish
within six times the result plus 512 MB, all by itself (``chunk_size="auto"``); what
`torch.func.jacrev` needs for the same stands beside it, or why it did not get there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is for the child processes: the parent stays small
    from .workloads import Problem

RESULTS = Path(__file__).parent / "results"
MEGABYTE = 1 << 20
TIMEOUT = 180.0
PEERS = ("torchjac", "jacrev")


@dataclass(frozen=True)
class Case:
    """A Jacobian whose intermediates, all rows at once, are many times its own size."""

    name: str
    outputs: int
    inputs: int
    build: Callable[[], Problem]
    grad_mode: bool = False

    @property
    def result(self) -> int:
        """Bytes of the float32 Jacobian."""
        return 4 * self.outputs * self.inputs

    @property
    def bound(self) -> int:
        """Bytes that may be used on the way to it, the result included."""
        return 6 * self.result + 512 * MEGABYTE


def conv_case(side: int, channels: int, *, grad_mode: bool) -> Case:
    def build() -> Problem:
        from .workloads import conv_same_size

        return conv_same_size(channels, side)

    name = f"conv {side}×{side}, {channels} channels, " + ("grad mode" if grad_mode else "no_grad")
    return Case(name, side**2, side**2, build, grad_mode)


def rbf_case(outputs: int, inputs: int) -> Case:
    def build() -> Problem:
        from .workloads import rbf_residuals

        return rbf_residuals(outputs, inputs)

    return Case("RBF residuals", outputs, inputs, build)


CASES = [
    conv_case(48, 32, grad_mode=False),
    conv_case(48, 32, grad_mode=True),
    rbf_case(2500, 301),
    rbf_case(10000, 1001),
]


# --- in the child: one Jacobian, one peak --------------------------------------------------------


def measure(case: Case, peer: str) -> dict[str, Any]:
    """Compute one Jacobian and return its peak above the memory that was in use before."""
    import torch
    from torch.func import jacrev

    import torchjac

    cap_memory()
    torch.manual_seed(0)
    func, args = case.build()
    derivative = torchjac.jac if peer == "torchjac" else jacrev
    func(*args)  # libraries, thread pools and caches are no part of what is measured
    before, start = status("VmRSS"), time.perf_counter()
    with torch.set_grad_enabled(case.grad_mode):
        jac = derivative(func)(*args)
    seconds = time.perf_counter() - start
    assert jac.numel() == case.outputs * case.inputs
    return {"peak": status("VmHWM") - before, "seconds": seconds}


def cap_memory(share: float = 0.7) -> None:
    """Make allocations beyond a share of the free memory fail, not bring the machine down."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = 1024 * int(meminfo["MemAvailable"].split()[0])
    limit = status("VmSize") + int(share * free)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def status(field: str) -> int:
    """Return one of the kernel's counts for this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


# --- in the parent: the table --------------------------------------------------------------------


def run_child(index: int, peer: str) -> dict[str, Any]:
    """Measure in a process of its own; return what it measured, or ``{"failed": reason}``."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(index), peer]
    root = Path(__file__).parent.parent
    try:
        child = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {TIMEOUT:.0f} s"}
    if child.returncode < 0:
        return {"failed": f"killed by signal {-child.returncode}"}
    if "allocate memory" in child.stderr:
        return {"failed": "out of memory"}
    if child.returncode > 0:
        lines = child.stderr.strip().splitlines() or ["no message"]
        return {"failed": lines[-1][:120]}
    measured: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return measured


def row(case: Case, measured: dict[str, dict[str, Any]]) -> str:
    """Return a line of the table."""
    cells = [case.name, str(case.inputs), str(case.outputs), megabytes(case.result)]
    mine = measured["torchjac"]
    within = "yes" if mine.get("peak", float("inf")) <= case.bound else "**no**"
    cells += [told(mine), megabytes(case.bound), within, told(measured["jacrev"])]
    return "| " + " | ".join(cells) + " |"


def told(measured: dict[str, Any]) -> str:
    if "failed" in measured:
        return str(measured["failed"])
    return f"{megabytes(measured['peak'])}, {measured['seconds']:.1f} s"


def megabytes(size: int) -> str:
    return f"{size / MEGABYTE:.0f} MB"


HEAD = """\
# Peak memory of large Jacobians

The peak resident memory above what was in use before the call, each in a process of its own. The
bound is six times the result plus 512 MB; torchjac runs with `chunk_size="auto"`. In grad mode the
Jacobian of a module can be differentiated by its parameters, torchjac's as well as `jacrev`'s, which
holds the graph of every row for that; torchjac would run the passes again.

| workload | inputs | outputs | result | torchjac | bound | within | jacrev |
| --- | --: | --: | --: | --: | --: | --- | --- |"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "PEER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        index, peer = options.child
        print(json.dumps(measure(CASES[int(index)], peer)))
        return

    lines = [HEAD]
    for index, case in enumerate(CASES):
        lines.append(row(case, {peer: run_child(index, peer) for peer in PEERS}))
        print(lines[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
