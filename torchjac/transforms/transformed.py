"""What a transform returns: a callable that computes at once, and that can be planned."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchjac.planning.problem import Answer, Ask
from torchjac.planning.repeat import repeated
from torchjac.planning.signature import DESCRIBED
from torchjac.planning.solve import solve
from torchjac.transforms.delivery import PLAIN, Delivery, delivered
from torchjac.transforms.options import check_flag
from torchjac.transforms.outcome import ONE_TENSOR

__all__ = ["Transform", "like_func", "transformed"]

# What a wrapper has of what it wraps.
_OF_FUNCTIONS = functools.WRAPPER_ASSIGNMENTS


def like_func(
    func: Callable[..., Any], *options: Hashable
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a wrapper the name, doc and signature of ``func``, but not the attributes of a module.

    The ``options`` are all that tells it apart from another wrapper of ``func`` with the same code.
    """

    def like(wrapper: Callable[..., Any]) -> Callable[..., Any]:
        setattr(wrapper, DESCRIBED, _Described(func, options))
        assigned = _of_module(func) if isinstance(func, torch.nn.Module) else _OF_FUNCTIONS
        return functools.update_wrapper(wrapper, func, assigned, updated=())

    return like


class _Described(NamedTuple):
    func: Callable[..., Any]
    told_by: tuple[Hashable, ...]


class Transform(NamedTuple):
    """A transform of one function, taken apart into what is asked and what is handed out."""

    name: str
    func: Callable[..., Any]
    options: Any
    ask: Ask
    tree: Callable[[Any, Any, Sequence[Sequence[Any]]], Any]
    """Puts ``leaves[output][input]`` into the tree of the result, for a call and its outcome."""
    own: Mapping[str, Any] = types.MappingProxyType({})
    """The options that this transform alone has."""
    delivery: Delivery = PLAIN

    def give(self, call: Any, answer: Answer) -> Any:
        """What the user gets for an answer."""
        if answer.outcome is ONE_TENSOR and call.is_bare:
            leaf = answer.leaves[0][0]
            return leaf if isinstance(leaf, Tensor) else leaf.laid_out(self.options.layout)
        leaves: Sequence[Sequence[Tensor]] = answer.laid_out(self.options.layout)
        return call.packed(self.tree(call, answer.outcome, leaves), answer)

    @property
    def told_by(self) -> tuple[Hashable, ...]:
        """All that tells it apart from another transform of the same function."""
        return (self.options, *map(repr, self.own.items()))

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments that make the same transform of another function."""
        defaults = self.options._field_defaults
        shared = self.options._asdict()
        del shared["name"]
        return {
            **{k: v for k, v in shared.items() if k not in defaults or v is not defaults[k]},
            **self.own,
        }


def transformed(transform: Transform) -> Callable[..., Any]:
    """Put a transform together: what it asks, solved, is handed out."""
    (take, pose), give, plainly = transform.ask, transform.give, transform.delivery is PLAIN

    def derivative(*args: Any, **kwargs: Any) -> Any:
        if not plainly:
            return delivered(transform, transform.delivery, args, kwargs)
        call = take(args, kwargs)
        return give(call, repeated(call) or solve(pose(call)))

    def plan(*args: Any, tune: bool = False, **kwargs: Any) -> Any:
        """Look into the function once, and choose the cheapest way to its derivative.

        Args:
            *args: the arguments of a call; their values are used to check the plan, and to measure.
            tune: whether to measure what was considered, instead of counting alone.
            **kwargs: the keyword arguments of the call.

        Returns:
            A `Plan`, to be called with arguments of the same shapes.
        """
        # Most calls never plan, and it takes much of PyTorch that nobody else needs.
        from torchjac.planning.plans.planner import make_plan

        check_flag(f"{transform.name}(...).plan", "tune", tune)
        transform.delivery.refuse_plan(transform.name)
        return make_plan(transform, args, kwargs, tune=tune)

    derivative.plan = plan  # type: ignore[attr-defined]
    setattr(derivative, DESCRIBED, transform)
    func = transform.func
    assigned = _of_module(func) if isinstance(func, torch.nn.Module) else _OF_FUNCTIONS
    return functools.update_wrapper(derivative, func, assigned, updated=())


def _of_module(module: torch.nn.Module) -> tuple[str, ...]:
    """Most modules have no name, and take long to say so."""
    return _OF_FUNCTIONS if "__name__" in vars(module) else ("__module__", "__doc__")
