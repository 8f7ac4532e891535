"""The ways there are to compute a result, best first; where PyTorch refuses one the next is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torchjac.evaluation.engines import Direction
from torchjac.planning.modes import FORWARD_COST, choose_hessian_mode, choose_mode

__all__ = ["Way", "compressed_ways", "hessian_ways", "jacobian_ways"]


class Way(NamedTuple):
    """One way to compute a Jacobian or, with an inner direction, a Hessian."""

    direction: Direction
    vectorised: bool
    """Several seeds per pass, under vmap; else one at a time, without it."""
    inner: Direction | None = None
    both: bool = False
    """Whether some entries of a sparse Jacobian come from the other direction's products."""

    @property
    def trusted(self) -> Way:
        """The slowest way, and the one least likely to be wrong: plain backward passes."""
        return Way("reverse", False, self.inner and "reverse")

    @property
    def mode(self) -> str:
        """In the words of the option ``mode``; both modes have none there."""
        if self.both:
            return "forward and reverse"
        return self.direction if self.inner is None else f"{self.direction}-over-{self.inner}"

    def __str__(self) -> str:
        passes = "vmapped passes" if self.vectorised else "one pass at a time"
        return f"{self.mode} mode, {passes}"


def _ladder(modes: list[tuple[Direction, Direction | None]], vectorise: bool) -> tuple[Way, ...]:
    speeds = (True, False) if vectorise else (False,)
    return tuple(Way(outer, speed, inner) for outer, inner in modes for speed in speeds)


def jacobian_ways(
    mode: str,
    num_inputs: int,
    num_outputs: int,
    *,
    vectorise: bool,
    forward_cost: float = FORWARD_COST,
    largest: int = 0,
) -> tuple[Way, ...]:
    """Order the ways to a Jacobian.

    The chosen mode comes first, vmapped and then one pass at a time, which needs no batching rule
    and allows control flow that depends on values; with ``mode="auto"`` the other mode follows.
    """
    if mode == "forward":
        return _ladder([("forward", None)], vectorise)
    if mode == "reverse":
        return _ladder([("reverse", None)], vectorise)
    first = choose_mode(num_inputs, num_outputs, forward_cost, largest)
    second: Direction = "reverse" if first == "forward" else "forward"
    return _ladder([(first, None), (second, None)], vectorise)


def compressed_ways(mode: str, choose: Callable[[], str], *, vectorise: bool) -> tuple[Way, ...]:
    """Order the ways to a sparse Jacobian; ``choose`` tells what the cheapest colouring has colours for.

    Column colours are seeds of forward mode, row colours of reverse mode, and a bidirectional
    colouring takes both.
    """
    if mode != "auto":
        return _ladder([(_direction(mode), None)], vectorise)
    chosen = choose()
    first: Direction = "reverse" if chosen == "rows" else "forward"
    second: Direction = "reverse" if first == "forward" else "forward"
    ladder = _ladder([(first, None), (second, None)], vectorise)
    if chosen == "bidirectional":
        return (*(way._replace(both=True) for way in ladder[: 1 + vectorise]), *ladder)
    return ladder


def hessian_ways(
    mode: str, num_outputs: int, num_inputs: int = 0, largest: int = 0, *, vectorise: bool
) -> tuple[Way, ...]:
    """Order the ways to a Hessian; automatically none with forward mode inside."""
    if mode != "auto":
        outer, inner = mode.split("-over-")
        return _ladder([(_direction(outer), _direction(inner))], vectorise)
    first, inner = choose_hessian_mode(num_outputs, num_inputs, largest)
    second: Direction = "reverse" if first == "forward" else "forward"
    return _ladder([(first, inner), (second, inner)], vectorise)


def _direction(word: str) -> Direction:
    return "forward" if word == "forward" else "reverse"
