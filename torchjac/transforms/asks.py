"""What a call of a transform of whole arguments asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torchjac.planning.captured.watch import Watch
from torchjac.planning.memory import Memory
from torchjac.planning.problem import Ask, Problem
from torchjac.planning.signature import Description
from torchjac.transforms.call import Call
from torchjac.transforms.options import Options

__all__ = ["asks"]


def asks(options: Options, func: Callable[..., Any], order: int) -> Ask:
    """What a call of a transform of whole arguments asks for: of order 1 a Jacobian, of 2 a Hessian."""
    watch = Watch(func) if options.sparsity is not None else None

    def pose(call: Call) -> Problem:
        problem = Problem(
            name=options.name,
            function=call,
            primals=call.primals,
            begun=call.take_begun(),
            signature=call.signature,
            likeness=call.likeness,
            outcome=lambda: call.outcome,
            wants_value=options.return_value or options.has_aux,
            order=order,
            mode=options.mode,
            chunk_size=options.chunk_size,
            check=options.check,
            sparsity=options.sparsity,
            others=call.others,
            is_sure=lambda: call.is_sure,
            keep_state=call.keep_state,
            layout=options.layout,
            memory=call.memory,
        )
        if watch is not None:
            problem.noted = lambda key, again: watch.noted(key, *call.given, again=again)
            problem.is_unchanged = watch.is_unchanged
        return problem

    take = functools.partial(Call, options, func, described=Description(), memory=Memory())
    return Ask(take, pose)
