"""A function on tensors as a graph of ATen operations. All that is private in PyTorch about it is here.

The trace runs on fake tensors, so nothing that depends on values can be written into the graph: a
function that looks at them is refused. What the function captured stays a tensor of its own in the
graph (a ``get_attr`` node), so that changes in place are seen by every later run.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchjac.evaluation.surroundings import exclusively, is_fake, without_transforms
from torchjac.foundations.collection import uncollected
from torchjac.foundations.compiler import uncompiled
from torchjac.foundations.pytree import flatten
from torchjac.foundations.strides import dense_stride, is_dense

__all__ = [
    "UntraceableError",
    "as_functional",
    "asks_for_strides",
    "captured_tensors",
    "draws_random_numbers",
    "for_any_strides",
    "quietly",
    "trace",
]

TensorFunction: TypeAlias = Callable[..., Any]

_WITHOUT_STRIDES = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}

# They update what they are given without saying so in their schema, where they are told to train.
_UPDATES_UNSEEN = {
    "aten::native_batch_norm": 5,
    "aten::cudnn_batch_norm": 5,
    "aten::miopen_batch_norm": 5,
}
# What PyTorch says where a tensor without values is asked for its memory.
_NO_VALUES = ("data pointer", "data_ptr", ".numpy() is not supported", "unallocated storage")


class UntraceableError(Exception):
    """The function cannot be written down as a graph; the message says why, as a clause."""


def trace(function: TensorFunction, tensors: Sequence[Tensor]) -> GraphModule:
    """Write down what ``function`` does to tensors like ``tensors``.

    Args:
        function: takes as many tensors and returns a tree of tensors and None.
        tensors: their shapes, strides, dtypes and devices matter, their values do not.

    Returns:
        A graph without operations that change anything in place.

    Raises:
        UntraceableError: the function looks at values, leaves PyTorch, or changes what it captured.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    if not all(map(is_dense, tensors)):
        raise UntraceableError("it takes a sparse or nested tensor")

    calls = _Calls()

    def watched(*tensors: Tensor) -> Any:
        with _Watched(calls), calls:
            return function(*tensors)

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        # Fresh ones, so that two arguments never share their memory.
        fakes = [
            torch.empty_strided(t.size(), dense_stride(t), dtype=t.dtype, device=t.device)
            for t in tensors
        ]
    with (
        exclusively(),
        uncompiled(),
        without_transforms(),
        torch.no_grad(),
        quietly(),
        uncollected(),
    ):
        try:
            graph = make_fx(watched, tracing_mode="fake")(*fakes)
        except UntraceableError:
            raise
        except Exception as error:
            raise UntraceableError(_reason(error)) from error
    _complete(graph, mode)
    _refuse_changes(graph)
    changes = any(_changed_by(node) for node in graph.graph.nodes)
    graph.meta[_STRIDES] = calls.asks_for_strides or (changes and calls.may_copy)
    if asks_for_strides(graph) and any(t.stride() != dense_stride(t) for t in tensors):
        raise UntraceableError("it asks for strides, and a trace is made for those of copies")
    return graph


_STRIDES = "torchjac_asks_for_strides"


def asks_for_strides(graph: GraphModule) -> bool:
    """Whether what was traced could be something else for tensors with other strides."""
    return bool(graph.meta.get(_STRIDES))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep PyTorch from logging what a function cannot do on fake tensors: the plan says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


_CAPTURED = "it looks at values of a captured tensor"
# Tensors of numbers that the function itself writes down are lifted into a trace, and never change.
_LIFTS = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default}


def _named(*names: str) -> set[Any]:
    """The methods and functions of these names, as far as PyTorch has them."""
    return {getattr(of, name) for of in (Tensor, torch) for name in names if hasattr(of, name)}


_WAYS_OUT = _named("tolist", "numpy", "__array__", "data_ptr", "__dlpack__", "untyped_storage")
_ASKED = {inspect.getattr_static(Tensor, name).__get__ for name in ("grad", "_version")}
_STRIDED = _named(
    "stride", "is_contiguous", "storage_offset", "dim_order", "as_strided", "as_strided_"
)
_STRIDED |= _named("as_strided_scatter", "as_strided_copy", "is_set_to", "untyped_storage", "set_")
# Views or copies, as strides will have it: whoever writes into one can tell which.
_MAY_COPY = _named("reshape", "reshape_as", "flatten", "ravel", "contiguous", "to")
_ABOUT_STRIDES = _STRIDED | _MAY_COPY
# PyTorch switches all modes off for it, so that nothing of it is seen later.
_INTO_TEXT = {Tensor.__repr__, Tensor.__format__}


def _is_our_own(frame: Any) -> bool:
    """Whether a call is from the derivative around the function, whose results hold for any strides."""
    name: str = frame.f_globals.get("__name__", "")
    return name.startswith(("torchjac.evaluation.", "torchjac.foundations."))


class _Calls(TorchFunctionMode):
    """Sees what tensors are asked for where no operation is dispatched for it: values, strides."""

    asks_for_strides = False
    may_copy = False
    """Whether something was called that returns a view or a copy."""
    reads_list: bool | None = None
    """Whether captured tensors are in a list that is given to the call in progress, if one is seen."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func in _ABOUT_STRIDES and not _is_our_own(sys._getframe(1)):
            self.asks_for_strides |= func in _STRIDED
            self.may_copy |= func in _MAY_COPY
        if func in _INTO_TEXT:
            raise UntraceableError("it turns a tensor into text")
        if func in _ASKED and not all(map(is_fake, _tensors(args[:1]))):
            raise UntraceableError(
                "it looks at what belongs to a captured tensor, its gradient or version"
            )
        if func in _WAYS_OUT and not all(map(is_fake, _tensors(args[:1]))):
            raise UntraceableError(_CAPTURED)
        lists = [a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple))]
        before, self.reads_list = self.reads_list, not all(map(is_fake, _tensors(lists)))
        try:
            return func(*args, **kwargs)
        finally:
            self.reads_list = before


class _Watched(TorchDispatchMode):
    """Makes zeros in earnest of those that autograd invents: as fake tensors these lose their device.

    A captured tensor has values, and what is made of a single number remembers them, as fake tensors and as
    proxies: what looks at them would write them into the graph. So would a list of numbers and captured
    tensors that is made a tensor of.
    """

    def __init__(self, calls: _Calls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls
        self._of_captured: dict[int, Tensor] = {}  # kept alive, so that their ids stay taken

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if func is torch.ops.aten._efficientzerotensor.default:
            func = torch.ops.aten.zeros.default
        if func is torch.ops.aten.lift_fresh.default:
            self._refuse_list()
        captured = func not in _LIFTS and any(map(self._is_of_captured, _tensors((args, kwargs))))
        if captured and torch.Tag.data_dependent_output in func.tags:
            raise UntraceableError(_CAPTURED)
        result = func(*args, **(kwargs or {}))
        if captured:
            self._of_captured.update({id(t): t for t in _tensors(result)})
        return result

    def _refuse_list(self) -> None:
        if self._calls.reads_list is None:
            raise UntraceableError(
                "it calls an old constructor such as torch.Tensor([...]), into which a trace does not see "
                "as it does into torch.tensor([...])"
            )
        if self._calls.reads_list:
            raise UntraceableError(_CAPTURED)

    def _is_of_captured(self, tensor: Tensor) -> bool:
        return not is_fake(tensor) or id(tensor) in self._of_captured


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, Tensor)]


def _complete(graph: GraphModule, mode: Any) -> None:
    """Give the captured tensors of a graph the fake values that all other nodes have."""
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            if is_fake(getattr(graph, node.target)):
                raise UntraceableError(
                    "it takes tensors where a trace cannot follow, to another thread"
                )
            if not is_dense(getattr(graph, node.target)):
                raise UntraceableError("it captures a sparse or nested tensor")
            try:
                node.meta["val"] = mode.from_tensor(getattr(graph, node.target), static_shapes=True)
            except Exception as error:
                raise UntraceableError(
                    f"it captures a tensor of a kind of its own ({error})"
                ) from error


def _reason(error: Exception) -> str:
    from torch._subclasses import fake_tensor

    if isinstance(
        error,
        (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException),
    ):
        return f"it looks at values ({error.func})"
    text = str(error).strip().splitlines()
    line = text[0] if text else ""
    if any(said in str(error) for said in _NO_VALUES):
        return f"it takes values out of PyTorch ({line[:120]})"
    # The last is how torch 2.4 fails at it.
    kinds = ("GuardOnDataDependentSymNode", "UserError")
    if type(error).__name__ in kinds or "create_unbacked_symint" in line:
        return f"it looks at values ({line[:120]})"
    return f"{type(error).__name__}: {line[:160]}"


def for_any_strides(target: Any) -> Any:
    """The operation to run for ``target`` under vmap, where strides are others than those traced."""
    return _WITHOUT_STRIDES.get(target, target)


def captured_tensors(graph: GraphModule) -> dict[str, Tensor]:
    """The tensors that a graph holds, by the names of its attributes."""
    names = dict.fromkeys(node.target for node in graph.graph.nodes if node.op == "get_attr")
    return {name: getattr(graph, name) for name in names}


def draws_random_numbers(graph: GraphModule) -> bool:
    """Whether two runs of a graph can differ."""
    return any(
        torch.Tag.nondeterministic_seeded in node.target.tags
        for node in graph.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    )


def _schema(node: Node) -> Any:
    return node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None


def _changed_by(node: Node) -> list[Node]:
    """The arguments that an operation changes."""
    schema = _schema(node)
    if node.op != "call_function" or schema is None:
        return []
    at = _UPDATES_UNSEEN.get(schema.name)
    if at is not None and len(node.args) > at and node.args[at]:
        return [statistic for statistic in node.args[3:5] if isinstance(statistic, Node)]
    if not schema.is_mutable:
        return []
    given = [
        node.args[k] if k < len(node.args) else node.kwargs.get(argument.name)
        for k, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [argument for argument in given if isinstance(argument, Node)]


def _whose_memory(node: Node) -> Node:
    """The node that made the memory which ``node`` is a view of."""
    schema = _schema(node)
    if schema is None or not node.args or not isinstance(node.args[0], Node):
        return node
    if schema.returns and schema.returns[0].alias_info is not None:
        return _whose_memory(node.args[0])
    return node


def _refuse_changes(graph: GraphModule) -> None:
    """Refuse a function whose run has a lasting effect beside its result."""
    for node in graph.graph.nodes:
        for changed in _changed_by(node):
            if _whose_memory(changed).op == "get_attr":
                raise UntraceableError(f"it changes a tensor that it captured ({node.target})")


def as_functional(graph: GraphModule) -> GraphModule:
    """The same graph without operations in place; itself, if it has none."""
    if not any(_changed_by(node) for node in graph.graph.nodes):
        return graph
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]

    def functional(*tensors: Tensor) -> Any:
        return torch.func.functionalize(graph.forward, remove="mutations")(*tensors)

    found = trace(functional, inputs)
    found.meta[_STRIDES] = asks_for_strides(graph)
    for node in list(found.graph.nodes):
        if node.target is torch.ops.aten.copy.default:
            _replace_copy(found, node)
        elif node.target in _SLICES:
            _bound(node)
    found.recompile()
    return found


# Where their end is among the arguments, and what has the length that it counts along.
_SLICES = {
    torch.ops.aten.slice.Tensor: 3,
    torch.ops.aten.slice_scatter.default: 4,
    torch.ops.aten.slice_backward.default: 4,
}


def _bound(node: Node) -> None:
    """Let a slice end where its tensor does: vmap computes with what stands there."""
    at = _SLICES[node.target]  # type: ignore[index]
    if len(node.args) <= at or not isinstance(node.args[at], int):
        return
    whole: Any = (
        node.args[1] if node.target is torch.ops.aten.slice_backward.default else node.args[0]
    )
    sides = whole.meta["val"].shape if isinstance(whole, Node) else whole
    side = sides[node.args[at - 2]]
    node.update_arg(at, min(node.args[at], side))  # type: ignore[type-var]


def _replace_copy(graph: GraphModule, node: Node) -> None:
    """Write what is copied in place of the copy, for which PyTorch has no derivative."""
    into, source = node.args[:2]
    assert isinstance(into, Node)
    assert isinstance(source, Node)
    aten, made, like = torch.ops.aten, source, into.meta["val"]
    with graph.graph.inserting_before(node):
        if source.meta["val"].dtype != like.dtype or source.meta["val"].device != like.device:
            options = {"dtype": like.dtype, "device": like.device}
            made = graph.graph.call_function(aten._to_copy.default, (made,), options)
            made.meta["val"] = source.meta["val"].to(**options)
        if made.meta["val"].shape != like.shape:
            spread = graph.graph.call_function(aten.expand.default, (made, list(like.shape)))
            spread.meta["val"] = made.meta["val"].expand(like.shape)
            made = spread
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)
