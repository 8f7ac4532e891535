"""Where a result is written, and what is shown meanwhile: the options that do not change what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchjac.errors import (
    ArgumentError,
    ArgumentTypeError,
    OptionError,
    PlanError,
    UnsupportedError,
)
from torchjac.evaluation.surroundings import compiling, inside_transform
from torchjac.foundations.pytree import flatten
from torchjac.foundations.ranks import Ranks
from torchjac.planning.problem import Answer, Problem
from torchjac.planning.solve import solve
from torchjac.transforms.facts import argument_facts, parameter_facts
from torchjac.transforms.options import check_flag

__all__ = ["PLAIN", "Delivery", "delivered"]


class Delivery(NamedTuple):
    """The options of a transform that say how its result is brought."""

    out: Any = None
    progress: bool = False
    device_mesh: Any = None

    @staticmethod
    def checked(
        name: str,
        out: Any,
        progress: bool,
        device_mesh: Any,
        layout: torch.layout = torch.strided,
    ) -> Delivery:
        """Refuse what cannot be meant, when the transform is built."""
        check_flag(name, "progress", progress)
        if out is not None and layout is not torch.strided:
            raise OptionError(
                f"{name}(out=..., layout={layout}): only dense results are written into given memory. Use "
                f"layout=torch.strided, or no out."
            )
        if device_mesh is not None:
            Ranks.check(name, device_mesh)
            if out is not None:
                raise OptionError(
                    f"{name}(out=..., device_mesh=...): with a mesh every rank has its share, in a DTensor "
                    f"of its own. Copy the result's to_local(), or use one of the two."
                )
        return Delivery(out, progress, device_mesh)

    @property
    def is_plain(self) -> bool:
        """Whether a result is made in memory of its own, by this process, and nothing shown."""
        return self.out is None and not self.progress and self.device_mesh is None

    def refuse_plan(self, name: str) -> None:
        """A plan returns results of its own."""
        for option, remedy in (
            ("out", "copy what the plan returns"),
            ("device_mesh", "plan in every process for a part of the problem"),
        ):
            if getattr(self, option) is not None:
                raise PlanError(
                    f"{name}({option}=...).plan: a plan returns results of its own, made by one process. "
                    f"Build the transform without {option}, and {remedy}."
                )


PLAIN = Delivery()


class _Transform(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def ask(self) -> Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Any, Problem]]: ...

    def tree(self, call: Any, outcome: Any, leaves: Sequence[Sequence[Any]]) -> Any: ...

    def give(self, call: Any, answer: Answer) -> Any: ...


def delivered(
    transform: _Transform, delivery: Delivery, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Solve the problem that a call poses, and bring the result as it is wanted."""
    if delivery.out is not None or delivery.device_mesh is not None:
        _refuse_surroundings(transform.name, delivery)
    if delivery.device_mesh is not None:
        return _divided(transform, delivery, args, kwargs)
    call, problem = transform.ask(args, kwargs)
    problem.shown = transform.name if delivery.progress and not compiling() else None
    if delivery.out is not None:
        return _written(transform, delivery.out, call, problem)
    return transform.give(call, solve(problem))


def _refuse_surroundings(name: str, delivery: Delivery) -> None:
    if compiling() or inside_transform() or torch._C._len_torch_dispatch_stack():
        option = "out" if delivery.out is not None else "device_mesh"
        raise UnsupportedError(
            f"{name}({option}=...): a result within vmap, grad, jvp or torch.compile cannot be written into "
            f"tensors from outside, nor divided. Leave {option} away there."
        )


def _divided(
    transform: _Transform, delivery: Delivery, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """This rank's share of the work, and the result of which every rank has a part."""
    # It takes torch.distributed, which most calls do without.
    from torchjac.planning.shares import solve_samples, solve_shared, together

    ranks = Ranks(transform.name, delivery.device_mesh)

    def work() -> Any:
        ranks.facts |= argument_facts(args, kwargs)
        call, problem = transform.ask(args, kwargs)
        ranks.facts |= parameter_facts(call)
        total = call.batch_size if problem.batched else 0
        if problem.batched:
            share = ranks.share(total) or range(min(total, 1))
            call, problem = transform.ask(call.narrowed(share), kwargs)
        problem.shown = transform.name if delivery.progress and ranks.rank == 0 else None
        with torch.inference_mode(False), torch.no_grad():
            batched = problem.batched
            answer = (
                solve_samples(problem, ranks, total) if batched else solve_shared(problem, ranks)
            )
        return transform.give(call, answer)

    return together(ranks, work)


def _written(transform: _Transform, out: Any, call: Any, problem: Problem) -> Any:
    given = _Given(transform, out, call, problem)
    problem.into = given.leaves
    with torch.no_grad():
        answer = solve(problem)
        # What was compressed, made again after a check, or has no room of the right strides.
        for row, places in zip(answer.laid_out(), given.leaves_of(answer), strict=True):
            for leaf, place in zip(row, places, strict=True):
                if leaf.data_ptr() != place.data_ptr() or leaf.stride() != place.stride():
                    place.copy_(leaf)
    return call.packed(out, answer)


class _Given:
    """The tensors of ``out``, held against the result that is about to be written into them."""

    def __init__(self, transform: _Transform, out: Any, call: Any, problem: Problem) -> None:
        self._transform, self._call, self._problem = transform, call, problem
        self._leaves, self._spec = flatten(out)
        self._name = transform.name

    def leaves(self, values: Sequence[Tensor]) -> list[list[Tensor]]:
        """The tensors ``[output][input]`` for outputs like ``values``, if all of them are right."""
        at = int(self._problem.batched)
        shapes = [
            [(*value.shape, *primal.shape[at:]) for primal in self._problem.primals]
            for value in values
        ]
        return self._checked(shapes, self._problem.outcome())

    def leaves_of(self, answer: Answer) -> list[list[Tensor]]:
        """The tensors for the leaves of an answer."""
        return self._checked(
            [[tuple(leaf.shape) for leaf in row] for row in answer.laid_out()], answer.outcome
        )

    def _checked(
        self, shapes: Sequence[Sequence[tuple[int, ...]]], outcome: Any
    ) -> list[list[Tensor]]:
        width = len(self._problem.primals)
        # The tree of the result, with the number of a leaf for every leaf.
        numbers = [[o * width + i for i in range(width)] for o in range(len(shapes))]
        order, spec = flatten(self._transform.tree(self._call, outcome, numbers))
        if spec != self._spec or any(
            (number is None) != (leaf is None)
            for number, leaf in zip(order, self._leaves, strict=True)
        ):
            raise ArgumentError(
                f"{self._name}(out=...): expected the tree of the result, {spec}; got {self._spec}. Calling "
                f"{self._name} without out shows it."
            )
        found: dict[int, Tensor] = {}
        for number, leaf in zip(order, self._leaves, strict=True):
            if number is not None:
                o, i = divmod(number, width)
                self._check(leaf, shapes[o][i], self._problem.primals[i])
                found[number] = leaf
        return [[found[number] for number in row] for row in numbers]

    def _check(self, leaf: object, shape: tuple[int, ...], primal: Tensor) -> None:
        expected = f"expected a tensor {tuple(shape)} of {primal.dtype} on {primal.device}"
        where = f"{self._name}(out=...)"
        if not isinstance(leaf, Tensor):
            raise ArgumentTypeError(f"{where}: {expected}, got a {type(leaf).__name__}.")
        if leaf.dtype != primal.dtype or leaf.device != primal.device:
            raise ArgumentTypeError(f"{where}: {expected}, got {leaf.dtype} on {leaf.device}.")
        if tuple(leaf.shape) != tuple(shape):
            raise ArgumentError(f"{where}: {expected}, got shape {tuple(leaf.shape)}.")
        if leaf.requires_grad:
            raise ArgumentError(
                f"{where}: the tensor requires grad, and what is written carries no graph. Pass "
                f"out.detach(), which shares its memory."
            )
        if any(
            stride == 0 and size > 1 for stride, size in zip(leaf.stride(), leaf.shape, strict=True)
        ):
            raise ArgumentError(
                f"{where}: elements of the tensor share memory. Pass out.contiguous()."
            )
        if any(_memory(leaf) == _memory(other) for other in self._problem.primals if leaf.numel()):
            raise ArgumentError(f"{where}: the tensor shares its memory with an input.")


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
