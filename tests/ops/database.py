"""PyTorch's own database of operators, as functions of tensors at a point."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from torchjac.foundations.pytree import flatten, unflatten

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

__all__ = ["OPS", "Case", "Unusable", "cases", "evaluate", "scalar"]

# Samples looked at, samples taken, and how large these may be: most have 20×20 entries or fewer.
_LOOKED_AT = 20
_TAKEN = 3
_MOST_INPUTS = 450
_MOST_OUTPUTS = 650


class Unusable(Exception):  # noqa: N818 - a finding about PyTorch, not an error
    """An operator, or one of its samples, that has no Jacobian to compare with."""


@dataclass
class Case:
    """A sample of an operator: a function of the tensors that it is differentiated by."""

    func: Callable[..., tuple[Tensor, ...]]
    primals: tuple[Tensor, ...]
    sample: str
    exact: bool
    """Whether all values have the precision that finite differences need."""

    @property
    def argnums(self) -> tuple[int, ...]:
        return tuple(range(len(self.primals)))

    @property
    def size(self) -> int:
        return sum(primal.numel() for primal in self.primals)


def _name(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


OPS: dict[str, Any] = {_name(op): op for op in op_db}


def cases(op: Any) -> list[Case]:
    """A few small samples of ``op`` that can be differentiated, spread over what it offers.

    Raises:
        Unusable: there are none; the message says why the first sample is not one.
    """
    if not op.supports_dtype(torch.float64, "cpu"):
        raise Unusable("takes no float64")
    reasons: list[str] = []
    found: list[Case] = []
    for sample in _samples(op):
        try:
            found.append(_case(op, sample))
        except Unusable as reason:
            reasons.append(str(reason))
    if not found:
        raise Unusable(reasons[0] if reasons else "has no samples")
    taken, last = min(_TAKEN, len(found)), len(found) - 1
    return [found[at * last // max(taken - 1, 1)] for at in range(taken)]


def scalar(case: Case) -> Case:
    """The same sample with all its outputs in one smooth scalar, for Hessians."""
    # Large values would make the sine of them too rough for differences.
    values = evaluate(case)
    if not all(value.isfinite().all() for value in values):
        raise Unusable("is not finite at this sample, so there is no Hessian to be right about")
    scales = [1 + _largest(value) for value in values]

    def func(*tensors: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros((), dtype=torch.float64)
        for value, scale in zip(case.func(*tensors), scales, strict=True):
            if value.is_floating_point():
                weights = torch.arange(1.0, value.numel() + 1, dtype=torch.float64).cos()
                total = total + weights @ (value.double() / scale + 0.5).sin().reshape(-1)
        return (total,)

    return Case(func, case.primals, case.sample, case.exact)


def evaluate(case: Case) -> tuple[Tensor, ...]:
    """Evaluate with plain autograd, from the random state that every evaluation starts from."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return case.func(*[primal.clone().requires_grad_() for primal in case.primals])
        except Exception as error:
            raise Unusable(f"raises {type(error).__name__}") from error


def _samples(op: Any) -> Iterator[Any]:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    samples = list(zip(range(_LOOKED_AT), _quietly(op), strict=False))
    return (sample for _, sample in samples)


def _quietly(op: Any) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from op.sample_inputs("cpu", torch.float64, requires_grad=True)


def _case(op: Any, sample: Any) -> Case:
    """The sample, differentiated by all that it can be, or else by a single tensor of it."""
    leaves, _ = flatten((sample.input, sample.args, sample.kwargs))
    chosen = [at for at, leaf in enumerate(leaves) if _differentiable(leaf)]
    if not chosen:
        raise Unusable("takes no tensor to differentiate by")
    try:
        return _usable(op, sample, chosen)
    except Unusable:
        for at in chosen if len(chosen) > 1 else ():
            try:
                return _usable(op, sample, [at])
            except Unusable:
                continue
        raise


def _usable(op: Any, sample: Any, chosen: list[int]) -> Case:
    leaves, spec = flatten((sample.input, sample.args, sample.kwargs))
    primals = tuple(leaves[at].detach() for at in chosen)
    if not 0 < sum(primal.numel() for primal in primals) <= _MOST_INPUTS:
        raise Unusable("has no small samples")
    constants = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def func(*tensors: Tensor) -> tuple[Tensor, ...]:
        full = list(constants)
        for at, tensor in zip(chosen, tensors, strict=True):
            full[at] = tensor
        first, args, kwargs = unflatten(full, spec)
        result = op.gradcheck_wrapper(op.op, first, *args, **kwargs)
        if sample.output_process_fn_grad is not None:
            result = sample.output_process_fn_grad(result)
        return tuple(_tensors(result))

    case = Case(func, primals, " ".join(repr(sample).split())[:300], exact=True)
    values = evaluate(case)
    _refuse_unusable(values, evaluate(case))
    case.exact = all(v.dtype == torch.float64 for v in values if v.is_floating_point())
    return case


def _differentiable(leaf: object) -> bool:
    if not isinstance(leaf, Tensor) or leaf.layout is not torch.strided:
        return False
    return leaf.requires_grad and leaf.dtype == torch.float64


def _tensors(result: object) -> Iterator[Tensor]:
    """The tensors in a result; a complex one as pairs of real numbers."""
    if isinstance(result, Tensor):
        yield torch.view_as_real(result.resolve_conj()) if result.is_complex() else result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)


def _refuse_unusable(values: tuple[Tensor, ...], again: tuple[Tensor, ...]) -> None:
    real = [value for value in values if value.is_floating_point()]
    if not real:
        raise Unusable("returns no real tensor")
    if any(value.layout is not torch.strided for value in real):
        raise Unusable("returns a sparse tensor")
    reached = [value for value in real if value.requires_grad]
    if not reached:
        raise Unusable("is not differentiable")
    if not 0 < sum(value.numel() for value in real) <= _MOST_OUTPUTS:
        raise Unusable("has no small samples")
    for one, other in zip(values, again, strict=True):
        if one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num()):
            raise Unusable("returns something else every time")
    try:
        torch.autograd.backward(reached, [torch.ones_like(value) for value in reached])
    except (RuntimeError, NotImplementedError) as error:
        raise Unusable("has no derivative in plain autograd") from error


def _largest(value: Tensor) -> float:
    finite = value.detach()[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
