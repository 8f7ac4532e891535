"""One race: torchjac and every peer of a workload, verified first, then timed in turn.

Turns are short bursts, round after round and in an order that is drawn anew, so that whatever drifts on
the machine, or is left behind by one entrant for the next, hits all alike. Only ratios out of one race
mean anything.
"""

from __future__ import annotations

import functools
import gc
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .peers import PEERS, ours
from .workloads import Func, Problem, Workload

OURS = "torchjac"
LONG = 3.0  # seconds; what imports and caches add to a first call is less
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        rounds: How often each entrant has its turn.
        budget: Seconds of turns that one entrant may use up; a slower one has fewer turns.
        least: Turns that even a slow one gets.
        burst: Seconds that a turn lasts at least: quick calls are repeated within it.
    """

    rounds: int
    budget: float
    least: int
    burst: float


FULL = Effort(rounds=31, budget=3.0, least=3, burst=0.01)
QUICK = Effort(rounds=9, budget=0.5, least=1, burst=0.005)


@dataclass
class Outcome:
    """What one race found: a row of the table.

    Args:
        workload: What was raced.
        inputs: Elements of the first argument, of one sample where there is a batch.
        outputs: Elements of the output, likewise.
        mode: What torchjac chose.
        seconds: Median time of each entrant that gave the right answer.
        spread: Interquartile range of torchjac's turns over their median: how noisy the race was.
        raised: Who raised, and what.
        differs: Who gave another answer than torchjac, and how far off.
        detached: Peers whose result has no graph although torchjac's has: they do less.
        warned: What torchjac warned of.
    """

    workload: Workload
    inputs: int
    outputs: int
    mode: str = "?"
    seconds: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0
    raised: dict[str, str] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)
    detached: set[str] = field(default_factory=set)
    warned: list[str] = field(default_factory=list)

    @property
    def ratios(self) -> dict[str, float]:
        """Time of torchjac over the time of each peer that gave the right answer."""
        if OURS not in self.seconds:
            return {}
        mine = self.seconds[OURS]
        return {name: mine / theirs for name, theirs in self.seconds.items() if name != OURS}

    def best_peer(self, *, alike: bool = False) -> str | None:
        """Return the fastest peer, on request of those alone that do as much as torchjac does."""
        names = [name for name in self.ratios if not (alike and name in self.detached)]
        return max(names, key=self.ratios.__getitem__, default=None)


@dataclass
class Entrant:
    """Somebody in the race; ``cold`` is how many seconds the very first call took."""

    name: str
    run: Callable[[], Tensor]
    cold: float
    repeat: int = 1
    turns: int = 1
    seconds: list[float] = field(default_factory=list)

    def warm_up(self, effort: Effort) -> None:
        """Run until warm, and settle the length and number of turns by the time it took.

        A first call that took long was warm for the most part, and is not repeated.
        """
        calls, elapsed = (1, self.cold) if self.cold > LONG else (0, 0.0)
        start = time.perf_counter()
        while calls < 20 and elapsed < effort.budget / 10:
            self.run()
            calls, elapsed = calls + 1, time.perf_counter() - start
        call = elapsed / calls
        self.repeat = max(1, round(effort.burst / call))
        affordable = int(effort.budget / (call * self.repeat))
        self.turns = min(effort.rounds, max(effort.least, affordable))

    def take_turn(self) -> None:
        if self.repeat > 1:
            self.run()  # what the one before has left in the caches is not this one's
        start = time.perf_counter()
        for _ in range(self.repeat):
            self.run()
        self.seconds.append((time.perf_counter() - start) / self.repeat)


def race(workload: Workload, effort: Effort) -> Outcome:
    """Build the workload, verify everybody, time everybody."""
    torch.manual_seed(0)
    problem = workload.build()
    with torch.set_grad_enabled(workload.grad_mode):
        outcome = Outcome(workload, *sizes(workload, problem))
        entrants = verified_entrants(outcome, problem)
        if entrants:
            outcome.mode = observed_mode(workload, problem)
            take_turns(entrants, effort)
            outcome.spread = spread(entrants[0].seconds)
    outcome.seconds = {entrant.name: statistics.median(entrant.seconds) for entrant in entrants}
    return outcome


def sizes(workload: Workload, problem: Problem) -> tuple[int, int]:
    """Return the numbers of inputs and outputs, those of one sample where there is a batch."""
    func, args = problem
    with torch.no_grad():
        batch = args[0].shape[0] if workload.kind == "batched" else 1
        return args[0].numel() // batch, func(*args).numel() // batch


def verified_entrants(outcome: Outcome, problem: Problem) -> list[Entrant]:
    """Return those that answer as torchjac does; note in ``outcome`` why the others do not."""
    func, args = problem
    derivative = ours(outcome.workload)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        try:
            expected = derivative(func, *args)
        except Exception as error:
            outcome.raised[OURS] = one_line(error)
            return []
    cold = time.perf_counter() - start
    own = [one_line(w.message) for w in caught if w.category.__module__.startswith("torchjac")]
    outcome.warned = list(dict.fromkeys(own))

    entrants = [Entrant(OURS, functools.partial(derivative, func, *args), cold)]
    for peer in (peer for peer in PEERS if peer.kind == outcome.workload.kind):
        start = time.perf_counter()
        try:
            actual = peer.call(func, *args)
        except Exception as error:
            outcome.raised[peer.name] = one_line(error)
            continue
        cold = time.perf_counter() - start
        if difference := disagreement(actual, expected):
            outcome.differs[peer.name] = difference
            continue
        if expected.requires_grad and not actual.requires_grad:
            outcome.detached.add(peer.name)
        entrants.append(Entrant(peer.name, functools.partial(peer.call, func, *args), cold))
    return entrants


def disagreement(actual: Tensor, expected: Tensor) -> str | None:
    """Return how two Jacobians differ beyond rounding, or None where they do not."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} where torchjac has {tuple(expected.shape)}"
    with torch.no_grad():
        scale = expected.abs().max().item()
        worst = (actual - expected).abs().max().item()
    if worst <= TOLERANCE[expected.dtype] * max(scale, 1e-30):
        return None
    return f"off by {worst:.1e} where the largest entry is {scale:.1e}"


def take_turns(entrants: list[Entrant], effort: Effort, *, collecting: bool = False) -> None:
    """Time everybody round by round, whoever has fewer turns evenly spread over the rounds.

    Garbage is left lying meanwhile, unless ``collecting`` it is part of the cost: of what is done once,
    in Python, with many small objects.
    """
    order = random.Random(0)
    for entrant in entrants:
        entrant.warm_up(effort)
    gc.collect()
    if not collecting:
        gc.disable()
    try:
        for turn in range(effort.rounds):
            for entrant in order.sample(entrants, len(entrants)):
                if turn * entrant.turns % effort.rounds < entrant.turns:
                    entrant.take_turn()
    finally:
        gc.enable()


def spread(seconds: list[float]) -> float:
    """Return the interquartile range over the median."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / middle


def observed_mode(workload: Workload, problem: Problem) -> str:
    """Return the mode torchjac chose, as seen from within the function it differentiates.

    Forward mode is when a dual level is open while the function runs, of a Hessian that shows the
    outer derivative. The second call is looked at: the first one on a new signature may try out more
    than it uses.
    """
    func, args = problem
    seen: list[bool] = []

    def spy(*args: Tensor) -> Tensor:
        seen.append(forward_ad._current_level >= 0)
        return func(*args)

    derivative: Callable[..., Tensor] = ours(workload)
    watched: Func = spy
    derivative(watched, *args)
    seen.clear()
    derivative(watched, *args)
    if not seen:
        return "?"
    mode = "forward" if any(seen) else "reverse"
    return f"{mode} over ..." if workload.kind == "hessian" else mode


def one_line(message: object) -> str:
    """Return the start of a message, short enough for a bullet point."""
    text = " ".join(str(message).split()) or type(message).__name__
    return text if len(text) <= 160 else text[:157] + "..."
