"""Plans, eager and compiled, against what PyTorch and JAX compile: ``python -m benchmarks.plans``.

Every workload is one race: torchjac, its plans, `torch.func`, `torch.compile` of that, and `jax.jit` of
the same formula. The peers in JAX are left out where JAX is not installed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.func import jacrev

import torchjac

from . import plan_report
from .__main__ import RESULTS
from .memory import cap_memory
from .plan_race import Setting, race
from .plan_workloads import PLAN_WORKLOADS, tiny_twin
from .race import Effort
from .report import header
from .workloads import tiny

FULL = Effort(rounds=31, budget=0.3, least=3, burst=1.5e-3)
QUICK = Effort(rounds=11, budget=0.1, least=1, burst=1e-3)


def confine(threads: int) -> bool:
    """Leave every library as many cores as threads; return whether JAX is here to be raced.

    JAX has a pool of its own and reads its flags once, so this comes before it is imported.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    torch.set_num_threads(threads)
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    try:
        import jax
    except ImportError:
        return False
    jax.config.update("jax_enable_x64", True)  # or what is float64 in PyTorch would be float32
    return True


def warm_compilers(with_jax: bool) -> None:
    """Compile something small, so that what is imported and probed once is on nobody's account."""
    func, (x,) = tiny()
    torch.compile(jacrev(func), dynamic=False)(x)
    torchjac.jac(func).plan(x, tune=True).compile()
    if with_jax:
        import jax

        jax.jit(jax.jacrev(tiny_twin(func)))(jax.numpy.asarray(x.numpy()))


def main() -> None:
    options = parse()
    with_jax = confine(options.threads)
    cap_memory()
    warnings.simplefilter("ignore")
    effort = QUICK if options.quick else FULL
    # On one core, time of the processor: what others run on it meanwhile is on nobody's account.
    clock = time.process_time if options.threads == 1 else time.perf_counter
    setting = Setting(effort, with_jax, all_modes=not options.quick, clock=clock)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        if not options.quick:  # every compilation is a first one
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        warm_compilers(with_jax)
        for workload in PLAN_WORKLOADS:
            if options.only and not any(o.lower() in workload.name.lower() for o in options.only):
                continue
            row = race(workload, setting)
            print(plan_report.summary(row), flush=True)
            rows.append(row)
    options.out.mkdir(parents=True, exist_ok=True)
    report = plan_report.markdown(rows, options.threads, quick=options.quick)
    (options.out / "plans.md").write_text(report, encoding="utf-8")
    plan_report.save_plot(rows, options.out / "plans.png", header(options.threads))
    print(f"\n{report}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="workloads with this in the name")
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions; compiler caches are used"
    )
    parser.add_argument("--threads", type=int, default=1, help="of everybody (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
