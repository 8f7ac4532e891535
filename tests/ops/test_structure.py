"""Detected patterns over PyTorch's own database of operators: never an entry too few."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ops.database import OPS, Case, Unusable, cases
from torchjac.errors import StructureError
from torchjac.structure.detection import linear_pattern

Map: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], "list[Tensor | None]"]

UNKNOWN = frozenset(
    {
        "aten._embedding_bag_backward.default",
        "aten._embedding_bag_per_sample_weights_backward.default",
        "aten._segment_reduce_backward.default",
        "aten.multi_margin_loss_backward.default",
        "aten.multilabel_margin_loss_backward.default",
        "aten.ormqr.default",
    }
)
"""Ops without a rule, which count as dense."""


def _real(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [output for output in outputs if output.is_floating_point()]


def forward(case: Case) -> Map:
    def jvp(primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor | None]:
        return [*_real(torch.func.jvp(case.func, tuple(primals), tuple(tangents))[1])]

    return jvp


def reverse(case: Case) -> Map:
    def vjp(primals: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        pull = torch.func.vjp(lambda *leaves: tuple(_real(case.func(*leaves))), *primals)[1]
        return [*pull(tuple(cotangents))]

    return vjp


def plain(case: Case) -> Map:
    def backward(primals: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        leaves = [primal.detach().requires_grad_() for primal in primals]
        pairs = zip(_real(case.func(*leaves)), cotangents, strict=True)
        reached = [(value, seed) for value, seed in pairs if value.requires_grad]
        values, seeds = zip(*reached, strict=True)
        return [*torch.autograd.grad(values, leaves, seeds, allow_unused=True)]

    return backward


NOT_LINEAR = {("native_group_norm", "forward"): "takes the input's tangent for the input itself"}
"""Derivatives that PyTorch computes wrongly in such a way that they have no matrix."""

WAYS = {"forward": forward, "reverse": reverse, "plain": plain}


@pytest.mark.parametrize("name", OPS)
def test_a_detected_pattern_lacks_nothing(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    try:
        samples = cases(OPS[name])
    except Unusable as unusable:
        pytest.skip(f"{name} {unusable}")
    missed, unknown = [], set()
    for way in WAYS:
        statuses = []
        for case in samples:
            status, ops = tried(way, case)
            statuses.append("no derivative" if (name, way) in NOT_LINEAR else status)
            unknown.update(ops)
            if status == "wrong" and (name, way) not in NOT_LINEAR:
                missed.append(f"{way}: {case.sample}")
        for status in ("wrong", "refused", "right"):
            if status in statuses:
                record_property(f"pattern {way}", status)
                break
    assert not missed, "\n".join(missed)
    assert unknown <= UNKNOWN, sorted(unknown - UNKNOWN)


def tried(way: str, case: Case) -> tuple[str, tuple[str, ...]]:
    """What became of one sample, and the ops that had no rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = _outputs(case)
        seeds = list(case.primals) if way == "forward" else outputs
        function = WAYS[way](case)
        try:
            truth = _truth(function, case, seeds)
        except (RuntimeError, ValueError):
            return "no derivative", ()
        try:
            detected = linear_pattern(function, case.primals, seeds)
        except StructureError:
            return "refused", ()
    columns = sum(seed.numel() for seed in seeds)
    sides = outputs if way == "forward" else case.primals
    pattern = np.concatenate(
        [
            np.zeros((side.numel(), columns), bool) if block is None else block.toarray()
            for block, side in zip(detected.blocks, sides, strict=True)
        ]
    )
    return "wrong" if (truth & ~pattern).any() else "right", detected.unknown


def _outputs(case: Case) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return _real(case.func(*[primal.clone() for primal in case.primals]))


def _truth(function: Map, case: Case, seeds: Sequence[Tensor]) -> Any:
    """Where the map is not zero, seed by seed, at the sample and a little beside it."""
    found: Any = None
    generator = torch.Generator().manual_seed(0)
    for distance in (0.0, 0.01):
        primals = [
            primal
            * (1 + distance * torch.rand(primal.shape, dtype=primal.dtype, generator=generator))
            for primal in case.primals
        ]
        try:
            matrix = _matrix(function, primals, seeds)
        except (RuntimeError, ValueError):
            if not distance:
                raise
            continue  # outside of where it is defined
        found = matrix if found is None else found | matrix
    return found


def _matrix(function: Map, primals: list[Tensor], seeds: Sequence[Tensor]) -> Any:
    columns = []
    for leaf, seed in enumerate(seeds):
        for element in range(seed.numel()):
            unit = [torch.zeros(s.shape, dtype=s.dtype) for s in seeds]
            unit[leaf].view(-1)[element] = 1
            torch.manual_seed(0)
            products = function([primal.clone() for primal in primals], unit)
            columns.append(products)
    sizes = [
        next((p.numel() for p in side if p is not None), None)
        for side in zip(*columns, strict=True)
    ]
    if None in sizes:
        # A side that nothing reaches has the size of its primal.
        sizes = [
            primal.numel() if size is None else size
            for size, primal in zip(sizes, primals, strict=True)
        ]
    flat = [
        torch.cat(
            [
                torch.zeros(size, dtype=torch.float64)
                if p is None
                else p.detach().double().reshape(-1)
                for p, size in zip(products, sizes, strict=True)
            ]
        )
        for products in columns
    ]
    matrix = torch.stack(flat, 1)
    return (matrix.isfinite() & (matrix != 0)).numpy()
