"""What the transforms are compared with: loops of plain backward passes, and differences.

Nothing here uses vmap, forward mode, or the library's own engines.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tests.ops.database import Case, Unusable
from torchjac.testing.finite_difference import direction

__all__ = ["Blocks", "Truth", "hessian_truth", "jac_truth", "same"]

Blocks: TypeAlias = "list[list[Tensor]]"
"""``blocks[output][input]``, each ``(*out, *in)``."""

_RTOL = 1e-6
# Half a unit of bfloat16 in the last place: what its rounding makes of a number.
_COARSE = 2.0**-8


@dataclass
class Truth:
    """What plain autograd says, and what a difference along one random direction says."""

    plain: Blocks
    tangents: list[Tensor]
    quotient: Tensor | None
    """J·v from values alone; None where there are no differences to take."""
    error: Tensor
    exact: bool = True
    """Whether all is computed in float64; else plain autograd is as coarse as what it is compared with."""

    @property
    def sound(self) -> bool:
        """Whether plain autograd itself is right, as far as the difference can tell."""
        return not self.contradicts(self.plain)

    def accepts(self, got: Blocks) -> bool:
        """Whether ``got`` is what plain autograd says, or better where that is wrong itself."""
        return same(got, self.plain, self.exact) or not (self.sound or self.contradicts(got))

    def contradicts(self, blocks: Blocks) -> bool:
        """Whether J·v is further from the difference quotient than that one is uncertain."""
        if self.quotient is None:
            return False
        product, plain = self._along(blocks), self._along(self.plain)
        known = self.quotient.isfinite() & self.error.isfinite()
        # Where plain autograd is not finite either there may be no derivative.
        known &= product.isfinite() | plain.isfinite()
        slack = 10 * self.error + _RTOL * (1 + self.quotient.abs())
        close = (product - self.quotient).abs() <= slack
        return bool((known & ~close).any())

    def _along(self, blocks: Blocks) -> Tensor:
        """J·v."""
        products = []
        for row in blocks:
            total = torch.zeros(())
            for block, tangent in zip(row, self.tangents, strict=True):
                # (*out, *in) -> (*out, n) -> (*out)
                out = block.shape[: block.dim() - tangent.dim()]
                total = total + (block * tangent).reshape((*out, tangent.numel())).sum(-1)
            products.append(total.reshape(-1))
        return torch.cat(products)


def same(got: Blocks, expected: Blocks, exact: bool = True) -> bool:
    """Whether two Jacobians agree in shape, dtype, and wherever the expected one is finite."""
    pairs = [
        (block, wanted)
        for row, expected_row in zip(got, expected, strict=True)
        for block, wanted in zip(row, expected_row, strict=True)
    ]
    return all(_same_block(block, wanted, exact) for block, wanted in pairs)


def _same_block(block: Tensor, wanted: Tensor, exact: bool) -> bool:
    if block.shape != wanted.shape or block.dtype != wanted.dtype:
        return False
    known = wanted.isfinite()
    size = float(wanted[known].abs().max()) if known.any() else 0.0
    # Written so that a NaN where a number is wanted is no agreement.
    close = (block - wanted).abs() <= (_RTOL * (1 + size) if exact else _COARSE * size)
    return bool((close | ~known).all())


def jac_truth(case: Case) -> Truth:
    """The Jacobian by one plain backward pass per row, over a graph recorded once.

    Raises:
        Unusable: plain autograd has no derivative.
    """
    leaves, outputs = _recorded(case, case.primals)
    differentiable = [output for output in outputs if output.is_floating_point()]
    plain = _rows(differentiable, leaves)
    for output, row in zip(differentiable, plain, strict=True):
        for block in row:
            # Outside of the domain of the function there is no derivative to be right about.
            block[~output.detach().isfinite()] = torch.nan

    def values(primals: Sequence[Tensor]) -> list[Tensor]:
        torch.manual_seed(0)
        return [v for v in case.func(*[p.clone() for p in primals]) if v.is_floating_point()]

    return _truth(case, plain, values)


def hessian_truth(case: Case) -> Truth:
    """The Hessian of a scalar function by plain backward passes over a plain backward pass.

    Raises:
        Unusable: plain autograd has no second derivative.
    """

    def gradient(primals: Sequence[Tensor]) -> list[Tensor]:
        leaves, (output,) = _recorded(case, primals)
        return _backward([output], leaves, [torch.ones_like(output)])

    leaves, (output,) = _recorded(case, case.primals)
    slopes = _backward([output], leaves, [torch.ones_like(output)], create_graph=True)
    return _truth(case, _rows(slopes, leaves), gradient)


def _recorded(case: Case, primals: Sequence[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        leaves = [primal.detach().clone().requires_grad_() for primal in primals]
        return leaves, case.func(*[leaf.clone() for leaf in leaves])


def _backward(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    create_graph: bool = False,
) -> list[Tensor]:
    pairs = [(y, u) for y, u in zip(outputs, cotangents, strict=True) if y.requires_grad]
    grads: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                grads = torch.autograd.grad(
                    [y for y, _ in pairs],
                    leaves,
                    [u for _, u in pairs],
                    retain_graph=True,
                    create_graph=create_graph,
                    allow_unused=True,
                )
            except (RuntimeError, NotImplementedError) as error:
                raise Unusable("has no derivative in plain autograd") from error
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]


def _rows(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> Blocks:
    """One pass for every entry of every output; the other outputs have zeros for cotangents."""
    blocks = []
    for number, output in enumerate(outputs):
        rows = []
        for at in range(output.numel()):
            cotangents = [torch.zeros(y.shape, dtype=y.dtype).flatten() for y in outputs]
            cotangents[number][at] = 1
            shaped = [u.reshape(y.shape) for u, y in zip(cotangents, outputs, strict=True)]
            rows.append([row.detach() for row in _backward(outputs, leaves, shaped)])
        blocks.append(
            [
                torch.stack(column).reshape((*output.shape, *leaf.shape))
                for column, leaf in zip(zip(*rows, strict=True), leaves, strict=True)
            ]
            if rows
            else [leaf.detach().new_zeros((*output.shape, *leaf.shape)) for leaf in leaves]
        )
    return blocks


def _truth(
    case: Case, plain: Blocks, values: Callable[[Sequence[Tensor]], Sequence[Tensor]]
) -> Truth:
    generator = torch.Generator().manual_seed(0)
    tangents = [
        torch.rand(p.shape, dtype=p.dtype, generator=generator) * 2 - 1 for p in case.primals
    ]
    quotient, error = None, torch.zeros(0)
    if case.exact:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                estimate = direction(values, case.primals, tangents)
            quotient, error = estimate.value, estimate.error
        except RuntimeError:  # outside of its domain, just beside this point
            quotient = None
    return Truth(plain, tangents, quotient, error, case.exact)
