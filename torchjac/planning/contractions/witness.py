"""Contractions held against plain backward passes, and against other seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.engines import FlatFunction, linearize
from torchjac.evaluation.forms import Form, HessianForm, JacobianForm, contracted
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.probes import rounding, tolerance
from torchjac.evaluation.surroundings import Draw
from torchjac.foundations.groups import GroupSeeds, ProbeSeeds
from torchjac.foundations.layout import Layout
from torchjac.planning.contractions.contraction import Contraction

__all__ = ["colors_agree", "way_agrees"]


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


def way_agrees(
    asked: Contraction, form: Form, layout: Layout, size: int | None, draw: Draw
) -> bool:
    """Compare what two random seeds give with plain backward passes; True where there are none."""
    generator = torch.Generator("cpu").manual_seed(0)
    signs = 2.0 * torch.randint(0, 2, (2, layout.total), generator=generator, device="cpu") - 1
    seeds = ProbeSeeds(layout, signs)
    with draw.aside():
        got = [part.detach() for part in contracted(form, seeds, size)]
    try:
        with draw.aside():
            expected, atol, rtol = _trusted(asked, seeds)
    except Exception:  # noqa: BLE001 - no plain backward pass: nothing to compare with
        return True
    if asked.kind == "trace":
        got = [_Projected.of(got)] if asked.problem.order == 2 else got
        scale = sum(float(part.abs().sum()) for part in expected)
        expected = [torch.stack([part.sum() for part in expected]).sum()]
    else:
        scale = max((float(part.abs().max()) for part in expected if part.numel()), default=0.0)
    return all(
        not bool(want.isfinite().all()) or bool(((have - want).abs() <= rtol * scale + atol).all())
        for have, want in zip(got, expected, strict=True)
    )


def _trusted(asked: Contraction, seeds: ProbeSeeds) -> tuple[list[Tensor], float, float]:
    """The sum of v ∗ A·v by plain backward passes; what that may be off by, absolutely and relatively."""
    function = asked.function
    own = getattr(function, "captures_primals", False)
    primals = asked.primals if own else [primal.detach() for primal in asked.primals]
    form: JacobianForm | HessianForm
    if asked.problem.order == 1:
        form = JacobianForm(linearize(function, primals, "reverse"), "diagonal")
        outputs = list(form.engine.values)
    else:
        scalar = function if asked.kind == "diagonal" else _Projected(function)
        gradient = Jacobian(scalar, "reverse", vectorise=False)
        engine = linearize(gradient, primals, "reverse")
        form = HessianForm(engine, [torch.Size()], "diagonal")
        outputs = [*engine.values, *engine.carried]
    found = [part.detach() for part in contracted(form, seeds, 1)]
    return found, rounding(outputs), tolerance([*primals, *outputs])


def colors_agree(
    form: Form, colors: Tensor, layout: Layout, size: int | None, leaves: Sequence[Tensor]
) -> bool:
    """Whether seeds of the same colours with random signs give the same.

    What two inputs of one colour have in common, against the pattern, changes its sign with theirs.
    """
    generator = torch.Generator("cpu").manual_seed(1)
    signs = 2.0 * torch.randint(0, 2, (layout.total,), generator=generator, device="cpu") - 1
    others = contracted(form, GroupSeeds(layout, colors, signs), size)
    rtol = tolerance(leaves)
    pairs = [(one.detach(), other.detach()) for one, other in zip(leaves, others, strict=True)]
    scale = max((float(one.abs().max()) for one, _ in pairs if one.numel()), default=0.0)
    return all(
        bool((one - other).abs().le(rtol * scale + 1e-12).logical_or(~other.isfinite()).all())
        for one, other in pairs
    )
