"""A plan's program through the compiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchjac.errors import PlanError, UnsupportedError
from torchjac.evaluation.probes import tolerance
from torchjac.evaluation.programs.compiled import compile_graph
from torchjac.evaluation.programs.program import Program
from torchjac.evaluation.surroundings import Draw, has_values

if TYPE_CHECKING:
    from torchjac.planning.plan import Plan

__all__ = ["compiled"]


def compiled(plan: Plan) -> Plan:
    """The same plan with its program compiled, and tried out on the arguments it was made for."""
    program = plan._program
    if program is None:
        raise UnsupportedError(
            f"{plan._name}.compile(): this plan has no graph that could be compiled, because it was made "
            f"{plan._design.reason}. Call it as it is, or write func so that it can be traced."
        )
    if plan._compiled:
        return plan
    tensors = plan._arguments.laid_out(plan._arguments.planned)
    made = Program(program.graph, compile_graph(program.graph, tensors))
    if has_values(tensors):
        _compare(plan, program, made, tensors)
    return dataclasses.replace(plan, _program=made, _compiled=True)


def _compare(plan: Plan, program: Program, made: Program, tensors: Sequence[Tensor]) -> None:
    draw = Draw(tensors)
    with draw.aside():
        expected = program(*tensors)
    with draw.aside():
        got = made(*tensors)
    for one, other in zip(got, expected, strict=True):
        rtol = tolerance([other])
        a, b = one.detach().double(), other.detach().double()
        scale = b.abs().nan_to_num(0, 0, 0).max().item() if b.numel() else 0.0
        if a.shape != b.shape or not torch.allclose(
            a, b, rtol=rtol, atol=rtol * scale, equal_nan=True
        ):
            worst = (a - b).abs().nan_to_num().max().item() if a.shape == b.shape else float("nan")
            raise PlanError(
                f"{plan._name}.compile(): the compiled derivative is off by {worst:.1e} where the largest "
                f"entry is {scale:.1e}. Inductor got an operation wrong; use the plan as it is."
            )
