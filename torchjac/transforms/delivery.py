"""Where a result is written, and what is shown meanwhile: the options that do not change what it is."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchjac.errors import OptionError, PlanError, UnsupportedError
from torchjac.evaluation.surroundings import (
    carry_tangents,
    compiling,
    inside_transform,
    out_of_inference,
)
from torchjac.foundations.pytree import flatten
from torchjac.foundations.ranks import Ranks
from torchjac.planning.problem import Answer, Ask
from torchjac.planning.solve import solve
from torchjac.transforms.facts import argument_facts, option_facts, parameter_facts
from torchjac.transforms.options import Options, check_flag
from torchjac.transforms.out import Named, written

__all__ = ["PLAIN", "Delivery", "delivered", "refuse_followed"]


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
        if out is None and progress is False and device_mesh is None:
            return PLAIN
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


class _Transform(Named, Protocol):
    @property
    def options(self) -> Options: ...

    @property
    def own(self) -> Mapping[str, Any]: ...

    @property
    def ask(self) -> Ask: ...

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
    problem.shown = transform.name if delivery.progress else None
    if delivery.out is not None:
        refuse_followed(f"{transform.name}(out=...)", args, kwargs)
        return written(transform, delivery.out, call, problem)
    return transform.give(call, solve(problem))


def _refuse_surroundings(name: str, delivery: Delivery) -> None:
    if compiling() or inside_transform() or torch._C._len_torch_dispatch_stack():
        option = "out" if delivery.out is not None else "device_mesh"
        raise UnsupportedError(
            f"{name}({option}=...): a result within vmap, grad, jvp or torch.compile cannot be written into "
            f"tensors from outside, nor divided. Leave {option} away there."
        )


def refuse_followed(where: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that somebody differentiates, where the result would hold the derivative back.

    Leaves that require grad, such as parameters, are no sign of that.
    """
    tensors = [leaf for leaf in flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    if carry_tangents(tensors) or (
        torch.is_grad_enabled() and any(tensor.grad_fn is not None for tensor in tensors)
    ):
        raise UnsupportedError(
            f"{where}: an argument was computed from tensors that require grad, or is a dual number, and the "
            f"result carries no graph, so that derivatives would end here. Pass x.detach(), or call under "
            f"torch.no_grad()."
        )


def _divided(
    transform: _Transform, delivery: Delivery, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """This rank's share of the work, and the result of which every rank has a part."""
    # It takes torch.distributed, which most calls do without.
    from torchjac.planning.shares import samples_of, solve_samples, solve_shared, together

    ranks = Ranks(transform.name, delivery.device_mesh)

    def work() -> Any:
        refuse_followed(f"{transform.name}(device_mesh=...)", args, kwargs)
        options = {**transform.options._asdict(), **transform.own}
        ranks.facts |= option_facts(options) | argument_facts(args, kwargs)
        call, problem = transform.ask(args, kwargs)
        ranks.facts |= parameter_facts(call)
        solve_divided = solve_shared
        if problem.batched:
            split = samples_of(ranks, call.batch_size, promised=problem.promised)
            _, first = transform.ask(call.narrowed(range(min(split.size, 1))), kwargs)
            call, problem = transform.ask(call.narrowed(split.made), kwargs)
            solve_divided = functools.partial(solve_samples, split=split, first=first)
        problem.shown = transform.name if delivery.progress and ranks.rank == 0 else None
        with torch.inference_mode(False), torch.no_grad():
            ranks.check_device(problem.primals)
            problem.primals = [p.detach() for p in out_of_inference(problem.primals)]
            return transform.give(call, solve_divided(problem, ranks))

    return together(ranks, work)
