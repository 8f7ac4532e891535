"""The abstract interpreter: for each op that runs, from the sets of its operands to those it gives.

Rules live beside this file, one for each family of ops. Where there is none every element of every
output depends on all that any operand depends on: never on less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchjac.errors import StructureError
from torchjac.structure.detection.constants import Constant, fits
from torchjac.structure.detection.index_sets import IndexSets, Rows
from torchjac.structure.detection.matrices import Matrices
from torchjac.structure.detection.registry import RULES, SHAPES, WINDOWS, Result, Rule
from torchjac.structure.detection.storages import Storages, key_of

# What a rule raises on arguments that it was not made for.
_SURPRISES = (RuntimeError, ValueError, TypeError, LookupError, NotImplementedError)

# What looks at the shape of its operand and not at its values.
_SHAPE_ONLY = frozenset(
    f"aten::{name}"
    for name in (
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_empty_strided",
        "_new_zeros_with_same_feature_meta",
        "rand_like",
        "randn_like",
    )
)

__all__ = ["Facts", "Interpreter", "facts_of", "tensors_in"]


@dataclass(frozen=True)
class Facts:
    """What the schema of an overload says."""

    qualified: str
    """The name in the schema."""
    name: str
    """The same without the underscore of an in-place variant."""
    arguments: tuple[tuple[str, Any, bool], ...]
    """Name, default, and whether it is changed."""
    rule: Rule | None
    is_view: bool
    """It may return what shares a storage with an operand, and changes no values."""
    is_in_place: bool
    """It changes the values of its first operand and returns it."""
    windows: Callable[[Any], IndexSets] | None
    """For pooling: where in a plane each of the indices can point."""
    is_deterministic: bool
    """The values it returns follow from its operands."""

    @property
    def is_opaque(self) -> bool:
        """Whether it has to be taken apart where an operand depends on the seeds."""
        return self.rule is None and not self.is_view and self.name not in _SHAPE_ONLY


@cache
def facts_of(func: Any) -> Facts:
    """Read the schema of ``func``."""
    schema = func._schema
    namespace, _, base = schema.name.partition("::")
    changes = [_written(argument) for argument in schema.arguments]
    if any(changes) and base.endswith("_") and not base.endswith("__"):
        base = base[:-1]
    name = f"{namespace}::{base}"
    aliases = [r.alias_info for r in schema.returns if r.alias_info is not None]
    moved = torch.Tag.inplace_view in func.tags
    chosen = RULES.get(name)
    if chosen is None and torch.Tag.pointwise in func.tags:
        chosen = RULES["aten::pointwise"]
    random = torch.Tag.nondeterministic_seeded in func.tags
    return Facts(
        schema.name,
        name,
        tuple(
            (argument.name, argument.default_value, changed)
            for argument, changed in zip(schema.arguments, changes, strict=True)
        ),
        chosen,
        moved or (bool(aliases) and not any(changes)),
        (
            changes[:1] == [True]
            and len(schema.returns) == 1
            and schema.name.endswith("_")
            and not (moved or base in ("set", "resize", "resize_as"))
        ),
        WINDOWS.get(name),
        not random and "empty" not in base and base not in ("set", "resize"),
    )


def _written(argument: Any) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments, or results, and in lists of them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found


@dataclass
class _Call:
    """One call of an op; the `Operation` that rules see."""

    interpreter: Interpreter
    func: Any
    arguments: dict[str, Any]
    outputs: Sequence[Tensor]

    @property
    def columns(self) -> int:
        return self.interpreter.columns

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def sets(self, tensor: Any) -> IndexSets | None:
        if not isinstance(tensor, Tensor):
            return None
        found = self.interpreter.storages.sets(tensor)
        return found if found is not None and found.nnz else None

    def known(self, tensor: Any) -> Tensor | None:
        constant = self.interpreter.constant(tensor)
        return None if constant is None else self.interpreter.value(constant).cpu()

    def entries(self, matrix: Tensor) -> tuple[Rows, Rows] | None:
        found = self.interpreter.matrices.entries(matrix)
        if found is None:
            return None
        rows, cols, captured = found
        self.interpreter.relied[id(captured)] = captured
        return rows, cols

    def windows(self, index: Tensor) -> IndexSets | None:
        return self.interpreter.windows.sets(index)

    def rely_on(self, tensor: Any) -> None:
        constant = self.interpreter.constant(tensor)
        if constant is not None:
            self.interpreter.relied.update(constant.captured())


@dataclass
class Interpreter:
    """Follows the ops as they run.

    Args:
        columns: how many seed elements there are.
        for_real: a context in which ops compute with real values.
    """

    columns: int
    for_real: Callable[[], AbstractContextManager[Any]]
    nodes: int = 0
    unknown: dict[str, None] = field(default_factory=dict)
    relied: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.storages, self.matrices = Storages(self.columns), Matrices()
        # Of indices that an op computed: where in a plane each can point.
        self.windows = Storages(0)

    def constant(self, tensor: Any) -> Constant | None:
        """What is known of the values of ``tensor``."""
        if not isinstance(tensor, Tensor) or not fits(tensor):
            return None
        return self.storages.constant(tensor)

    def value(self, constant: Constant) -> Any:
        """Compute a constant."""
        with self.for_real(), torch.no_grad():
            return constant.value()

    def depends(self, operands: Sequence[Tensor]) -> bool:
        """Whether any operand depends on the seeds."""
        return any(self.storages.depends(operand) for operand in operands)

    def shaped(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Sequence[Tensor] | None:
        """What an op returns that PyTorch runs on values alone; None where that depends on values."""
        facts = facts_of(func)
        if facts.name not in SHAPES:
            return None
        try:
            with self.for_real():
                return SHAPES[facts.name](_Call(self, func, _bind(facts, args, kwargs)[0], ()))
        except _SURPRISES:
            return None

    def record(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: Sequence[Tensor],
        returned: Any,
    ) -> None:
        """Note what ``func(*args, **kwargs)``, which has just run, makes of the sets."""
        facts = facts_of(func)
        outputs = tensors_in([returned])
        if facts.is_view and self._are_views(outputs, operands):
            return
        arguments, changed = _bind(facts, args, kwargs)
        for tensor in changed:
            self.windows.forget(tensor)
            self.matrices.forget(tensor)
        if facts.name in _SHAPE_ONLY:
            constants = self._folded(facts, func, args, kwargs, operands, len(outputs))
            self._write(outputs, (), (), [None] * len(outputs), constants, None)
            return
        if self.depends(operands):
            self.nodes += 1
            self._propagate(facts, _Call(self, func, arguments, outputs), changed, operands)
            return
        if facts.windows is not None:
            with suppress(*_SURPRISES):
                self.windows.write(outputs[1], facts.windows(_Call(self, func, arguments, outputs)))
        if changed or all(self.storages.is_known(operand) for operand in operands):
            constants = self._folded(facts, func, args, kwargs, operands, len(outputs))
            self._write(outputs, changed, operands, [None] * len(outputs), constants, None)

    def _are_views(self, outputs: Sequence[Tensor], operands: Sequence[Tensor]) -> bool:
        # Some ops, as reshape, return a view where they can, and a copy where they cannot.
        keys = set(map(key_of, operands))
        return all(key_of(output) in keys for output in outputs)

    def _propagate(
        self, facts: Facts, call: _Call, changed: Sequence[Tensor], operands: Sequence[Tensor]
    ) -> None:
        outputs = call.outputs
        found, support = self._by_rule(facts, call), None
        if found is None:
            support = self.support(operands)
            if support is not None and support.nnz:  # else nothing is lost
                self.unknown[str(call.func)] = None
            found = [_dense(support, output) for output in outputs]
        self._write(outputs, changed, operands, found, [None] * len(outputs), support)

    def _by_rule(self, facts: Facts, call: _Call) -> Sequence[IndexSets | None] | None:
        """What the rule says of each output; None where it says nothing that could be right."""
        if facts.rule is None:
            return None
        try:
            with self.for_real(), torch.no_grad():
                result: Result = facts.rule(call)
        except StructureError:
            raise
        except _SURPRISES:
            return None
        if result is None:
            return [None] * len(call.outputs)
        found = [result] if isinstance(result, IndexSets) else list(result)
        sizes = [output.numel() for output in call.outputs]
        fits = len(found) == len(sizes) and all(
            sets is None or len(sets) == size for sets, size in zip(found, sizes, strict=True)
        )
        return found if fits else None

    def _write(
        self,
        outputs: Sequence[Tensor],
        changed: Sequence[Tensor],
        operands: Sequence[Tensor],
        found: Sequence[IndexSets | None],
        constants: Sequence[Constant | None],
        support: IndexSets | None,
    ) -> None:
        """Hand the results to the storages; what is merely a view of an operand keeps its own."""
        own = {key_of(tensor) for tensor in changed}
        views = {key_of(tensor) for tensor in operands} - own
        reached = set()
        for output, sets, constant in zip(outputs, found, constants, strict=True):
            key = key_of(output)
            if key not in views or key is None:
                self.storages.write(output, sets, constant)
                reached.add(key)
        for tensor in changed:
            if key_of(tensor) not in reached:
                # Changed without being returned: no rule says how.
                if support is None and self.depends(operands):
                    support = self.support(operands)
                self.storages.write(tensor, _dense(support, tensor))

    def support(self, operands: Sequence[Tensor]) -> IndexSets | None:
        """All that any operand depends on, as one row."""
        rows = [s.support() for s in map(self.storages.sets, operands) if s is not None]
        return IndexSets.stack(rows).support() if rows else None

    def _folded(
        self,
        facts: Facts,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: Sequence[Tensor],
        count: int,
    ) -> list[Constant | None]:
        """The outputs as constants, where the operands are."""
        nothing: list[Constant | None] = [None] * count
        if not facts.is_deterministic or not count:
            return nothing
        known: dict[int, Constant] = {}
        for operand in operands:
            if facts.name in _SHAPE_ONLY:
                constant: Constant | None = _shape_of(operand)
            else:
                constant = self.storages.constant(operand)
            if constant is None:
                return nothing
            known[id(operand)] = constant
        whole = self.fold(facts, func, args, kwargs, known)
        return [Constant(_part(whole, at), (whole,)) for at in range(count)]

    def fold(
        self,
        facts: Facts,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        known: dict[int, Constant],
    ) -> Constant:
        """The op applied to the values of its operands, later."""
        changes = {name for name, _, changed in facts.arguments if changed}
        names = [name for name, _, _ in facts.arguments]

        def real(value: Any, changed: bool) -> Any:
            if isinstance(value, Tensor):
                found = known[id(value)].value()
                return found.clone() if changed else found
            if isinstance(value, (list, tuple)):
                return type(value)(real(item, changed) for item in value)
            return value

        def compute() -> Any:
            at = [real(a, name in changes) for a, name in zip(args, names, strict=False)]
            return func(*at, **{name: real(a, name in changes) for name, a in kwargs.items()})

        return Constant(compute, tuple(known.values()))


def _shape_of(tensor: Tensor) -> Constant:
    shape, dtype = tuple(tensor.shape), tensor.dtype
    return Constant(lambda: torch.zeros((), dtype=dtype).expand(shape))


def _part(whole: Constant, at: int) -> Callable[[], Any]:
    return lambda: tensors_in([whole.value()])[at]


def _dense(support: IndexSets | None, like: Tensor) -> IndexSets | None:
    return None if support is None else support.gather(np.zeros(like.numel(), np.int64))


def _bind(
    facts: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], list[Tensor]]:
    """Arguments by name, and the tensors among them that are changed."""
    bound: dict[str, Any] = {}
    changed: list[Tensor] = []
    for at, (name, default, writes) in enumerate(facts.arguments):
        value = args[at] if at < len(args) else kwargs.get(name, default)
        bound[name] = value
        if writes:
            changed += tensors_in([value])
    return bound, changed
