"""Is this derivative right? Oracles that share no code with what they judge, and random functions.

- `finite_difference_jac`: a Jacobian from function values alone, with an estimate of its error.
- `check_jac`, `check_hessian`: compare a derivative with independent ones by random products, and
  name the entry that is wrong. They raise `DerivativeError`, an `AssertionError`.
- `strategies`: Hypothesis strategies for tensors, trees, random differentiable programs, and
  arguments for them. They alone need Hypothesis (``pip install 'torchjac[testing]'``).

A property test of a function of your own, over zeros, ties and random values, takes a few lines:

    >>> from hypothesis import given, settings
    >>> from torchjac.testing import check_jac, strategies
    >>> def spring(x, stiffness):
    ...     return stiffness @ (x - x.mean()).sin()
    >>> @settings(deadline=None)  # the first call loads PyTorch's derivative rules
    ... @given(strategies.tensors((3,)), strategies.tensors((2, 3)))
    ... def test_spring(x, stiffness):
    ...     check_jac(spring, x, stiffness, argnums=(0, 1))
    >>> test_spring()

A derivative of your own making is checked in one, and the message says where it is wrong:

    >>> import torch
    >>> x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    >>> check_jac(lambda x: x.exp(), x, jac=torch.diag(x.exp() + torch.tensor([0, 0, 1])))
    Traceback (most recent call last):
    ...
    torchjac.testing.report.DerivativeError: check_jac: the Jacobian is wrong:
    at output [2], by x [2]:
        got                8.389056099
        reverse pass       7.389056099
        finite difference  7.389056099
        allowed difference 8.4e-08; found by the adjoint probe, in 1 of 3 input entries

And so is a transform, over random programs:

    >>> import torchjac
    >>> @settings(deadline=None)
    ... @given(strategies.programs_with_arguments(smooth=True))
    ... def test_forward_mode(case):
    ...     program, args = case
    ...     check_jac(program, *args, jac=torchjac.jac(program, mode="forward"))
    >>> test_forward_mode()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torchjac.testing.checks import check_hessian, check_jac
from torchjac.testing.finite_difference import finite_difference_jac
from torchjac.testing.report import CheckReport, DerivativeError, Mismatch, Place

if TYPE_CHECKING:
    from torchjac.testing import strategies

__all__ = [
    "CheckReport",
    "DerivativeError",
    "Mismatch",
    "Place",
    "check_hessian",
    "check_jac",
    "finite_difference_jac",
    "strategies",
]


def __getattr__(name: str) -> Any:
    # Hypothesis is imported by those who use it.
    if name == "strategies":
        return importlib.import_module("torchjac.testing.strategies")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
