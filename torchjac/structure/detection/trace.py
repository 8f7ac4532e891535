"""Running a linear map on tensors without values, op by op. All that is private in PyTorch is here.

Below every transform of `torch.func`, and below autograd, ops reach a dispatch mode as they will
really run. There each op is shown to the interpreter, after it ran on fake tensors to learn the
shapes of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from torchjac.errors import StructureError
from torchjac.foundations.collection import uncollected
from torchjac.foundations.compiler import uncompiled
from torchjac.structure.detection import rules  # noqa: F401 - fills the registry
from torchjac.structure.detection.constants import Constant
from torchjac.structure.detection.index_sets import IndexSets
from torchjac.structure.detection.interpret import Interpreter, facts_of, tensors_in
from torchjac.structure.detection.matrices import FORMS, OF_SPARSE, entries_of
from torchjac.structure.detection.questions import ADVICE, asks_in_vain, looks_at_values

try:
    from torch._decomp import decomposition_table
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensor,
        FakeTensorMode,
        UnsupportedFakeTensorException,
        UnsupportedOperatorException,
    )
    from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
except ImportError as error:  # pragma: no cover - torch 2.0
    raise StructureError(
        'sparsity="detect" needs torch 2.1 or later; give the pattern by hand, or pass sparsity=None'
    ) from error

__all__ = ["Detected", "linear_pattern"]

LinearMap: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence["Tensor | None"]]
"""Of primals and seeds; linear in the seeds."""

_METADATA = {
    "prim::device",
    "prim::layout",
    "aten::is_same_size",
    "aten::_has_same_storage_numel",
    "aten::sym_size",
    "aten::sym_stride",
    "aten::sym_numel",
    "aten::sym_storage_offset",
    "aten::dim",
    "aten::size",
    "aten::stride",
    "aten::is_contiguous",
}
_TAKES_MASKS = {
    f"aten::{name}"
    for name in ("index", "_unsafe_index", "index_put", "_unsafe_index_put", "_index_put_impl")
}
_ZEROS = torch.ops.aten.zeros.default
# Said where a tensor without values is asked for its memory.
_NO_VALUES = (
    "data pointer",
    "data_ptr",
    ".numpy() is not supported",
    "unallocated storage",
    "data is not allocated",
)


class Detected(NamedTuple):
    """Where a linear map can have nonzeros."""

    matrix: Any
    """Boolean SciPy CSR matrix: the blocks of the outputs that exist, one below another."""
    blocks: tuple[Any, ...]
    """For each output such a matrix of its elements by all seed elements; None for None."""
    unknown: tuple[str, ...]
    """The ops that have no rule and count as dense."""
    nodes: int
    """How many ops handed on a dependence."""
    constants: tuple[Tensor, ...]
    """Captured tensors whose values shaped the pattern: it holds while these do not change."""


def linear_pattern(
    function: LinearMap, primals: Sequence[Tensor], seeds: Sequence[Tensor]
) -> Detected:
    """Find where the matrix of a linear map can have nonzeros, for all values of its primals.

    ``function`` runs once, on tensors without values. What it captures keeps its values: an index or
    a constant matrix counts with its zeros, but a tensor that requires grad does not, for it is there
    to be changed.

    Args:
        function: ``function(primals, seeds) -> outputs``, linear in the seeds, such as a JVP, a VJP or
            a Hessian-vector product, computed with `torch.func` or with `torch.autograd.grad`. An
            output may be None.
        primals: where the map is taken; only shapes, dtypes and devices matter.
        seeds: the same of what it is applied to.

    Returns:
        The pattern, which is safe: an op without a rule counts as dense.

    Raises:
        StructureError: the function looks at values, or the pattern is effectively dense.

    Example:
        >>> import torch
        >>> from torchjac.structure.detection import linear_pattern
        >>> def jvp(primals, tangents):
        ...     return [torch.func.jvp(torch.diff, tuple(primals), tuple(tangents))[1]]
        >>> x = torch.zeros(4)
        >>> linear_pattern(jvp, [x], [x]).matrix.toarray().astype(int)
        array([[1, 1, 0, 0],
               [0, 1, 1, 0],
               [0, 0, 1, 1]])
    """
    columns = sum(seed.numel() for seed in seeds)
    if columns >= 2**31:
        raise StructureError(f"{columns} seed elements are too many to detect a pattern; {ADVICE}")
    mode = _Watch(Interpreter(columns, _disable_current_modes))
    with mode.fake:
        # Like the primals, but never the same storage as a tensor that the function captured.
        points = [_like(primal) for primal in primals]
        inputs = [torch.empty(s.shape, dtype=s.dtype, device=s.device) for s in seeds]
        first = 0
        for tensor in inputs:
            sets = IndexSets.identity(tensor.numel(), first, columns)
            mode.interpreter.storages.write(tensor, sets)
            first += tensor.numel()
        with uncompiled(), mode, _as_structure_error(), uncollected():
            outputs = function(points, inputs)
    return mode.detected(outputs)


def _like(primal: Tensor) -> Tensor:
    return torch.empty_strided(
        primal.size(), primal.stride(), dtype=primal.dtype, device=primal.device
    )


class _Watch(TorchDispatchMode):
    """Shows every op to the interpreter."""

    def __init__(self, interpreter: Interpreter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.interpreter = interpreter
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._captured: dict[int, tuple[Tensor, Tensor]] = {}
        self._forms: dict[int, tuple[Tensor, Tensor]] = {}
        self._taking_apart: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FORMS and args[0].layout is not torch.strided:
            return self._formed(func, args, kwargs)
        func = OF_SPARSE.get(func, func)
        facts = facts_of(func)
        args = tuple(map(self._faked, args))
        if kwargs:
            kwargs = {name: self._faked(value) for name, value in kwargs.items()}
        if facts.qualified in _METADATA:
            return func(*args, **kwargs)
        if func is torch.ops.aten._efficientzerotensor.default:
            # Without values these lose their device on the way through autograd; and zeros are known.
            func, facts = _ZEROS, facts_of(_ZEROS)
        if facts.name == "aten::masked_select":
            with self:
                return _selected(*args)
        if facts.name in _TAKES_MASKS:
            args = (args[0], self._without_masks(args[1]), *args[2:])
        operands = tensors_in(args)
        if kwargs:
            operands += tensors_in(kwargs.values())
        if (
            facts.is_opaque
            and func not in self._taking_apart
            and self.interpreter.depends(operands)
        ):
            parts = _decomposition(func)
            if parts is not None:
                with self, self._taken_apart(func):
                    result = parts(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        return self._followed(func, args, kwargs, operands)

    def _followed(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: Sequence[Tensor],
    ) -> Any:
        """Run an op without values, and hand its operands' sets on."""
        try:
            # In place, no shape changes, and some of PyTorch's own shape functions fail there.
            returned = args[0] if facts_of(func).is_in_place else func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            if asks_in_vain(func):
                return False
            returned = self.interpreter.shaped(func, args, kwargs)
            if returned is None:
                return self._from_values(func, args, kwargs, operands, error)
        except NotImplementedError as error:
            raise StructureError(f"PyTorch does not run {func} without values; {ADVICE}") from error
        self.interpreter.record(func, args, kwargs, operands, returned)
        return returned

    @contextmanager
    def _taken_apart(self, func: Any) -> Iterator[None]:
        # Some decompositions come back to the op that they began with.
        self._taking_apart.add(func)
        try:
            yield
        finally:
            self._taking_apart.discard(func)

    def detected(self, outputs: Sequence[Tensor | None]) -> Detected:
        """Read the sets of what the function returned."""
        interpreter = self.interpreter
        blocks: list[IndexSets | None] = []
        for output in outputs:
            if output is None:
                blocks.append(None)
                continue
            sets = interpreter.storages.sets(output) if isinstance(output, FakeTensor) else None
            blocks.append(sets or IndexSets.empty(output.numel(), interpreter.columns))
        present = [block for block in blocks if block is not None]
        whole = IndexSets.stack(present) if present else IndexSets.empty(0, interpreter.columns)
        return Detected(
            whole.matrix,
            tuple(None if block is None else block.matrix for block in blocks),
            tuple(interpreter.unknown),
            interpreter.nodes,
            tuple(interpreter.relied.values()),
        )

    def _faked(self, value: Any) -> Any:
        """Tensors with values become fake ones whose values are known."""
        if isinstance(value, FakeTensor):
            return value
        if isinstance(value, Tensor):
            return self._captured_as(value)
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            return type(value)(self._faked(item) for item in value)
        return value

    def _captured_as(self, tensor: Tensor) -> Tensor:
        held = self._captured.get(id(tensor))
        if held is not None:
            return held[1]
        if tensor.layout is not torch.strided:
            return self._stand_in(tensor)
        fake = self.fake.from_tensor(tensor)
        self._captured[id(tensor)] = tensor, fake
        storages = self.interpreter.storages
        if not tensor.requires_grad and not storages.holds(fake):
            if tensor.untyped_storage().nbytes() == fake.untyped_storage().nbytes():
                # Other views of it may follow.
                whole = _all_of(tensor)
                storages.write(_all_of(fake), None, Constant(lambda: whole, (), (tensor,)))
            else:
                storages.write(fake, None, Constant(tensor.detach, (), (tensor,)))
        return fake

    def _formed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """In earnest, for the layout changes with it; what it relies on is what was captured."""
        with _disable_current_modes():
            form: Tensor = func(*args, **kwargs)
        origin = self._forms.get(id(args[0]), (None, args[0]))[1]
        self._forms[id(form)] = form, origin
        return form

    def _stand_in(self, matrix: Tensor) -> Tensor:
        """A dense tensor without values for a captured sparse matrix, whose entries are known."""
        try:
            with _disable_current_modes():
                entries = entries_of(matrix)
        except (NotImplementedError, RuntimeError) as error:
            raise StructureError(
                f"a captured tensor is {matrix.layout} ({error}); {ADVICE}"
            ) from error
        with self.fake:
            fake = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
        self._captured[id(matrix)] = matrix, fake
        origin = self._forms.get(id(matrix), (None, matrix))[1]
        self.interpreter.matrices.hold(fake, origin, entries)
        return fake

    def _without_masks(self, indices: Sequence[Any]) -> list[Any]:
        """Known boolean masks become the indices of what they select, which have a shape."""
        interpreter = self.interpreter
        found: list[Any] = []
        for index in indices:
            constant = None
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                constant = interpreter.constant(index)
            if constant is None:
                found.append(index)
                continue
            interpreter.relied.update(constant.captured())
            mask = interpreter.value(constant)
            with _disable_current_modes():
                selected = mask.nonzero(as_tuple=True)
            found += map(self._captured_as, selected)
        return found

    def _from_values(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: Sequence[Tensor],
        error: Exception,
    ) -> Any:
        """The result of an op that looks at values, where these are known."""
        interpreter, facts = self.interpreter, facts_of(func)
        known: dict[int, Constant] = {}
        for operand in operands:
            constant = interpreter.constant(operand)
            if constant is None:
                raise looks_at_values(str(func)) from error
            interpreter.relied.update(constant.captured())
            known[id(operand)] = constant
        value = interpreter.value(interpreter.fold(facts, func, args, kwargs, known))
        if not isinstance(value, (Tensor, tuple, list)):
            return value
        if isinstance(value, Tensor):
            return self._captured_as(value)
        return type(value)(self._faked(item) for item in value)


def _selected(tensor: Tensor, mask: Tensor) -> Tensor:
    """What `torch.masked_select` gives."""
    tensor, mask = torch.broadcast_tensors(tensor, mask)
    return tensor[mask]


def _all_of(tensor: Tensor) -> Tensor:
    """The storage of ``tensor`` as a vector."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    with _disable_current_modes():
        return torch.as_strided(tensor.detach(), (count,), (1,), 0)


def _decomposition(func: Any) -> Callable[..., Any] | None:
    """Simpler ops that ``func`` is made of."""
    if func in decomposition_table:
        return decomposition_table[func]
    if func.namespace == "prims":
        return getattr(func, "impl_aten", None)
    return func.decompose  # type: ignore[no-any-return]


@contextmanager
def _as_structure_error() -> Iterator[None]:
    """Say what is wrong where the function cannot run without values; other errors come out as they are."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise looks_at_values(str(error.func)) from error
    except (UnsupportedFakeTensorException, UnsupportedOperatorException) as error:
        raise StructureError(f"func does not run without values: {error}; {ADVICE}") from error
    except RuntimeError as error:
        if any(said in str(error) for said in _NO_VALUES):
            raise looks_at_values(str(error).split("\n")[0]) from error
        raise
