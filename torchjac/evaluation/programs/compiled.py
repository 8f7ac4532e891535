"""A traced graph as compiled code, called with nothing in between.

`torch.compile` looks at every call anew: guards, then a wrapper for autograd, then the compiled code.
A traced derivative needs neither, for its caller knows what it is called with. So

- a graph of small tensors becomes one C++ function of scalars, see `straight_line`;
- any other goes to TorchInductor by itself, its small matrix products as multiplications and sums, which
  Inductor fuses with what is around them; and what is called is the function that Inductor wrote, on a GPU
  as one launch if it is small, see `replayed`.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule

from torchjac.errors import UnsupportedError
from torchjac.evaluation.programs.gathers import ENTRIES
from torchjac.evaluation.programs.replayed import replayed
from torchjac.evaluation.programs.small_products import with_small_products
from torchjac.evaluation.programs.straight_line import ScalarCode, UnfitError, straight_line
from torchjac.evaluation.programs.tracing import captured_tensors, draws_random_numbers
from torchjac.evaluation.surroundings import (
    exclusively,
    has_values,
    without_modes,
    without_transforms,
)

__all__ = ["compile_graph"]

Run: TypeAlias = Callable[..., Sequence[Tensor]]

_CONFIG: dict[str, Any] = {
    # The caller has checked what these would check again at every call.
    "size_asserts": False,
    "alignment_asserts": False,
    # Draw the random numbers that eager code draws.
    "fallback_random": True,
    # Captured tensors may change.
    "freezing": False,
    # Theirs hand out memory that the next call writes into.
    "triton.cudagraphs": False,
    # Half the overhead of a call into C++ where there is little else to call, at twice the wait.
    "cpp_wrapper": False,
}


def compile_graph(graph: GraphModule, tensors: Sequence[Tensor]) -> Run:
    """Compile a graph of ATen operations.

    Args:
        graph: functional, from tensors to a flat tuple of tensors; it is left as it is.
        tensors: like those that it will be called with.

    Returns:
        A function of as many tensors, and after them those that the graph captured, in the order of
        `captured_tensors`. It **trusts** its arguments: each must have the shape, the strides, the dtype
        and the device of the one that was here, or it reads other memory. It is to be called where no
        gradients are recorded, and no transform or dispatch mode is active. Its results are dense, and
        new memory at every call.

    Raises:
        UnsupportedError: PyTorch is older than 2.4, there is no C++ compiler, or Inductor fails.

    What is multiplied with a zero that the graph itself writes down, such as those of seeds, is zero, even
    if it is infinite.
    """
    if not _supported():
        raise UnsupportedError(
            f"compiling a derivative takes PyTorch 2.4 or newer, and this is {torch.__version__}. "
            "Run it without compiling it, or install a newer PyTorch."
        )
    try:
        with exclusively(), without_transforms(), without_modes(), torch.no_grad(), _calmly():
            given = [*tensors, *captured_tensors(graph).values()]
            run = _compile(graph, given)
            can_replay = has_values(given) and not draws_random_numbers(graph)
            return replayed(run, given) if can_replay else run
    except Exception as error:
        raise UnsupportedError(_reason(error)) from error


@contextlib.contextmanager
def _calmly() -> Iterator[None]:
    """Keep to itself what PyTorch warns of its own parts: no code of the user's runs here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _supported() -> bool:
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 4)


def _compile(graph: GraphModule, tensors: Sequence[Tensor]) -> Run:
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode(allow_non_fake_inputs=True):
        # Fresh ones, so that no two share their memory: Inductor would make one argument of them.
        likes = [
            torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=t.device)
            for t in tensors
        ]
    inner: list[tuple[int, Any]] = []

    def catch(graph: GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        compiled = compile_fx_inner(graph, inputs, **options)
        inner.append((len(inputs), compiled))
        return compiled

    with config.patch({key: value for key, value in _CONFIG.items() if _has(config, key)}):
        table = with_small_products(select_decomp_table())
        apart = functools.partial(_run_apart, graph)
        lifted = make_fx(apart, decomposition_table=table, tracing_mode="fake")(*likes)
        lifted.graph.eliminate_dead_code()
        lifted.recompile()
        with contextlib.suppress(UnfitError):
            return _load(straight_line(lifted, likes))
        checked = {"assert_indirect_indexing": not _reads_own_places_alone(graph, lifted)}
        with config.patch(checked):
            outer: Any = compile_fx(lifted, likes, inner_compile=catch, decompositions=table)
    return _innermost(outer, inner, len(likes))


def _reads_own_places_alone(graph: GraphModule, lifted: GraphModule) -> bool:
    """Whether all indices are those of entries, which fit; else they are checked at every call."""
    names = list(captured_tensors(graph))
    placeholders = [node for node in lifted.graph.nodes if node.op == "placeholder"]
    own = {
        node
        for node, name in zip(placeholders[len(placeholders) - len(names) :], names, strict=True)
        if name.startswith(ENTRIES)
    }
    return all(
        node in own or not _may_be_indices(node.meta.get("val")) for node in lifted.graph.nodes
    )


def _may_be_indices(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_may_be_indices, value))
    return isinstance(value, Tensor) and not value.is_floating_point()


def _load(code: ScalarCode) -> Run:
    """Compile scalar code with Inductor's compiler and its cache, and allocate for it."""
    try:
        from torch._C._dynamo.guards import _empty_strided_cpu as empty  # type: ignore[attr-defined]
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        kernel = CppPythonBindingsCodeCache.load_pybinding(code.pointers, code.source)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UnfitError("PyTorch has another way of loading C++") from error
    kinds = [(tuple(like.shape), like.stride(), like.dtype) for like in code.results]

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        results = [empty(*kind) for kind in kinds]
        kernel(*tensors, *results)
        return results

    return run


def _has(config: Any, key: str) -> bool:
    *path, name = key.split(".")
    return hasattr(functools.reduce(getattr, path, config), name)


def _run_apart(graph: GraphModule, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Run a graph on its tensors and its captured ones, into memory that is none of theirs."""
    names = list(captured_tensors(graph))
    split = len(tensors) - len(names)
    results = _Lifted(graph, dict(zip(names, tensors[split:], strict=True))).run(*tensors[:split])
    taken = {_memory(tensor) for tensor in tensors}
    return tuple([result.clone() if _memory(result) in taken else result for result in results])


class _Lifted(torch.fx.Interpreter):
    """Runs a graph with other tensors in the place of those that it captured."""

    def __init__(self, graph: GraphModule, captured: dict[str, Tensor]) -> None:
        super().__init__(graph)
        self._captured = captured

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        del args, kwargs
        return self._captured[target]


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _innermost(outer: Callable[..., Any], inner: Sequence[tuple[int, Any]], count: int) -> Run:
    """The function that Inductor wrote, without PyTorch's wrappers, where there is just the one.

    It takes a list and empties it. The wrappers around it would change arguments that alias, and views
    of arguments among the results: there are none here.
    """
    written = getattr(inner[0][1], "current_callable", None) if len(inner) == 1 else None
    if written is None or inner[0][0] != count:
        return outer

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        return written(list(tensors))  # type: ignore[no-any-return]

    return run


def _reason(error: Exception) -> str:
    if type(error).__name__ == "InvalidCxxCompiler":
        return (
            "compiling a derivative takes a C++ compiler, and PyTorch found none. Install one (g++, "
            "clang or MSVC), say where it is with the environment variable CXX, or run the derivative "
            "without compiling it."
        )
    return (
        f"PyTorch could not compile the derivative ({type(error).__name__}: "
        f"{next(iter(str(error).splitlines()), '')[:200]}). Run it without compiling it."
    )
