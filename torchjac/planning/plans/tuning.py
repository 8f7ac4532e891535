"""Measuring the ways that a plan considers, on the arguments at hand."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from torchjac.evaluation.surroundings import Draw, is_out_of_memory
from torchjac.planning.attempt import attempt
from torchjac.planning.memory import Record
from torchjac.planning.plans.candidates import Candidate, inputs_of
from torchjac.planning.plans.fields import as_dense
from torchjac.planning.problem import Problem

__all__ = ["measured", "race"]

_ROUNDS, _BURST = 9, 2e-3
# A way that takes so many times as long as the best at its best of some tries is out of the race.
_TRIES, _HOPELESS = 4, 3


def measured(problem: Problem, record: Record, considered: Sequence[Candidate]) -> list[Candidate]:
    """Time the candidates in turn: those with a program by it, the others as without a plan."""
    draw, record = Draw(problem.primals), record.apart()
    with draw.aside(), torch.no_grad():
        runs = [_run(problem, record, candidate) for candidate in considered]
        seconds = race(runs, [candidate.program is not None for candidate in considered])
    return [
        dataclasses.replace(candidate, seconds=taken)
        for candidate, taken in zip(considered, seconds, strict=True)
    ]


def race(runs: Sequence[Callable[[], object]], may_fail: Sequence[bool]) -> list[float | None]:
    """The seconds that each takes, or None where it was refused.

    Args:
        runs: what is timed.
        may_fail: whether running out of memory is a refusal like others.
    """
    turns: dict[int, list[float]] = {}
    for at, run in enumerate(runs):
        try:
            run()
            turns[at] = [min(_seconds(run) for _ in range(_TRIES))]
        except Exception as error:  # refused, for whatever reason
            if is_out_of_memory(error) and not may_fail[at]:
                raise
    best = min((first for (first,) in turns.values()), default=0.0)
    racing = [at for at, (first,) in turns.items() if first <= _HOPELESS * best]
    for _ in range(_ROUNDS):
        for at in racing:
            turns[at].append(_seconds(runs[at]))
    # The least of all turns: whatever else the machine did can only have made it slower.
    return [min(turns[at]) if at in turns else None for at in range(len(runs))]


def _run(problem: Problem, record: Record, candidate: Candidate) -> Callable[[], object]:
    program = candidate.program
    if program is None:
        return lambda: attempt(problem, candidate.way, record)
    tensors = as_dense(inputs_of(problem))
    return lambda: program(*tensors)


def _seconds(run: Callable[[], object]) -> float:
    count, start = 0, time.perf_counter()
    while True:
        run()
        count, elapsed = count + 1, time.perf_counter() - start
        if elapsed > _BURST:
            return elapsed / count
