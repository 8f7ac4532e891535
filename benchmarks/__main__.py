"""The command: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from .memory import cap_memory
from .plot import save_plot
from .race import FULL, OURS, QUICK, Outcome, race
from .report import header, markdown, readable
from .workloads import WORKLOADS, Workload

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    cap_memory()
    warnings.simplefilter("ignore")  # PyTorch's about the peers; torchjac's own are reported
    outcomes = []
    for workload in chosen(options.only):
        outcome = race(workload, QUICK if options.quick else FULL)
        print(summary(outcome), flush=True)
        outcomes.append(outcome)

    options.out.mkdir(parents=True, exist_ok=True)
    report = markdown(outcomes, options.threads)
    (options.out / "dense.md").write_text(report, encoding="utf-8")
    save_plot(outcomes, options.out / "dense.png", header(options.threads))
    print(f"\n{report}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="workloads with this in the name")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    return parser.parse_args()


def chosen(names: list[str] | None) -> list[Workload]:
    """Return the workloads that any of ``names`` occurs in; all of them without names."""
    if names is None:
        return WORKLOADS
    found = [w for w in WORKLOADS if any(name.lower() in w.name.lower() for name in names)]
    if not found:
        known = ", ".join(repr(workload.name) for workload in WORKLOADS)
        raise SystemExit(f"--only {' '.join(names)}: no such workload; there are {known}")
    return found


def summary(outcome: Outcome) -> str:
    """Return one line to watch a run by."""
    name = f"{outcome.workload.name:30}"
    best = outcome.best_peer()
    if best is None:
        return f"{name} {outcome.raised.get(OURS, 'no peer gave the same answer')}"
    return f"{name} {readable(outcome.seconds[OURS]):>8}, {outcome.ratios[best]:.2f} of {best}"


if __name__ == "__main__":
    main()
