"""Exact Jacobians and Hessians of PyTorch functions: right, and as fast as the best hand-made way."""

from torchjac import errors
from torchjac.planning.operator import LinearOperator
from torchjac.planning.plan import Plan
from torchjac.structure.coloring import Coloring, color
from torchjac.structure.pattern import SparsityPattern
from torchjac.transforms.batched import batched_jac
from torchjac.transforms.contractions import divergence, hessian_diag, jac_diag, laplacian
from torchjac.transforms.hessian import hessian
from torchjac.transforms.jac import jac
from torchjac.transforms.jac_of import jac_of
from torchjac.transforms.loading import load_plan
from torchjac.transforms.operators import hessian_operator, jac_operator
from torchjac.transforms.sparsity import hessian_sparsity, jac_sparsity

__all__ = [
    "Coloring",
    "LinearOperator",
    "Plan",
    "SparsityPattern",
    "batched_jac",
    "color",
    "divergence",
    "errors",
    "hessian",
    "hessian_diag",
    "hessian_operator",
    "hessian_sparsity",
    "jac",
    "jac_diag",
    "jac_of",
    "jac_operator",
    "jac_sparsity",
    "laplacian",
    "load_plan",
    "testing",
]


def __getattr__(name: str) -> object:
    # The test tools are loaded by those who use them, and by nothing else here.
    if name == "testing":
        import importlib

        return importlib.import_module("torchjac.testing")
    raise AttributeError(f"module 'torchjac' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
