"""A difference of gradients: what products with a Hessian must say, made without a second backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.gradients import Gradients
from torchjac.evaluation.probes import difference_probe, have_differences, magnitude, random_like
from torchjac.evaluation.surroundings import Draw

__all__ = ["GradientDifferences"]


class GradientDifferences:
    """How the gradients ∇f_o of all outputs change together, c weighing the outputs, along w.

    That is Σ_o c_o·H_o·w, one vector of inputs: what c makes of H·w, and, every H_o being symmetric, Hᵀ
    times c⊗w. So one difference judges products with either side.

    Args:
        gradients: of the function; its outputs are ``(*out, *in)``, outputs outermost.
        primals: where.
        values: what the function returned there.
    """

    def __init__(
        self, gradients: Gradients, primals: Sequence[Tensor], values: Sequence[Tensor]
    ) -> None:
        self._gradients, self._values = gradients, values
        self._primals = [primal.detach() for primal in primals]
        self.tangents = random_like(self._primals)
        """w."""
        self._weights = random_like([value.detach() for value in values])

    @property
    def cotangents(self) -> list[Tensor]:
        """c⊗w, as the outputs of the gradients are."""
        # (*out), (*in) -> (*out, *in)
        return [torch.tensordot(c.to(w), w, dims=0) for c in self._weights for w in self.tangents]

    def contracted(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """What c makes of leaves like the gradients."""
        n = len(self._primals)
        # leaves[output · n + i] (*out, *in) -> [i] (*in)
        return [
            torch.stack(
                [
                    torch.tensordot(c.to(leaf), leaf, dims=c.dim())
                    for c, leaf in zip(self._weights, leaves[i::n], strict=True)
                ]
            ).sum(0)
            for i in range(n)
        ]

    def agree(self, change: Sequence[Tensor], draw: Draw, slack: float) -> bool:
        """Whether ``change``, one vector of inputs, agrees; True where a difference tells nothing.

        Args:
            change: what products say.
            draw: the random state that the function was evaluated at.
            slack: what an element may be off by beside; see `rounding_of_terms`.
        """
        if not have_differences(self._primals):
            return True
        if not all(bool(value.isfinite().all()) for value in self._values):
            return True  # outside its domain a function has no differences either
        # A step along w is as long as one for the elements themselves would be.
        scale = max(1.0, *[magnitude(primal) for primal in self._primals])

        def along(line: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            here = [
                primal + (scale * line[0]).to(w) * w
                for primal, w in zip(self._primals, self.tangents, strict=True)
            ]
            with draw.aside(), torch.no_grad():
                gradients, carried = self._gradients(here)
            return tuple(self.contracted(gradients)), carried

        coarsest = max(self._primals, key=lambda primal: torch.finfo(primal.dtype).eps)
        start = torch.zeros((), dtype=coarsest.dtype, device=coarsest.device)
        leaves = [[scale * leaf] for leaf in change]
        return difference_probe(along, [start], leaves, batched=False, slack=scale * slack)
