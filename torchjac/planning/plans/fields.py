"""What arguments a plan is for, field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchjac.foundations.pytree import TreeSpec, flatten, unflatten
from torchjac.foundations.strides import dense_stride, is_dense
from torchjac.planning.captured.bindings import same

__all__ = ["Arguments", "Fields", "are_plain", "as_dense"]


class Fields:
    """The tree, shapes, dtypes, devices and plain values of a call's arguments.

    Args:
        args: the positional ones.
        kwargs: those by keyword.
        strides: whether they count too.
    """

    def __init__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, strides: bool = False
    ) -> None:
        self._strides = strides
        self._arguments = _described(args, kwargs, strides)
        leaves, spec = flatten((tuple(args), dict(kwargs)))
        self.given: tuple[tuple[Any, ...], dict[str, Any]] = unflatten(leaves, spec)
        """The arguments, in trees that nobody else can change."""

    def differences(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
        """Say of every field that differs what was planned and what came."""
        now, planned = _described(args, kwargs, self._strides), self._arguments
        found = [f"{name} was planned, and is missing" for name in planned if name not in now]
        found += [f"{name} was not planned" for name in now if name not in planned]
        for name, (spec, leaves) in planned.items():
            if name not in now:
                continue
            other_spec, other_leaves = now[name]
            if spec != other_spec:
                found.append(
                    f"{name}: another tree: {_tree(spec)} was planned, got {_tree(other_spec)}"
                )
                continue
            for number, (leaf, other) in enumerate(zip(leaves, other_leaves, strict=True)):
                where = name if len(leaves) == 1 else f"{name}, leaf {number}"
                found += [f"{where}: {line}" for line in _compared(leaf, other)]
        return found

    def lines(self) -> list[str]:
        """A line for every argument."""
        return [
            f"{name}: {', '.join(map(_words, leaves))}"
            for name, (_, leaves) in self._arguments.items()
        ]


def _words(leaf: Mapping[str, Any]) -> str:
    return " ".join(f"stride {v}" if field == "stride" else str(v) for field, v in leaf.items())


def _described(
    args: Sequence[Any], kwargs: Mapping[str, Any], strides: bool
) -> dict[str, tuple[TreeSpec, list[dict[str, Any]]]]:
    named = {f"argument {number}": arg for number, arg in enumerate(args)}
    named.update({f"keyword {name!r}": arg for name, arg in kwargs.items()})
    described = {}
    for name, argument in named.items():
        leaves, spec = flatten(argument)
        described[name] = spec, [_leaf(leaf, strides) for leaf in leaves]
    return described


def _leaf(leaf: Any, strides: bool) -> dict[str, Any]:
    if isinstance(leaf, Tensor):
        shape = None if leaf.is_nested else tuple(leaf.shape)
        kind = {"shape": shape, "dtype": leaf.dtype, "device": leaf.device}
        if is_dense(leaf):
            return {**kind, "stride": leaf.stride()} if strides else kind
        layout = f"nested {leaf.layout}" if leaf.is_nested else leaf.layout
        return {**kind, "layout": layout}
    return {"value": leaf}


def _compared(planned: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    if ("value" in planned) != ("value" in got):
        return [f"a {_kind(planned)} was planned, got a {_kind(got)}"]
    pairs = [
        (field, planned.get(field, torch.strided), got.get(field, torch.strided))
        for field in {**planned, **got}
    ]
    return [
        f"{field} {before!r} was planned, got {now!r}"
        for field, before, now in pairs
        if not same(before, now)
    ]


def _kind(leaf: Mapping[str, Any]) -> str:
    return type(leaf["value"]).__name__ if "value" in leaf else "tensor"


def _tree(spec: TreeSpec) -> str:
    return str(spec).replace("TreeSpec", "").replace("*", "tensor")


class Arguments:
    """How the tensors that a program takes are got from a call's arguments, quickly where possible.

    Args:
        args: the positional arguments of the call that was planned on.
        kwargs: its keyword arguments.
        inputs: the tensors that the program takes.
        is_bare: whether the user gets the program's first result as it is.
        strides: whether others than those that were planned for are refused.
    """

    def __init__(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        inputs: Sequence[Tensor],
        *,
        is_bare: bool,
        strides: bool = False,
    ) -> None:
        self.is_bare, self.planned = is_bare, inputs
        self._strides = [dense_stride(tensor) for tensor in inputs]
        self._count, self._kinds = len(args), None
        at = {id(arg): position for position, arg in enumerate(args)}
        if (
            not kwargs
            and len(at) == len(args)
            and are_plain(args)
            and all(map(is_dense, args))
            and all(id(t) in at for t in inputs)
        ):
            self._kinds = [(arg.shape, arg.dtype, arg.device) for arg in args]
            self._fixed = [arg.stride() for arg in args] if strides else None
            self._order = [at[id(tensor)] for tensor in inputs]
            self._in_order = self._order == list(range(len(args)))

    def taken(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Tensor] | None:
        """The program's inputs, if the arguments are tensors alone, and those that were planned for."""
        if self._kinds is None or kwargs or len(args) != self._count:
            return None
        for arg, (shape, dtype, device) in zip(args, self._kinds, strict=True):
            if (
                not isinstance(arg, Tensor)
                or arg.is_nested  # which has no shape
                or arg.shape != shape
                or arg.dtype is not dtype
                or arg.layout is not torch.strided
                or arg.device != device
            ):
                return None
        if self._fixed is not None and self._fixed != [arg.stride() for arg in args]:
            return None
        return args if self._in_order else [args[at] for at in self._order]

    def laid_out(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The same with the strides that were planned for; views in the program depend on them."""
        for tensor, stride in zip(tensors, self._strides, strict=True):
            if tensor.stride() != stride:
                return [_strided(t, s) for t, s in zip(tensors, self._strides, strict=True)]
        return tensors


def as_dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors with the strides that programs are made for."""
    return [_strided(tensor, dense_stride(tensor)) for tensor in tensors]


def _strided(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    if tensor.stride() == stride:
        return tensor
    tensor = tensor.detach()
    made = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return made.copy_(tensor)


def are_plain(tensors: Sequence[Any]) -> bool:
    """Whether all are tensors of PyTorch's own, not of a subclass with ideas about operations."""
    return all(type(tensor) is Tensor or type(tensor) is torch.nn.Parameter for tensor in tensors)
