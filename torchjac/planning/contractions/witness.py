"""Contractions held against plain backward passes, and against other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torchjac.evaluation.engines import Direction, FlatFunction, linearize
from torchjac.evaluation.forms import Form, HessianForm, JacobianForm, ProductForm, contracted
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.probes import magnitude, random_like, rounding, tolerance
from torchjac.evaluation.surroundings import Draw, has_values, is_out_of_memory
from torchjac.foundations.groups import GroupSeeds, ProbeSeeds
from torchjac.foundations.layout import Layout
from torchjac.planning.attempt import attempt
from torchjac.planning.contractions.contraction import Contraction
from torchjac.planning.memory import Record
from torchjac.planning.verify import verified
from torchjac.planning.ways import Way

__all__ = ["check_along_a_line", "colors_agree", "is_telling", "way_agrees"]


class _Projected:
    """The sum of a function's outputs, each times a random number: one Hessian for all of them."""

    def __init__(self, function: FlatFunction) -> None:
        self._function = function
        self.captures_primals = getattr(function, "captures_primals", False)

    def __call__(self, primals: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return (self.of(self._function(primals)[0]),), ()

    @staticmethod
    def of(outputs: Sequence[Tensor]) -> Tensor:
        """The projection of outputs, or of anything like them."""
        generator = torch.Generator("cpu").manual_seed(0)
        total = torch.zeros((), dtype=outputs[0].dtype, device=outputs[0].device)
        for output in outputs:
            weights = 0.5 + torch.rand(output.shape, generator=generator, device="cpu")
            total = total + (weights.to(output) * output).sum()
        return total


class _Line:
    """A scalar function along a line through its point: there a second derivative is one number."""

    def __init__(self, function: FlatFunction, primals: Sequence[Tensor]) -> None:
        scale = max(1.0, *map(magnitude, primals))
        self._function = function
        self._primals = [primal.detach() for primal in primals]
        self._directions = [scale * direction for direction in random_like(self._primals)]

    def __call__(self, place: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        pairs = zip(self._primals, self._directions, strict=True)
        moved = [primal + place[0].to(primal) * direction for primal, direction in pairs]
        return self._function(moved)[0], ()


def check_along_a_line(asked: Contraction, record: Record, draw: Draw) -> None:
    """Warn where plain backward passes disagree with a difference of gradients, as `verified` does.

    Args:
        asked: of second order.
        record: what is known of such comparisons; nothing is compared once one has told enough.
        draw: the random state at the call's start.
    """
    way = Way("reverse", False, "reverse")
    if way in record.checked or not has_values(asked.primals) or not asked.primals[0].numel():
        return
    coarsest = max(asked.primals, key=lambda primal: torch.finfo(primal.dtype).eps)
    line = replace(
        asked.problem,
        function=_Line(_Projected(asked.function), asked.primals),
        primals=[torch.zeros((), dtype=coarsest.dtype, device=coarsest.device)],
        others=None,
        shown=None,
    )
    try:
        with draw.aside():
            answer = attempt(line, way, None)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        record.checked.add(way)  # no double backward: there is nothing to compare
        return
    verified(line, answer, record, draw, lambda way: attempt(line, way, None))


def way_agrees(
    asked: Contraction, form: Form, layout: Layout, size: int | None, draw: Draw
) -> tuple[bool, bool]:
    """Compare what two random seeds give with plain backward passes: do they agree, and does that tell?

    Where there are no such passes the way stands, and there is nothing to compare at other points either.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    signs = 2.0 * torch.randint(0, 2, (2, layout.total), generator=generator, device="cpu") - 1
    seeds = ProbeSeeds(layout, signs)
    with draw.aside():
        got = [part.detach() for part in contracted(form, seeds, size)]
    try:
        with draw.aside():
            expected, atol, rtol = _trusted(asked, seeds)
    except Exception:  # noqa: BLE001 - no plain backward pass: nothing to compare with
        return True, True
    if asked.kind == "trace":
        got = [_Projected.of(got)] if asked.problem.order == 2 else got
        scale = sum(float(part.abs().sum()) for part in expected)
        expected = [torch.stack([part.sum() for part in expected]).sum()]
    else:
        scale = max((float(part.abs().max()) for part in expected if part.numel()), default=0.0)
    agrees = all(
        not bool(want.isfinite().all()) or bool(((have - want).abs() <= rtol * scale + atol).all())
        for have, want in zip(got, expected, strict=True)
    )
    return agrees, is_telling(expected)


def is_telling(found: Sequence[Tensor]) -> bool:
    """Whether what has stood a comparison stands for other points too.

    All zero, or not finite, it would have stood as well if a rule were wrong: people warm up with zeros.
    """
    return all(bool(part.isfinite().all()) for part in found) and any(map(torch.any, found))


def _trusted(asked: Contraction, seeds: ProbeSeeds) -> tuple[list[Tensor], float, float]:
    """The sum of v ∗ A·v by plain backward passes; what that may be off by, absolutely and relatively."""
    form = _diagonal(asked, "reverse", vectorise=False)
    engine = form.engine
    outputs = [*engine.values, *(engine.carried if asked.problem.order == 2 else ())]
    found = [part.detach() for part in contracted(form, seeds, 1)]
    return found, rounding(outputs), tolerance([*engine.primals, *outputs])


def _diagonal(asked: Contraction, direction: Direction, *, vectorise: bool) -> ProductForm:
    """The diagonal of the Jacobian, or of the Hessian of the one output or of the sum of all."""
    function = asked.function
    own = getattr(function, "captures_primals", False)
    primals = asked.primals if own else [primal.detach() for primal in asked.primals]
    if asked.problem.order == 1:
        return JacobianForm(linearize(function, primals, direction), "diagonal")
    scalar = function if asked.kind == "diagonal" else _Projected(function)
    gradient = Jacobian(scalar, "reverse", vectorise=vectorise)
    return HessianForm(gradient, primals, direction, "diagonal")


def colors_agree(
    asked: Contraction, way: Way, colors: Tensor, size: int | None, leaves: Sequence[Tensor]
) -> bool:
    """Whether seeds with numbers of all magnitudes in place of the ones give the same.

    Of w ∗ A·w, over w², A[i, i] is left, and A[i, j]·w[j]/w[i] for all that i shares its seed with: that is
    another number for every w, unless there is no such entry.
    """
    layout = Layout(asked.primals)
    generator = torch.Generator("cpu").manual_seed(1)
    numbers = torch.rand((2, layout.total), generator=generator, dtype=torch.float64, device="cpu")
    weights = (0.5 + numbers[0]) * torch.where(numbers[1] < 0.5, -1, 1)
    try:
        # A forward Laplacian takes no product.
        direction = "reverse" if way.inner == "forward" else way.direction
        form = _diagonal(asked, direction, vectorise=way.vectorised)
        found = contracted(form, GroupSeeds(layout, colors, weights), size)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False  # nobody can tell
    parts = [
        part.detach() / own.to(part).square().reshape(part.shape)
        for part, own in zip(found, weights.split(layout.counts), strict=True)
    ]
    leaves = [leaf.detach() for leaf in leaves]
    scales = [float(part.abs().max()) if part.numel() else 0.0 for part in parts]
    scale = max(scales, default=0.0)
    if asked.kind == "trace":
        scale = sum(float(part.abs().sum()) for part in parts)
        parts = [torch.stack([part.sum() for part in parts]).sum()]
        leaves = [_Projected.of(leaves)] if asked.problem.order == 2 else leaves
    margin = tolerance(leaves) * scale + 1e-12
    return all(
        bool(((one - other).abs() <= margin).logical_or(~other.isfinite()).all())
        for one, other in zip(leaves, parts, strict=True)
    )
