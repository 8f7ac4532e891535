"""`Plan`: a derivative whose function was looked into once, and the cheapest way chosen."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from torchjac.errors import PlanMismatchError
from torchjac.evaluation.deferred import recomputed
from torchjac.evaluation.programs.program import Program
from torchjac.evaluation.surroundings import defaults, is_out_of_memory, nothing_around
from torchjac.planning.captured.bindings import noun
from torchjac.planning.captured.captures import Captures
from torchjac.planning.memory import Record
from torchjac.planning.plans.candidates import Candidate, inputs_of
from torchjac.planning.plans.compiling import compiled
from torchjac.planning.plans.design import Design
from torchjac.planning.plans.explain import explain
from torchjac.planning.plans.fields import Arguments, Fields, are_plain
from torchjac.planning.plans.proof import stands, verify
from torchjac.planning.plans.saving import save
from torchjac.planning.problem import Answer, Ask, Problem
from torchjac.planning.solve import solve
from torchjac.structure.blocks import SparseBlock
from torchjac.structure.coloring import Coloring
from torchjac.structure.pattern import SparsityPattern

__all__ = ["Plan", "Transform"]


class Transform(Protocol):
    """A transform of a function, taken apart into what is asked and what is handed out."""

    @property
    def name(self) -> str:
        """Of the call that the user made."""

    @property
    def func(self) -> Callable[..., Any]:
        """The user's function."""

    @property
    def keywords(self) -> Mapping[str, Any]:
        """The keyword arguments that make the same transform of another function."""

    @property
    def ask(self) -> Ask:
        """What a call asks for."""

    @property
    def give(self) -> Callable[[Any, Answer], Any]:
        """What the user gets for an answer."""


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A derivative planned for arguments of certain shapes: an immutable recipe, and callable.

    `print` explains it. Made by the ``plan`` of what `torchjac.jac`, `torchjac.batched_jac` and
    `torchjac.hessian` return.
    """

    _transform: Transform
    _call: Any
    _problem: Problem
    _design: Design
    _fields: Fields
    _captures: Captures
    _arguments: Arguments
    _program: Program | None
    _record: Record
    _compiled: bool = False
    _loaded: str | None = None
    _doubts: set[str] = field(default_factory=set)
    """Why results are still compared with a plain pass."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The derivative, as the transform itself returns it.

        Raises:
            PlanMismatchError: other arguments than planned for, or the function reaches other things.
            PlanError: the plan was loaded, this is its first call, and the derivative disagrees with one
                plain backward pass.
        """
        tensors = self._inputs(args, kwargs)
        program = self._program
        if tensors is None or program is None:
            return self._generally(args, kwargs)
        if self._doubts and not stands(self, args, kwargs):
            return self._generally(args, kwargs)
        if torch.is_grad_enabled() and (
            program.requires_grad or any(t.requires_grad for t in tensors)
        ):
            return self._with_graph(program, tensors, args, kwargs)
        try:
            returned = program(*self._arguments.laid_out(tensors))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return self._generally(args, kwargs)  # in chunks, and smaller ones until it fits
        return self._packed(returned)

    def _inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Tensor] | None:
        """What the program takes of such a call; None where the call has to do without it.

        Raises:
            PlanMismatchError: as for a call.
        """
        tensors = self._arguments.taken(args, kwargs)
        if tensors is None:
            self._refuse_others(args, kwargs)
        program = self._program
        if program is not None and (changed := self._captures.changed()):
            raise PlanMismatchError(
                f"{self._name}: what func reaches is not what was planned for: {changed}. Make a new plan."
            )
        if program is None or not nothing_around():
            return None
        if self._design.compression is not None and self._design.compression.is_stale:
            raise PlanMismatchError(
                f"{self._name}: a captured tensor whose zeros shaped the pattern was changed in place. "
                f"Make a new plan."
            )
        if defaults() != program.defaults:
            return None
        if tensors is None:
            call, problem = self._transform.ask(args, kwargs)
            tensors = inputs_of(problem)
            self._refuse_other_parameters(call)
        if not are_plain(tensors):
            return None
        self._refuse_misfits(program)
        return tensors

    def verify(self, *args: Any, **kwargs: Any) -> bool:
        """Compare the plan's derivative with products that share nothing with how it was made.

        A random uᵀ·J·v is compared with one plain backward pass, one plain forward pass (where PyTorch
        has the rules) and a central difference; of a Hessian with a difference of gradients. What is nan has
        to be nan in the plain backward pass of its row or in the plain forward pass of its column.

        Returns:
            True.

        Raises:
            PlanError: the derivative disagrees; the message says with what.
            PlanMismatchError: as for a call.
        """
        verify(self, args, kwargs)
        return True

    def compile(self) -> Plan:
        """The same plan, run through TorchInductor: one graph, and no guards but the plan's own.

        The plan's result on the arguments that it was made for is compared with the compiled one. A plan
        that was tuned is tuned again: its way and the cheapest other one are compiled and measured.

        Raises:
            UnsupportedError: there is no graph to compile, PyTorch is older than 2.4, no C++ compiler is
                found, or Inductor fails.
            PlanError: the compiled derivative is not the plan's.
            PlanMismatchError: a tensor that func captured is of another kind than at the plan, or the
                default dtype or device is another one.
        """
        return compiled(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write down what was costly to find: the pattern, its colouring, and which way is the best.

        `torchjac.load_plan` makes the plan of it again, for the same function. The file holds numbers
        and words alone, no code and no tensor's values. A compiled plan is saved as the one that it was
        compiled from.

        Args:
            path: where to write; a file that is there is replaced.

        Raises:
            PlanError: an argument or option is no tensor and no plain value, or the pattern holds for
                values of captured tensors that have been changed, or cannot be recognised, later.

        Example:
            >>> import tempfile, torch, torchjac
            >>> path = tempfile.mkdtemp() + "/sines.plan"
            >>> torchjac.jac(torch.sin, sparsity="detect").plan(torch.zeros(100)).save(path)
            >>> torchjac.load_plan(path, torch.sin).passes
            1
        """
        save(self, path)

    @property
    def mode(self) -> str:
        """``"forward"``, ``"reverse"``, ``"forward and reverse"``, or for a Hessian as its option."""
        chosen = self._design.chosen
        return "forward and reverse" if chosen.waist else chosen.way.mode

    @property
    def passes(self) -> int:
        """The seeds that the function's derivative is multiplied with."""
        return self._design.chosen.passes

    @property
    def chunk_size(self) -> int:
        """The seeds that share one vmapped pass."""
        return self._design.chosen.chunk_size

    @property
    def pattern(self) -> SparsityPattern | None:
        """Where the nonzeros are, if that was given or found."""
        found = self._design.compression
        return None if found is None else found.pattern

    @property
    def coloring(self) -> Coloring | None:
        """The colours whose seeds are sent, if the plan makes use of the pattern."""
        found, chosen = self._design.compression, self._design.chosen
        return found.coloring(chosen.way) if found is not None and chosen.colored else None

    def __str__(self) -> str:
        return explain(self)

    def __repr__(self) -> str:
        state = "compiled, " if self._compiled else ""
        return f"<Plan of {self._name}: {state}{self._design.chosen.name}, {self.passes} passes>"

    @property
    def _name(self) -> str:
        return f"{self._transform.name}({noun(self._transform.func)})"

    def _refuse_others(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        found = self._fields.differences(args, kwargs)
        if found:
            raise PlanMismatchError(
                f"{self._name}: these arguments are not those that were planned for:\n  "
                + "\n  ".join(found)
                + "\nMake a plan for them: .plan(...) with such arguments."
            )

    def _refuse_misfits(self, program: Program) -> None:
        if not program.fits():
            raise PlanMismatchError(
                f"{self._name}: a tensor that func captured has another shape, dtype or device now, or "
                f"other strides. Make a new plan."
            )

    def answer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Answer:
        """What a call finds, before it is put into trees and layouts."""
        tensors = self._inputs(args, kwargs)
        if tensors is None or self._program is None:
            return self._solved(args, kwargs)[1]
        return self._answer(self._program(*self._arguments.laid_out(tensors)))

    def _refuse_other_parameters(self, call: Any) -> None:
        """With ``argnums="params"``: those that require grad are a part of the signature."""
        planned, now = self._call.names, call.names
        if planned != now:
            raise PlanMismatchError(
                f"{self._name}: other parameters require grad than were planned for: {', '.join(planned)} "
                f"were planned, got {', '.join(now)}. Make a new plan."
            )

    def _generally(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Without the program: in a transform, under a compiler, or where there is none."""
        call, answer = self._solved(args, kwargs)
        return self._transform.give(call, answer)

    def _solved(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
        call, problem = self._transform.ask(args, kwargs)
        problem.signature = self._problem.signature
        problem.sparsity = self._problem.sparsity
        problem.memory = self._problem.memory
        return call, solve(problem)

    def _packed(self, returned: Sequence[Tensor]) -> Any:
        if self._arguments.is_bare:
            return returned[0]
        return self._transform.give(self._call, self._answer(returned))

    def _answer(self, returned: Sequence[Tensor]) -> Answer:
        outcome = self._problem.outcome()
        return self._design.chosen.answer(returned, len(self._problem.primals), outcome)

    def _with_graph(
        self,
        program: Program,
        tensors: Sequence[Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """The same, hung on a node that computes it again if anybody goes backward."""
        if program.is_random:
            return self._generally(args, kwargs)
        beyond = [t for t in (*tensors, *program.captured) if t.requires_grad]
        returned = list(program(*self._arguments.laid_out(tensors)))
        floating = [at for at, t in enumerate(returned) if t.is_floating_point()]

        read = [*tensors, *program.captured]

        def again() -> list[Tensor]:
            if changed := self._captures.changed():
                raise RuntimeError(
                    f"{self._name}: what func reaches has changed between the call and going backward: "
                    f"{changed}"
                )
            _, answer = self._solved(args, kwargs)
            made = _flattened(self._design.chosen, answer, self._problem.wants_value)
            return [made[at] for at in floating]

        hung = recomputed([returned[at] for at in floating], beyond, read, again)
        for at, tensor in zip(floating, hung, strict=True):
            returned[at] = tensor
        return self._packed(returned)


def _flattened(chosen: Candidate, answer: Answer, wants_value: bool) -> list[Tensor]:
    """The tensors of an answer in the order in which a program returns them."""
    leaves = [leaf for row in answer.leaves for leaf in row]
    flat = []
    for leaf, index in zip(leaves, chosen.blocks, strict=True):
        if isinstance(leaf, SparseBlock):
            leaf = leaf.values if index is not None else leaf.laid_out(torch.strided)
        flat.append(leaf)
    values, carried = answer.handed_out() if wants_value else ((), ())
    return [*flat, *values, *carried]
