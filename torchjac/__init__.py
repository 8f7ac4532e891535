"""Exact Jacobians and Hessians of PyTorch functions, right and as fast as the best hand-made way."""

from torchjac import errors
from torchjac.transforms.batched import batched_jac
from torchjac.transforms.hessian import hessian
from torchjac.transforms.jac import jac
from torchjac.transforms.jac_of import jac_of

__all__ = ["batched_jac", "errors", "hessian", "jac", "jac_of", "testing"]
