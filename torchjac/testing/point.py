"""A function at a point, laid flat: what the differences and the checks work on."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchjac.errors import ArgumentError, ArgumentTypeError, OutputTypeError
from torchjac.evaluation.buffers import Buffers
from torchjac.foundations.pytree import TreeSpec, flatten, map_tree, unflatten
from torchjac.planning.signature import modules_of

__all__ = ["Argnums", "Point", "flat", "leaf_labels", "split", "unravel"]

Argnums: TypeAlias = "int | tuple[int, ...] | Literal['params']"
Function: TypeAlias = Callable[..., Any]


class Point:
    """``func`` at ``args``: the leaves it is differentiated by, and its values near them.

    Every evaluation begins at the random state that the point was made with, so that a random
    function is one function; `settle` leaves the generators as a single evaluation does. Nothing
    that the caller passed is ever handed to ``func``: it gets copies, and may change them.
    """

    def __init__(
        self,
        where: str,
        func: Function,
        argnums: Argnums,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        has_aux: bool = False,
    ) -> None:
        self.where = where
        self._kwargs, self._has_aux = kwargs, has_aux
        if isinstance(argnums, str):  # "params"
            self._func, self._args = _by_parameters(where, func, args)
            names, argnums = ["params"], 0
        else:
            self._func, self._args = func, tuple(args)
            names = _argument_names(func, len(args))
        chosen = _chosen(where, argnums, len(self._args))
        trees = [self._args[index] for index in chosen]
        # A lone argnum stands for the argument's own tree, several for the tuple of their trees.
        self._chosen, self._alone = chosen, isinstance(argnums, int)
        leaves, self.input_spec = flatten(trees[0] if self._alone else tuple(trees))
        self.input_labels = [
            label
            for index, tree in zip(chosen, trees, strict=True)
            for label in leaf_labels(names[index], flatten(tree)[1])
        ]
        self.leaves = [
            _checked_leaf(where, label, leaf)
            for label, leaf in zip(self.input_labels, leaves, strict=True)
        ]
        self._draw = _Draw(self.leaves)
        self._buffers = Buffers(modules_of(func))
        self._needs_graph = False
        self.outputs = self._first_values()

    def _first_values(self) -> list[Tensor]:
        try:
            with torch.inference_mode(False), torch.no_grad():
                output = self._call(self.leaves)
        except RuntimeError as error:
            # A function that differentiates inside asks for leaves that require grad.
            if "does not require grad" not in str(error):
                raise
            self._needs_graph = True
            self._draw.again()
            output = self._recorded_call(self.leaves)[1]
        self._after = self._draw.read()
        self.aux = None
        if self._has_aux:
            output, self.aux = _with_aux(self.where, output)
        found, self.output_spec = flatten(output)
        self.output_labels = leaf_labels("output", self.output_spec)
        self.kept = [
            index
            for index, (label, leaf) in enumerate(zip(self.output_labels, found, strict=True))
            if _has_derivative(self.where, label, leaf)
        ]
        if not self.kept:
            raise OutputTypeError(
                f"{self.where}: func returned no floating-point tensor, so there is nothing to "
                "differentiate"
            )
        return [found[index].detach() for index in self.kept]

    def values(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The differentiable output leaves at ``leaves``, without a graph."""
        if self._needs_graph:
            return [value.detach() for value in self.recorded(leaves)[1]]
        with self.again(), torch.inference_mode(False), torch.no_grad():
            return [value.detach() for value in self._pick(self._call(leaves))]

    def recorded(self, leaves: Sequence[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Fresh autograd leaves, and the outputs that plain autograd recorded from them."""
        with self.again():
            fresh, output = self._recorded_call(self.leaves if leaves is None else leaves)
            return fresh, self._pick(output)

    def raw_values(
        self, replace: Callable[[Tensor], Tensor], leaves: Sequence[Tensor]
    ) -> list[Tensor]:
        """The outputs with ``replace`` applied to all other tensors too; for complex steps."""
        with self.again(), torch.inference_mode(False), torch.no_grad():
            return self._pick(self._call(leaves, replace))

    def again(self) -> contextlib.AbstractContextManager[None]:
        """Be where the point found the random generators, and the buffers of modules within the block."""
        self._draw.again()
        return self._buffers.apart()

    def settle(self) -> None:
        """Leave the random generators where one evaluation of ``func`` leaves them."""
        self._draw.write(self._after)

    def _recorded_call(self, leaves: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        with torch.inference_mode(False), torch.enable_grad():
            fresh = [leaf.detach().clone().requires_grad_() for leaf in leaves]
            # func gets a copy with a history (see `_call`), since a leaf must not change in place.
            return fresh, self._call(fresh)

    def _call(
        self, leaves: Sequence[Tensor], replace: Callable[[Tensor], Tensor] = torch.clone
    ) -> Any:
        def copied(leaf: Any) -> Any:
            return replace(leaf.detach()) if isinstance(leaf, Tensor) else leaf

        tree = unflatten([leaf.clone() for leaf in leaves], self.input_spec)
        own = dict(zip(self._chosen, (tree,) if self._alone else tree, strict=True))
        with torch.inference_mode(False):
            args = [
                own[index] if index in own else map_tree(copied, arg)
                for index, arg in enumerate(self._args)
            ]
            kwargs = {key: map_tree(copied, value) for key, value in self._kwargs.items()}
            return self._func(*args, **kwargs)

    def _pick(self, output: Any) -> list[Tensor]:
        found, spec = flatten(_with_aux(self.where, output)[0] if self._has_aux else output)
        if spec != self.output_spec:
            raise OutputTypeError(
                f"{self.where}: func returned the tree {self.output_spec} at the point and {spec} "
                "near it; a function whose output changes its structure has no Jacobian"
            )
        return [found[index] for index in self.kept]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries one after another, in float64 on the CPU, without a graph."""
    pieces = [tensor.detach().to("cpu", torch.float64).reshape(-1) for tensor in tensors]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64)


def split(vector: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """The reverse of `flat`: pieces with the shapes, dtypes and devices of ``likes``."""
    pieces = vector.split([like.numel() for like in likes])
    return [
        piece.reshape(like.shape).to(like.device, like.dtype)
        for piece, like in zip(pieces, likes, strict=True)
    ]


def unravel(position: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index within ``shape`` of the entry at ``position`` of the flat vector."""
    index = []
    for side in reversed(shape):
        position, along = divmod(position, side)
        index.append(along)
    return tuple(reversed(index))


def leaf_labels(name: str, spec: TreeSpec) -> list[str]:
    """How a user would write each leaf of a tree called ``name``, in order: ``x["w"][0]``."""
    labels = [f"leaf {index} of {name}" for index in range(spec.num_leaves)]

    def walk(node: Any, path: str) -> None:
        if isinstance(node, int):
            labels[node] = path
        elif isinstance(node, Mapping):
            for key, value in node.items():
                walk(value, f"{path}[{key!r}]")
        elif isinstance(node, (tuple, list)):
            names = getattr(node, "_fields", None)
            for index, value in enumerate(node):
                walk(value, f"{path}.{names[index]}" if names else f"{path}[{index}]")

    walk(unflatten(list(range(spec.num_leaves)), spec), name)
    return labels


class _Draw:
    """The state of the random generators when a point was made."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})
        self._before = self.read()

    def read(self) -> list[Tensor]:
        return [
            torch.get_rng_state(),
            *(torch.cuda.get_rng_state(index) for index in self._devices),
        ]

    def write(self, state: Sequence[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for index, cuda_state in zip(self._devices, state[1:], strict=True):
            torch.cuda.set_rng_state(cuda_state, index)

    def again(self) -> None:
        self.write(self._before)


def _by_parameters(
    where: str, func: Function, args: Sequence[Any]
) -> tuple[Function, tuple[Any, ...]]:
    assert isinstance(func, torch.nn.Module)
    module = func
    named = {name: value for name, value in module.named_parameters() if value.requires_grad}

    def of_parameters(params: dict[str, Tensor], *inputs: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(module, params, inputs, kwargs)

    return of_parameters, (named, *args)


def _argument_names(func: Function, count: int) -> list[str]:
    try:
        called = func.forward if isinstance(func, torch.nn.Module) else func
        kinds = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        kinds = []
    names = [kind.name for kind in kinds if kind.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return [names[index] if index < len(names) else f"args[{index}]" for index in range(count)]


def _chosen(where: str, argnums: int | tuple[int, ...], count: int) -> list[int]:
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    chosen = []
    for number in numbers:
        if not -count <= number < count:
            raise ArgumentError(
                f"{where}: argnums={argnums!r} is out of range: there are {count} positional "
                "arguments, counted from 0"
            )
        chosen.append(number % count)
    if len(set(chosen)) < len(chosen):
        raise ArgumentError(f"{where}: argnums={argnums!r} must name each argument once")
    return chosen


def _checked_leaf(where: str, label: str, leaf: Any) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise ArgumentTypeError(
            f"{where}: {label} is a {type(leaf).__name__}; expected a tensor. "
            "Leave it out of argnums, or make it a floating-point tensor"
        )
    if not leaf.is_floating_point():
        raise ArgumentTypeError(
            f"{where}: {label} has dtype {leaf.dtype}; expected real floating-point numbers, which "
            "can be moved by a small step. Convert it, or leave it out of argnums"
        )
    with torch.inference_mode(False):
        return leaf.detach().clone()


def _with_aux(where: str, output: Any) -> tuple[Any, Any]:
    if not isinstance(output, tuple) or len(output) != 2:
        raise OutputTypeError(
            f"{where}: with has_aux=True func must return (output, aux); it returned a "
            f"{type(output).__name__}"
        )
    return output


def _has_derivative(where: str, label: str, leaf: Any) -> bool:
    if leaf is None:
        return False
    if not isinstance(leaf, Tensor) or leaf.is_complex():
        kind = f"dtype {leaf.dtype}" if isinstance(leaf, Tensor) else f"type {type(leaf).__name__}"
        raise OutputTypeError(
            f"{where}: {label} has {kind}; expected real tensors (or None). "
            "Return it as auxiliary data with has_aux=True, or as its real and imaginary parts"
        )
    return leaf.is_floating_point()
