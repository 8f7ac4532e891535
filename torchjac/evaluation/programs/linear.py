"""The derivative of a function as a graph that is linear in its seeds.

NOTE [One trace, both directions]
What is traced is one backward pass, from a cotangent u to uᵀ·J, with the evaluation before it. Every
operation after the seed is linear in the seed. So the graph is a product of linear maps, and a stretch
of it between two cuts can be multiplied with seeds from either side: along the trace, as it stands, or
against it, by transposing it (differentiating a linear map by what it is applied to). That is forward
mode without a single forward rule: the rules that were traced are those of reverse mode, which PyTorch
has for more operations and which are wrong less often. A derivative that a custom `autograd.Function`
defines, or that `no_grad` and `detach` hold back, is in the trace as it is.

Source: Radul, Paszke, Frostig, Johnson & Maclaurin, *You Only Linearize Once* (2023), transpose a traced
forward pass; here it is the other way round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from torchjac.evaluation.engines import Direction, Engine, FlatFunction, linearize
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.programs.seedwise import is_linear
from torchjac.evaluation.programs.tracing import (
    UntraceableError,
    as_functional,
    asks_for_strides,
    for_any_strides,
    trace,
)
from torchjac.foundations.seeds import Chunk

__all__ = ["LinearGraph", "Point", "linear_graph"]


class LinearGraph:
    """One traced backward pass: an evaluation, and a linear map of the cotangents behind it.

    Args:
        graph: from primals, other tensors and cotangents to the outputs.
        function: what was traced, as it is after the trace.
        num_seeds: how many of the last placeholders are cotangents.
        num_values: how many of the outputs are values, of which the cotangents are.
        num_carried: how many come along after them; the rest are the products, or None.
    """

    def __init__(
        self,
        graph: GraphModule,
        function: FlatFunction,
        num_seeds: int,
        num_values: int,
        num_carried: int,
    ) -> None:
        self.graph, self.function = graph, function
        nodes = list(graph.graph.nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        split = len(placeholders) - num_seeds
        self.inputs, self.seeds = placeholders[:split], placeholders[split:]
        returned = list(nodes[-1].args[0])
        self.values: list[Node] = returned[:num_values]
        self.carried: list[Node] = returned[num_values : num_values + num_carried]
        self.products: list[Node | None] = returned[num_values + num_carried :]
        self.asks_for_strides = asks_for_strides(graph)
        self.linear = _between(nodes, self.seeds, [p for p in self.products if p is not None])
        """The operations on the way from the seeds to the products, in order."""

    def stretch(
        self, start: Sequence[Node], end: Sequence[Node]
    ) -> tuple[Callable[[Sequence[Tensor], Sequence[Tensor]], Any], list[Tensor], list[Tensor]]:
        """The map from one cut to a later one, as a function of what it reads beside its seeds.

        Returns:
            ``function(read, seeds)``, and what tensors it takes for either.
        """
        nodes = _between(self.graph.graph.nodes, start, end)
        own = {*nodes, *start}
        read = list(
            dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in own)
        )

        def function(tensors: Sequence[Tensor], seeds: Sequence[Tensor]) -> Any:
            return _Stretch(dict(zip(read, tensors, strict=True)), nodes, start, end)(*seeds)

        return function, list(map(_like, read)), list(map(_like, start))

    @functools.cached_property
    def nonlinear(self) -> str | None:
        """An operation after the seeds that is not linear as it is written, so that it has no transpose.

        The whole is linear all the same: the backward of ``logcumsumexp`` goes through logarithms.
        """
        seeded = {*self.seeds, *self.linear}
        return next((str(n.target) for n in self.linear if not is_linear(n, seeded)), None)

    def at(self, tensors: Sequence[Tensor]) -> Point:
        """Evaluate all that does not depend on seeds."""
        env: dict[Node, Any] = dict(zip(self.inputs, tensors, strict=True))
        seeded = set(self.seeds)
        for node in self.graph.graph.nodes:
            if node.op == "get_attr":
                env[node] = getattr(self.graph, node.target)
            elif node.op == "call_function":
                if seeded.isdisjoint(node.all_input_nodes):
                    env[node] = _result(node, env)
                else:
                    seeded.add(node)
        return Point(self, env)


class Point:
    """A linear graph where the function has been evaluated: ready to be multiplied with seeds."""

    def __init__(self, linear: LinearGraph, env: dict[Node, Any]) -> None:
        self._linear, self._env = linear, env
        self.function, self.seeds, self.products = linear.function, linear.seeds, linear.products
        self.values = [env[node] for node in linear.values]
        self.carried = [env[node] for node in linear.carried]

    def evaluated(self) -> tuple[list[Tensor], list[Tensor]]:
        """What the function itself returned: its differentiable outputs, and what comes along."""
        if not isinstance(self.function, Jacobian):
            return self.values, self.carried
        count = self.function.num_values
        return self.carried[:count], self.carried[count:]

    def engine(self, direction: Direction, primals: Sequence[Tensor]) -> Engine:
        """The whole map: from the values to the primals, or back."""
        linear = self._linear
        self._refuse(direction)
        run = _Stretch(self._env, linear.linear, linear.seeds, linear.products)
        found = _Traced(run, direction, self.values, primals)
        found.carried = self.carried
        return found

    def stretch(self, direction: Direction, start: Sequence[Node], end: Sequence[Node]) -> Engine:
        """The map from one cut to a later one, or back."""
        self._refuse(direction)
        nodes = _between(self._linear.graph.graph.nodes, start, end)
        run = _Stretch(self._env, nodes, start, end)
        likes = [[_like(node) for node in side] for side in (start, end)]
        return _Traced(run, direction, *likes)

    def _refuse(self, direction: Direction) -> None:
        if direction == "forward" and (op := self._linear.nonlinear):
            raise UntraceableError(f"its backward pass is not written as a linear map ({op})")


class _Stretch:
    """The linear map from the tensors of one cut to those of another."""

    def __init__(
        self,
        env: dict[Node, Any],
        nodes: Sequence[Node],
        start: Sequence[Node],
        end: Sequence[Node | None],
    ) -> None:
        self._env, self._nodes, self._start, self._end = env, nodes, start, end

    @property
    def is_zero(self) -> bool:
        """Whether no product depends on any seed."""
        return all(node is None for node in self._end)

    def __call__(self, *seeds: Tensor) -> tuple[Tensor | None, ...]:
        env = {**self._env, **dict(zip(self._start, seeds, strict=True))}
        for node in self._nodes:
            env[node] = _result(node, env)
        return tuple([None if node is None else env.get(node) for node in self._end])


class _Traced(Engine):
    """Passes over a stretch of a linear graph: along it, in reverse mode, or against it."""

    keeps_graph = True
    evaluates_anew = False

    def __init__(
        self,
        run: _Stretch,
        direction: Direction,
        values: Sequence[Tensor],
        primals: Sequence[Tensor],
    ) -> None:
        self._run, self.direction = run, direction
        self.values, self.primals, self.carried = values, primals, ()

    def multiply(self, seeds: Chunk, *, last: bool) -> list[Tensor | None]:
        del last
        if self.direction == "reverse":
            return list(self._run(*_filled(seeds, self.values)))
        if self._run.is_zero:
            return [None] * len(self.values)
        reached: list[int] = []

        def present(*cotangents: Tensor) -> list[Tensor]:
            products = self._run(*cotangents)
            reached[:] = [at for at, product in enumerate(products) if product is not None]
            return [product for product in products if product is not None]

        zeros = list(map(_zeros, self.values))
        likes, transposed = torch.func.vjp(present, *zeros)[:2]
        tangents = _filled(seeds, self.primals)
        given = [tangents[at].to(like.dtype) for at, like in zip(reached, likes, strict=True)]
        return list(transposed(given))


def _filled(seeds: Chunk, likes: Sequence[Tensor]) -> list[Tensor]:
    return [seeds[at] if at in seeds else _zeros(like) for at, like in enumerate(likes)]


def _zeros(like: Tensor) -> Tensor:
    # Not zeros_like: what stands for a tensor here may be a fake one of an earlier trace.
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)


def _like(node: Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _result(node: Node, env: dict[Node, Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
    target = for_any_strides(node.target)
    return target(*args, **kwargs)


def _between(
    nodes: Iterable[Node], start: Sequence[Node], end: Iterable[Node | None]
) -> list[Node]:
    """The operations that depend on ``start`` and that ``end`` depends on, in order."""
    ahead: set[Node] = set(start)
    after: list[Node] = []
    for node in nodes:
        if (
            node not in ahead
            and node.op == "call_function"
            and not ahead.isdisjoint(node.all_input_nodes)
        ):
            ahead.add(node)
            after.append(node)
    wanted = {node for node in end if node is not None}
    stops = set(start)
    found = []
    for node in reversed(after):
        if node in wanted:
            found.append(node)
            wanted.update(n for n in node.all_input_nodes if n not in stops)
    return found[::-1]


def linear_graph(
    function: Callable[[Sequence[Tensor]], FlatFunction],
    primals: Sequence[Tensor],
    others: Sequence[Tensor],
) -> LinearGraph:
    """Trace one backward pass of a function.

    Args:
        function: gives, for the tensors that are not differentiated by, the function of those that are.
        primals: what it is differentiated by.
        others: the tensors that it takes beside them.

    Raises:
        UntraceableError: see `trace`.
    """
    counts: list[int] = []
    traced: list[FlatFunction] = []
    n = len(primals)

    def backward(*tensors: Tensor) -> Any:
        flat = function(tensors[n:])
        engine = linearize(flat, tensors[:n], "reverse")
        # Stand-ins, which become arguments of the graph.
        seeds = [value.new_empty(value.shape) for value in engine.values]
        products = engine.multiply(dict(enumerate(seeds)), last=True)
        counts[:], traced[:] = [len(seeds), len(engine.carried)], [flat]
        return (*seeds, *engine.values, *engine.carried, *products)

    graph = trace(backward, [*primals, *others])
    num_values, num_carried = counts
    returned = list(_output(graph).args[0])  # type: ignore[arg-type]
    _make_placeholders(graph, returned[:num_values])
    # Where a product is a cotangent as it is, a placeholder stands there now.
    returned = list(_output(graph).args[0])  # type: ignore[arg-type]
    _output(graph).args = (tuple(returned[num_values:]),)
    graph.recompile()
    graph = as_functional(graph)
    graph.graph.eliminate_dead_code()
    return LinearGraph(graph, traced[0], num_values, num_values, num_carried)


def _output(graph: GraphModule) -> Node:
    output: Node = next(iter(reversed(graph.graph.nodes)))
    return output


def _make_placeholders(graph: GraphModule, stand_ins: Sequence[Node]) -> None:
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for number, node in enumerate(stand_ins):
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"seed_{number}")
        last.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
