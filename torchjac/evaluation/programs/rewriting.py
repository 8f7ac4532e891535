"""Writing a graph anew: every operation is offered to rules before it is written down.

A *value* of the new graph is a node, or a `Symbolic` tensor of which so much is known that operations
on it can be done on paper. It becomes a node only where an operation needs its elements.
"""

from __future__ import annotations

import contextlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from torchjac.evaluation.programs.tracing import quietly

__all__ = ["Call", "Rewriter", "Rule", "Symbolic", "Value", "is_random", "same_layout"]

aten = torch.ops.aten


class Symbolic(ABC):
    """A tensor that is known by a formula."""

    like: Tensor
    """A fake tensor of its shape, dtype and device."""

    @abstractmethod
    def dense(self, write: Rewriter) -> Value:
        """Write down its elements."""


Value: TypeAlias = Node | Symbolic


class Call:
    """An operation on values of the new graph, its arguments by name with the defaults filled in."""

    def __init__(
        self, write: Rewriter, target: OpOverload, arguments: dict[str, Any], like: Any = None
    ) -> None:
        self.write, self.target, self.arguments, self._like = write, target, arguments, like
        self.name: str = target._schema.name.partition("::")[2]

    @property
    def like(self) -> Any:
        """A fake result."""
        if self._like is None:
            self._like = self.write.infer(self.target, self.arguments)
        return self._like

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str) -> Any:
        return self.arguments.get(name)

    def again(self, /, **changed: Any) -> Any:
        """The same operation on other arguments."""
        return self.write.apply(self.target, {**self.arguments, **changed})

    @property
    def symbols(self) -> list[tuple[str, Symbolic]]:
        """The arguments that are symbolic; lists of tensors are not looked into."""
        return [(n, a) for n, a in self.arguments.items() if isinstance(a, Symbolic)]


Rule: TypeAlias = Callable[[Call], Any]
"""What a call comes to: a value, a list of values, or None where the rule does not apply."""


class Rewriter:
    """The new graph as far as it is written; equal operations are written once."""

    def __init__(self, graph: Graph, rules: Sequence[Rule]) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.graph, self._rules = graph, rules
        self._written: dict[Hashable, Node] = {}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    # --- what is known of values --------------------------------------------------------------

    def like(self, value: Any) -> Any:
        """A fake tensor like ``value``."""
        return value.like if isinstance(value, Symbolic) else value.meta.get("val")

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(self.like(value).shape)

    def fake(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A fake tensor of this shape, with the dtype and the device of ``like``."""
        with self._mode:
            return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)

    def infer(self, target: OpOverload, arguments: dict[str, Any]) -> Any:
        """The fake result of an operation."""
        args, kwargs = _positional(target, arguments)
        fakes = map_aggregate((tuple(args), kwargs), self._as_fake)
        with self._mode, torch.no_grad():
            return target(*fakes[0], **fakes[1])

    def _as_fake(self, argument: Any) -> Any:
        if not isinstance(argument, (Node, Symbolic)):
            return argument
        like = self.like(argument)
        if not isinstance(like, Tensor) or getattr(like, "fake_mode", None) is self._mode:
            return like
        with self._mode:
            return torch.empty_strided(
                like.shape, like.stride(), dtype=like.dtype, device=like.device
            )

    # --- operations -----------------------------------------------------------------------------

    def __call__(self, target: OpOverload, *args: Any, **kwargs: Any) -> Any:
        """What an operation comes to."""
        return self.apply(target, named(target, args, kwargs))

    def apply(self, target: OpOverload, arguments: dict[str, Any], like: Any = None) -> Any:
        """What an operation comes to, its arguments given by name."""
        call = Call(self, target, arguments, like)
        if not is_random(target):
            for rule in self._rules:
                result = rule(call)
                if result is not None:
                    return result
        if call.symbols:
            dense = {name: self.node(given) for name, given in arguments.items()}
            return self.apply(target, dense)
        return self.write(call)

    def raw(self, target: OpOverload, *args: Any, **kwargs: Any) -> Node:
        """Write an operation down without offering it to the rules."""
        node: Node = self.write(Call(self, target, named(target, args, kwargs)))
        return node

    def write(self, call: Call) -> Any:
        """Write an operation down as it is, unless it is there already."""
        dense = {name: map_aggregate(given, self.node) for name, given in call.arguments.items()}
        args, kwargs = _positional(call.target, dense)
        key = None if is_random(call.target) else _key(call.target, args, kwargs)
        known = None if key is None else self._written.get(key)
        if known is None:
            # What was symbolic has a layout only now.
            as_said = dense == call.arguments
            like = call.like if as_said else self.infer(call.target, dense)
            known = self.graph.call_function(call.target, args, kwargs)
            known.meta["val"] = like
            if key is not None:
                self._written[key] = known
        return known

    def node(self, value: Any) -> Any:
        """A value as a node; what is none comes back as it is."""
        while isinstance(value, Symbolic):
            value = value.dense(self)
        return value

    def item(self, values: Any, index: int) -> Value:
        """One of several results."""
        if not isinstance(values, Node):
            chosen: Value = values[index]
            return chosen
        key = (operator.getitem, values, index)
        if key not in self._written:
            self._written[key] = self.graph.call_function(operator.getitem, (values, index))
            self._written[key].meta["val"] = self.like(values)[index]
        return self._written[key]

    # --- the ways to write what many rules need -----------------------------------------------

    def reshape(self, value: Value, shape: Sequence[int]) -> Any:
        return self(aten.reshape.default, value, list(shape))

    def expand(self, value: Value, shape: Sequence[int]) -> Any:
        return self(aten.expand.default, value, list(shape))

    def permute(self, value: Value, order: Sequence[int]) -> Any:
        return self(aten.permute.default, value, list(order))

    def cast(self, value: Value, like: Tensor) -> Any:
        """``value`` with the dtype of ``like``, broadcast to its shape."""
        if self.like(value).dtype != like.dtype:
            value = self(aten._to_copy.default, value, dtype=like.dtype)
        return self.expand(value, like.shape)

    def remember(self, key: Hashable, node: Node | None = None) -> Node | None:
        """Keep ``node`` under ``key``, or return what was kept there."""
        if node is not None:
            self._written[key] = node
        return self._written.get(key)

    def can_view(self, value: Node, shape: Sequence[int]) -> Tensor | None:
        """A fake view of ``value`` in this shape, None where its strides allow none."""
        like = self.like(value)
        refused = contextlib.suppress(RuntimeError, ValueError)
        with refused, quietly(), torch.no_grad():
            # Fake tensors allow views of expanded ones that PyTorch does not, those on "meta" do not.
            torch.empty_strided(like.shape, like.stride(), device="meta").view(list(shape))
            with self._mode:
                view: Tensor = aten.view.default(self._as_fake(value), list(shape))
            return view
        return None


def is_random(target: Any) -> bool:
    """Whether two calls can differ, or one call can change the next."""
    if not isinstance(target, OpOverload):
        return True
    name = target._schema.name
    said = (
        "rand",
        "bernoulli",
        "normal_",
        "multinomial",
        "uniform",
        "exponential",
        "dropout",
        "rrelu",
    )
    seeded = getattr(torch.Tag, "nondeterministic_seeded", None)
    return seeded in target.tags or (
        any(word in name for word in said) and not name.endswith("_backward")
    )


def named(target: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of its schema, with the defaults."""
    formal = target._schema.arguments
    arguments = {
        argument.name: argument.default_value for argument in formal if argument.has_default_value()
    }
    arguments.update(zip([argument.name for argument in formal], args, strict=False))
    arguments.update(kwargs)
    return {argument.name: arguments[argument.name] for argument in formal}


def _positional(
    target: OpOverload, arguments: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as they are passed, without the defaults at the end."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    kept = 0
    for formal in target._schema.arguments:
        value = arguments[formal.name]
        is_default = formal.has_default_value() and _is(value, formal.default_value)
        if not formal.kwarg_only:
            args.append(value)
            kept = kept if is_default else len(args)
        elif not is_default:
            kwargs[formal.name] = value
    return tuple(args[:kept]), kwargs


def _is(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _key(target: OpOverload, args: Any, kwargs: Any) -> Hashable | None:
    """What two calls have in common if they are the same."""
    key = (target, _frozen(args), _frozen(sorted(kwargs.items())))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _frozen(argument: Any) -> Hashable:
    if isinstance(argument, (list, tuple)):
        return tuple(map(_frozen, argument))
    # 1, 1.0 and True are equal, and so are 0.0 and -0.0, but not the same to an operation.
    if isinstance(argument, (bool, int, float, complex)):
        return type(argument), repr(argument)
    return argument  # type: ignore[no-any-return]


def same_layout(one: Any, other: Any) -> bool:
    """Whether two fake results are alike down to their strides."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same_layout, one, other))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other)
    return (
        one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
    )
