"""A call like one before: one backward pass, and nothing asked that has been answered.

What stands around a small function takes as long as to evaluate it and to differentiate it, so it is left
out where it is known what would come of it. Whatever is not as it was then is left to `solve`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchjac.errors import TorchjacError
from torchjac.evaluation.engines import record
from torchjac.evaluation.evaluator import at_once
from torchjac.evaluation.surroundings import compiling, inside_transform, is_out_of_memory
from torchjac.foundations.compiler import uncompiled
from torchjac.foundations.seeds import Seeds
from torchjac.planning.fallback import is_refusal
from torchjac.planning.memory import Record, recall
from torchjac.planning.problem import Answer

__all__ = ["repeated"]


class Repeatable(Protocol):
    """A flat function at a point, of which something may be known."""

    primals: list[Tensor]
    is_sure: bool
    outcome: Any

    def signature(self) -> Hashable:
        """What makes another call the same."""

    def __call__(
        self, leaves: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]: ...


def repeated(call: Repeatable) -> Answer | None:
    """The answer to a call whose like has been answered and checked, if one pass gives it."""
    if (
        compiling()  # first, for the compiler cannot trace the others
        or torch._C._len_torch_dispatch_stack()
        or inside_transform()
        or forward_ad._current_level >= 0
        or torch.is_inference_mode_enabled()
    ):
        return None
    known = recall(call.signature())
    if known is None or known.repeats is None:
        return None
    seeds = known.repeats
    for primal in call.primals:
        if primal.is_inference():
            return None
    try:
        if call.is_sure or seeds.total == 1:  # as in `attempt`
            return _read_off(call, known, seeds)
        with uncompiled():
            return _read_off(call, known, seeds)
    except TorchjacError:
        raise
    except Exception as error:
        if is_refusal(error) or is_out_of_memory(error):
            return None  # there are other ways
        raise


def _read_off(call: Repeatable, known: Record, seeds: Seeds) -> Answer | None:
    graph = record(call, call.primals)
    if not seeds.layout.fits(graph.values):
        return None
    leaves = [at_once(graph, seeds)]
    values, carried = graph.values, graph.carried
    return Answer(known.next_way, seeds.total, leaves, values, carried, call.outcome, graph)
