"""A call of a transform: the user's function and arguments as a flat function of a flat list."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from torchjac.errors import ArgumentError, ArgumentTypeError, OutputTypeError
from torchjac.evaluation.buffers import Buffers
from torchjac.evaluation.engines import Engine, FlatFunction
from torchjac.evaluation.parameters import replacing
from torchjac.evaluation.surroundings import compiling, exclusively, is_aside
from torchjac.foundations.identity import Identity
from torchjac.foundations.pytree import ONE_LEAF, TreeSpec, flatten, map_tree, unflatten
from torchjac.foundations.strides import is_dense
from torchjac.planning.memory import Memory
from torchjac.planning.problem import Answer
from torchjac.planning.search import Search
from torchjac.planning.signature import (
    Description,
    modules_of,
    of_arguments,
    of_function,
    tensors_of,
)
from torchjac.transforms.options import PARAMS, Options
from torchjac.transforms.outcome import ONE_TENSOR, Aux, Outcome

__all__ = ["Call", "Leaves"]

Leaves: TypeAlias = Sequence[Sequence[Any]]
"""One value for every block of a derivative, ``[output][input]``."""


_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
_UNCHANGED = contextlib.nullcontext()


class Call:
    """The arguments of one call, those that are differentiated apart, as a flat function.

    Calling it with leaves evaluates the user's function on private copies of them, so that what the
    function does to its arguments in place is never seen by the caller, nor by another pass.
    """

    outcome: Outcome
    """How the latest evaluation's outputs go back into trees."""
    names: Sequence[str] = ()
    """Of the parameters that are differentiated by."""
    is_sure = True
    """Whether the signature tells all that the function captured; known once it was asked for."""
    may_capture = True
    """Whether a tensor that requires grad may be among what the function finds by itself."""
    begun: Engine | Exception | None = None
    """What came of an evaluation whose derivative nobody has taken yet."""
    _is_on_copies = False
    _signature: Hashable | None = None
    _told_by: Hashable = None
    """What tells it apart from other calls of the same function with the same options."""
    _buffers: Buffers | None = None
    _replaced: contextlib.ExitStack | None = None

    def __init__(
        self,
        options: Options,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        described: Description | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.options, self.memory = options, memory or Memory()
        self._described = described or Description()
        is_module = isinstance(func, torch.nn.Module)
        if is_module and isinstance(func, _WRAPPERS):
            func = func.module  # they are for training: their hooks are not for torch.func
        self._func, self._args, self._kwargs = func, args, dict(kwargs)
        self._positions: list[int] = []
        self._specs: list[TreeSpec] = []
        self.primals: list[Tensor] = []
        # A thread that differentiates a module by its parameters may swap them meanwhile.
        self._runs_module: bool | None = is_module or None
        self.captures_primals = options.argnums == PARAMS
        """Whether the function finds its primals by itself, because they are a module's parameters."""
        if options.argnums == PARAMS:
            self._take_parameters()
        else:
            self._take_arguments()
        self.is_bare = (
            type(options.argnums) is int and self._specs[0] is ONE_LEAF and not options.return_value
        )
        """Whether the derivative of one tensor is handed out as it is."""

    def _take_parameters(self) -> None:
        assert isinstance(self._func, torch.nn.Module)
        with exclusively():
            named = {name: p for name, p in self._func.named_parameters() if p.requires_grad}
        if not named:
            raise ArgumentError(
                f"{self.options.name}(argnums='params'): no parameter of {type(self._func).__name__} "
                f"requires grad. Set requires_grad on those that the derivative is wanted for."
            )
        for name, parameter in named.items():
            if isinstance(parameter, UninitializedParameter):
                raise ArgumentError(
                    f"{self.options.name}(argnums='params'): parameter {name} of "
                    f"{type(self._func).__name__} has no shape yet. Call the module with its inputs "
                    f"once first."
                )
            self._check_leaf(parameter, name)
        self.names = list(named)
        self.primals, spec = flatten(named)
        self._specs = [spec]

    def _take_arguments(self) -> None:
        name, argnums = self.options.name, self.options.argnums
        for number in argnums if isinstance(argnums, tuple) else (argnums,):
            position = number + len(self._args) if number < 0 else number
            if not 0 <= position < len(self._args):
                raise ArgumentError(
                    f"{name}(argnums={argnums!r}): there is no argument {number}; the call has "
                    f"{len(self._args)} positional arguments (keyword arguments are not differentiated)."
                )
            leaves, spec = flatten(self._args[position])
            for leaf in leaves:
                self._check_leaf(leaf, number)
            if position in self._positions:
                raise ArgumentError(
                    f"{name}(argnums={argnums!r}): argument {position} is chosen twice; name it once."
                )
            self._positions.append(position)
            self._specs.append(spec)
            self.primals += leaves
        if not self.primals:
            raise ArgumentError(
                f"{name}(argnums={argnums!r}): the argument holds no tensor to differentiate by."
            )

    def _check_leaf(self, leaf: object, number: int | str) -> None:
        # Before any text is made: the compiler cannot trace that for sizes that vary.
        if (
            isinstance(leaf, Tensor)
            and leaf.is_floating_point()
            and leaf.layout is torch.strided
            and not leaf.is_nested
        ):
            return
        where = f"{self.options.name}(argnums={self.options.argnums!r}): argument {number}"
        if leaf is None:
            raise ArgumentTypeError(
                f"{where} holds a NoneType; expected a tensor, or a tree of tensors. "
                f"Leave the entry out, or hand it over in an argument that argnums does not choose."
            )
        if not isinstance(leaf, Tensor):
            remedy = "Wrap the number in torch.tensor, or choose other argnums."
            if dataclasses.is_dataclass(leaf):
                remedy = "torch.export.register_dataclass makes a tree of it."
            raise ArgumentTypeError(
                f"{where} holds a {type(leaf).__name__}; expected a tensor, or a tree of tensors. {remedy}"
            )
        if leaf.is_floating_point():
            kind = "nested" if leaf.is_nested else f"of layout {leaf.layout}"
            raise ArgumentTypeError(
                f"{where} is a tensor {kind}; derivatives are taken by dense tensors. Pass what it is made "
                f"from (its values, x.to_dense(), a padded tensor), and make it within func."
            )
        kind = "complex" if leaf.is_complex() else "an integer or boolean tensor"
        remedy = "torch.view_as_real(x)" if leaf.is_complex() else "x.to(torch.get_default_dtype())"
        raise ArgumentTypeError(
            f"{where} is {kind} ({leaf.dtype}); derivatives are taken by real floating-point "
            f"tensors. Pass {remedy}, or choose other argnums."
        )

    def __call__(self, leaves: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        returned = self._evaluate(leaves)
        if type(returned) is Tensor and returned.is_floating_point() and not self.options.has_aux:
            self.outcome = ONE_TENSOR
            return (returned,), ()
        aux = None
        if self.options.has_aux:
            if not isinstance(returned, tuple) or len(returned) != 2:
                raise OutputTypeError(
                    f"{self.options.name}(has_aux=True): func must return a pair (output, aux), got "
                    f"{_describe(returned)}."
                )
            returned, extra = returned
            aux = Aux(*flatten(extra))
        outputs, spec = flatten(returned)
        kinds = [self._kind(output) for output in outputs]
        if "differentiable" not in kinds:
            raise OutputTypeError(
                f"{self.options.name}: func returned {_describe(returned)}, which holds no floating-point "
                f"tensor, so there is nothing to differentiate."
            )
        self.outcome = Outcome(kinds, spec, aux)
        pairs = list(zip(kinds, outputs, strict=True))
        carried = [output for kind, output in pairs if kind == "carried"]
        carried += [leaf for leaf in (aux.leaves if aux else ()) if isinstance(leaf, Tensor)]
        return tuple(output for kind, output in pairs if kind == "differentiable"), tuple(carried)

    def on_copies(self, leaves: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The same, of leaves that the function may write into."""
        self._is_on_copies = True
        try:
            return self(leaves)
        finally:
            self._is_on_copies = False

    def _evaluate(self, leaves: Sequence[Tensor]) -> Any:
        return self._apply(leaves, self._args)

    def _apply(self, leaves: Sequence[Tensor], args: Sequence[Any]) -> Any:
        """Call the user's function with ``args``, the differentiated leaves among them replaced."""
        full, first = list(args), 0
        # Parameters have no position among the arguments.
        for position, spec in zip(self._positions, self._specs, strict=False):
            if spec is ONE_LEAF:
                full[position] = leaves[first]
            else:
                full[position] = unflatten(leaves[first : first + spec.num_leaves], spec)
            first += spec.num_leaves
        for k, arg in enumerate(full):
            if not (self._is_on_copies and k in self._positions):
                full[k] = arg.clone() if isinstance(arg, Tensor) else _copied(arg)
        kwargs = self._kwargs and {name: _copied(arg) for name, arg in self._kwargs.items()}
        if self._runs_module is False:
            return self._func(*full, **kwargs)
        with exclusively(bool(self._runs_module)), self._leaving_no_trace():
            if self.options.argnums != PARAMS or self._are_parameters(leaves):
                return self._func(*full, **kwargs)
            assert isinstance(self._func, torch.nn.Module)
            if self._replaced is not None:
                self._replaced.enter_context(replacing(self._func, self.primals, leaves))
                return self._func(*full, **kwargs)
            swapped = dict(zip(self.names, leaves, strict=True))
            return torch.func.functional_call(self._func, swapped, tuple(full), kwargs)

    @contextlib.contextmanager
    def keeping_parameters(self) -> Iterator[None]:
        """Have a module keep what an evaluation in the block puts in the place of its parameters.

        Otherwise it has its own again when the function returns; but a checkpoint evaluates a part of it
        once more in a backward pass.
        """
        with exclusively(), contextlib.ExitStack() as self._replaced:
            try:
                yield
            finally:
                self._replaced = None

    def keep_state(self) -> None:
        """Take down what the modules that the function reaches have in their buffers."""
        if self._buffers is None:
            self._buffers = Buffers(modules_of(self._func))

    def _leaving_no_trace(self) -> contextlib.AbstractContextManager[None]:
        if compiling() or not (is_aside() or torch._C._len_torch_dispatch_stack()):
            return _UNCHANGED
        self.keep_state()
        assert self._buffers is not None
        return self._buffers.apart()

    def _are_parameters(self, leaves: Sequence[Tensor]) -> bool:
        return all(leaf is own for leaf, own in zip(leaves, self.primals, strict=True))

    def _kind(self, output: object) -> str:
        if output is None:
            return "none"
        if not isinstance(output, Tensor):
            raise OutputTypeError(
                f"{self.options.name}: func returned a {type(output).__name__} in its output; expected "
                f"tensors, or None. Return what is not differentiated as aux, with has_aux=True."
            )
        if output.is_complex():
            raise OutputTypeError(
                f"{self.options.name}: func returned a complex tensor ({output.dtype}); derivatives are "
                f"taken of real ones. Return torch.view_as_real(y) instead."
            )
        return "differentiable" if output.is_floating_point() else "carried"

    def signature(self) -> Hashable:
        """What makes another call the same as this one."""
        if self._signature is None:
            search = Search(values=self.options.sparsity is not None)
            function, self._runs_module = self._described.by(self._func, search)
            arguments = of_arguments(tuple(self._args), self._kwargs, search)
            self.is_sure = search.is_sure
            self.may_capture = search.connects or not search.is_sure
            # The very same one, if nothing is new: then it is known without being compared.
            latest = self._described.latest
            if latest is None or latest[0] is not function or latest[1] != arguments:
                latest = (function, arguments, self.options, self._told_by)
                self._described.latest = latest
            self._signature = latest
        return self._signature

    @property
    def may_be_compiled(self) -> bool:
        """Whether a compiled function may be in it; not where the signature tells all that there is."""
        return self._signature is None or not self.is_sure

    def likeness(self) -> tuple[Hashable, Sequence[Identity]]:
        """The same for all tensors of a kind that the function captured, and those."""
        search = Search(values=True, alike=True)
        function, _ = of_function(self._func, search)
        arguments = of_arguments(tuple(self._args), self._kwargs, search)
        return ("alike", self.options, function, arguments), search.identities

    def others(self) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], FlatFunction]]:
        """The tensors that are not differentiated by, and the flat function with others for them.

        Not sparse ones, which stay as if they were captured: the places of their entries are part of what
        the function is.
        """
        kept = [None if k in self._positions else arg for k, arg in enumerate(self._args)]
        leaves, spec = flatten((kept, self._kwargs))
        found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and is_dense(leaf)]
        replaced = set(map(id, found))

        def with_others(others: Sequence[Tensor]) -> FlatFunction:
            source, twin = iter(others), copy.copy(self)
            args, twin._kwargs = unflatten(
                [next(source) if id(leaf) in replaced else leaf for leaf in leaves], spec
            )
            # Those that are differentiated by are replaced at every evaluation.
            twin._args = [
                self._args[k] if k in self._positions else arg for k, arg in enumerate(args)
            ]
            return twin

        return found, with_others

    @property
    def given(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments."""
        return self._args, self._kwargs

    def take_begun(self) -> Engine | Exception | None:
        """What has come of an evaluation whose derivative nobody has taken; it is not kept any longer."""
        begun, self.begun = self.begun, None
        return begun

    def captured(self) -> list[Tensor]:
        """The tensors that the function finds by itself."""
        return tensors_of(self._func)

    def input_trees(self, leaves: Sequence[Any]) -> Any:
        """Put one value per differentiated leaf into the trees of the chosen arguments."""
        if not isinstance(self.options.argnums, tuple):
            return unflatten(leaves, self._specs[0])
        source = iter(leaves)
        return tuple(
            [unflatten([next(source) for _ in range(s.num_leaves)], s) for s in self._specs]
        )

    def packed(self, result: Any, answer: Answer) -> Any:
        """The result alone, or with the value before it and the auxiliary data behind it."""
        if not self.options.return_value and not self.options.has_aux:
            return result
        values, carried = answer.handed_out()
        parts = [result]
        if self.options.return_value:
            parts.insert(0, answer.outcome.value(values, carried))
        if self.options.has_aux:
            parts.append(answer.outcome.aux_value(carried))
        return tuple(parts)


def _copied(argument: Any) -> Any:
    return map_tree(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, argument)


def _describe(returned: object) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of {returned.dtype}"
    return f"{type(returned).__name__} {returned!r}"[:80]
