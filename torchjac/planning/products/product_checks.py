"""Checks of products that nobody has the matrix of: each is held against one plain backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchjac.evaluation.probes import (
    agree,
    magnitude,
    norms_of,
    random_values,
    rounding,
    tolerance,
    wide,
)
from torchjac.foundations.spaces import Space

__all__ = ["Witness", "combination_agrees", "random_matrix"]


class Witness(NamedTuple):
    """A cotangent u and p = Jᵀu from a plain backward pass: every J·v has ⟨u, J·v⟩ = ⟨p, v⟩."""

    cotangent: Tensor
    product: Tensor

    def agrees(
        self, matrix: Tensor, product: Tensor, likes: Sequence[Tensor], slack: float = 0.0
    ) -> bool:
        """Whether ``product`` can be J times ``matrix``, column by column.

        Args:
            matrix: V, ``(n, k)``.
            product: of J with it, ``(m, k)``.
            likes: values at this point; their dtypes and magnitudes say what is rounding.
            slack: what a number may be off by beside; see `rounding_of_terms`.
        """
        u, p, V, Y = (_wide(t) for t in (self.cotangent, self.product, matrix, product))
        terms = p[:, None] * V
        norms = torch.hypot(norms_of(Y, 0), norms_of(terms, 0))
        rtol, atol = tolerance([matrix, *likes]), (rounding(likes) + slack) * magnitude(V)
        return agree(u @ Y, terms.sum(0), norms, rtol, atol)


def combination_agrees(
    multiply: Callable[[Tensor], Tensor],
    matrix: Tensor,
    product: Tensor,
    likes: Sequence[Tensor],
    slack: float = 0.0,
) -> bool:
    """Whether products of many columns agree with the one of a random combination of them.

    Args:
        multiply: one trusted product, from ``(m, 1)`` to ``(n, 1)``.
        matrix: the columns, ``(m, k)``.
        product: of all of them, ``(n, k)``.
        likes: as for `Witness.agrees`.
        slack: likewise.
    """
    U, X = _wide(matrix), _wide(product)
    weights = random_matrix(matrix.shape[1], 1, like=U)
    expected = _wide(multiply((U @ weights).to(matrix.dtype)))
    norms = norms_of(X, 1)[:, None]
    rtol, atol = tolerance([matrix, *likes]), (rounding(likes) + slack) * magnitude(U)
    return agree(X @ weights, expected, norms, rtol, atol)


def random_matrix(rows: int, columns: int, like: Tensor | Space) -> Tensor:
    """The same in every run, and in every dtype."""
    generator = torch.Generator("cpu").manual_seed(0)
    return random_values((rows, columns), generator).to(like.device, like.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return wide(tensor.detach())
