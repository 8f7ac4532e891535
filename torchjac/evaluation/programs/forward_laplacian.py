"""The forward Laplacian: a traced function run on jets, operation by operation.

    primals, d directions  ->  Σ_v D²f[v, v]  for every element of every output

What is traced is the function itself, so a custom `autograd.Function`, `detach` and `no_grad` leave no
mark in the operations. The trace notices them as it is made, `is_plain`; where there were any, only a
comparison with reverse mode can tell whether the operations mean the derivative too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from torchjac.evaluation.programs.jets import Jet, elementwise, general, linear, product, total
from torchjac.evaluation.programs.linearity import INDEPENDENT, factors_of, is_elementwise
from torchjac.evaluation.programs.tracing import for_any_strides
from torchjac.foundations.layout import Layout

__all__ = ["ForwardLaplacian", "RefusedError"]

aten = torch.ops.aten

_SIGNS = {aten.add: 1.0, aten.sub: -1.0}

Place: TypeAlias = "tuple[int, int | None]"
"""Where an argument is: its position, and its place there in a list of tensors."""


class RefusedError(Exception):
    """PyTorch refuses to differentiate an operation so; the message names it and says why."""


class ForwardLaplacian:
    """A graph of ATen operations to be run on jets.

    Args:
        graph: takes the primals and then other tensors, and returns a list of tensors.
        num_primals: how many of them are differentiated by.
        is_plain: whether nothing was noticed that the operations do not show.
    """

    def __init__(self, graph: GraphModule, num_primals: int, *, is_plain: bool) -> None:
        self.nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
        self.inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self.captured = [node for node in graph.graph.nodes if node.op == "get_attr"]
        self.outputs: list[Node] = list(next(iter(reversed(graph.graph.nodes))).args[0])
        self.num_primals, self.is_plain = num_primals, is_plain
        self.kinds = Layout([node.meta["val"] for node in self.outputs]).kinds
        """Shape, dtype and device of every output."""
        self._active = self._find_active()
        self._wanted = self._find_wanted()
        self._last_used = self._find_last_uses()

    def __call__(
        self,
        tensors: Sequence[Tensor],
        captured: Sequence[Tensor],
        directions: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """Push ``directions`` through, and return what has become of their Laplacian.

        Args:
            tensors: the primals and the others.
            captured: the tensors that the nodes `captured` stand for.
            directions: for every primal ``(d, *primal.shape)``, or None for zeros.

        Returns:
            For every output a tensor of its shape, or None for zeros.

        Raises:
            RefusedError: an operation has no second derivative in PyTorch.
        """
        firsts = [*directions, *[None] * (len(tensors) - len(directions))]
        env: dict[Node, Any] = {
            node: tensor if first is None else Jet(tensor, first, None)
            for node, tensor, first in zip(self.inputs, tensors, firsts, strict=True)
        }
        env.update(zip(self.captured, captured, strict=True))
        for node in self.nodes:
            try:
                env[node] = self._step(node, env)
            except NotImplementedError as error:
                raise RefusedError(f"{node.target}: {error}") from error
            except RuntimeError as error:
                if "memory" in str(error):
                    raise
                raise RefusedError(f"{node.target}: {error}") from error
            for used in self._last_used[node]:
                del env[used]
        results = [env[node] for node in self.outputs]
        return [result.second if isinstance(result, Jet) else None for result in results]

    def _step(self, node: Node, env: dict[Node, Any]) -> Any:
        args: Any
        kwargs: Any
        args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
        if node.target is operator.getitem:
            return args[0][args[1]]
        places = list(_jets(args))
        target = for_any_strides(node.target)
        plain = map_aggregate(args, _value)
        value = target(*plain, **kwargs)
        if not places or node not in self._active:
            return value

        def function(*replaced: Tensor) -> Any:
            return target(*_replaced(plain, dict(zip(places, replaced, strict=True))), **kwargs)

        jets = [_at(args, place) for place in places]
        return _joined(
            value, self._rule(node, target, function, places, jets, plain, kwargs, value)
        )

    def _rule(
        self,
        node: Node,
        target: Any,
        function: Callable[..., Any],
        places: list[Place],
        jets: list[Jet],
        args: Any,
        kwargs: Any,
        value: Any,
    ) -> tuple[Any, Any]:
        """The derivatives of what an operation returned, by the rule that fits."""
        wants_first = node in self._wanted
        packet = target.overloadpacket
        if packet in _SIGNS:
            factors = [1.0, _SIGNS[packet] * kwargs.get("alpha", 1)]
            terms = [(factors[at], jet) for (at, _), jet in zip(places, jets, strict=True)]
            return total(terms, value.shape, wants_first=wants_first)
        positions = sorted({position for position, _ in places})
        factors_touched = factors_of(target, positions)
        if factors_touched is not None and len(factors_touched) == 1:
            others = _zeroed(args, factors_touched[0], places)

            def alone(*replaced: Tensor) -> Any:
                return target(
                    *_replaced(others, dict(zip(places, replaced, strict=True))), **kwargs
                )

            return linear(alone, jets, wants_first=wants_first)
        if factors_touched is not None and packet is not aten.mul and len(jets) == 2:
            return product(function, jets, wants_first=wants_first)
        if any(jet.value.is_complex() for jet in jets):
            raise NotImplementedError("a function of complex numbers that is not linear")
        if is_elementwise(target):
            return elementwise(function, jets, value.shape, wants_first=wants_first)
        kept: list[int] = []

        def differentiable(*replaced: Tensor) -> tuple[Tensor, ...]:
            results = _listed(function(*replaced))
            kept[:] = [at for at, r in enumerate(results) if _is_real(r)]
            return tuple([results[at] for at in kept])

        parts = general(differentiable, jets, wants_first=wants_first)
        if isinstance(value, Tensor):
            first, second = [None if part is None else part[0] for part in parts]
            return first, second
        count = len(value)
        spread = [
            None
            if part is None
            else [dict(zip(kept, part, strict=True)).get(k) for k in range(count)]
            for part in parts
        ]
        return spread[0], spread[1]

    # What is known of the graph before it is run

    def _find_active(self) -> set[Node]:
        """The operations whose results vary with the primals."""
        active = set(self.inputs[: self.num_primals])
        for node in self.nodes:
            independent = _name(node) in INDEPENDENT or not _has_real(node.meta.get("val"))
            if not independent and not active.isdisjoint(node.all_input_nodes):
                active.add(node)
        return active

    def _find_wanted(self) -> set[Node]:
        """The nodes whose first derivatives are asked for: something on the way is not linear in them."""
        wanted: set[Node] = set()
        for node in reversed(self.nodes):
            if node in self._active and (node in wanted or not self._is_linear(node)):
                wanted.update(node.all_input_nodes)
        return wanted

    def _is_linear(self, node: Node) -> bool:
        if node.target is operator.getitem:
            return True
        if not isinstance(node.target, OpOverload):
            return False
        if node.target.overloadpacket in _SIGNS:
            return True
        positions = [
            at
            for at, argument in enumerate(node.args)
            if any(isinstance(x, Node) and x in self._active for x in _listed(argument))
        ]
        factors = factors_of(node.target, positions)
        return factors is not None and len(factors) == 1

    def _find_last_uses(self) -> dict[Node, list[Node]]:
        """For every operation, what is not needed any more when it is done."""
        last: dict[Node, Node] = {}
        for node in self.nodes:
            for used in node.all_input_nodes:
                last[used] = node
        found: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for used, node in last.items():
            if used not in self.outputs:
                found[node].append(used)
        return found


def _name(node: Node) -> str:
    target = node.target
    return target._schema.name.partition("::")[2] if isinstance(target, OpOverload) else ""


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _has_real(value: Any) -> bool:
    return any(map(_is_real, _listed(value)))


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, Jet) else argument


def _joined(value: Any, parts: tuple[Any, Any]) -> Any:
    """A result, or several, with their derivatives; what has none is a plain value."""
    if isinstance(value, Tensor):
        return _jet(value, *parts)
    firsts, seconds = [[None] * len(value) if part is None else part for part in parts]
    return [_jet(*whole) for whole in zip(value, firsts, seconds, strict=True)]


def _jet(value: Any, first: Tensor | None, second: Tensor | None) -> Any:
    if not _is_real(value) or (first is None and second is None):
        return value
    return Jet(value, first, second)


def _zeroed(args: Sequence[Any], factor: Sequence[int], places: Sequence[Place]) -> list[Any]:
    """The arguments with zeros for those of a factor that have no derivatives."""
    new = list(args)
    for position in factor:
        argument = args[position] if position < len(args) else None
        if isinstance(argument, (list, tuple)):
            new[position] = [
                item if (position, at) in places else _zeros(item)
                for at, item in enumerate(argument)
            ]
        elif argument is not None and (position, None) not in places:
            new[position] = _zeros(argument)
    return new


def _zeros(argument: Any) -> Any:
    return torch.zeros_like(argument) if isinstance(argument, Tensor) else 0


def _jets(args: Sequence[Any]) -> Iterator[Place]:
    for position, argument in enumerate(args):
        if isinstance(argument, Jet):
            yield position, None
        elif isinstance(argument, (list, tuple)):
            for at, item in enumerate(argument):
                if isinstance(item, Jet):
                    yield position, at


def _at(args: Sequence[Any], place: Place) -> Any:
    position, at = place
    return args[position] if at is None else args[position][at]


def _replaced(args: Sequence[Any], replacements: dict[Place, Any]) -> list[Any]:
    new = list(args)
    for (position, at), replacement in replacements.items():
        if at is None:
            new[position] = replacement
        else:
            new[position] = list(new[position])
            new[position][at] = replacement
    return new
