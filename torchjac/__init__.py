"""Exact Jacobians and Hessians of PyTorch functions: right, and as fast as the best hand-made way."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from torchjac import errors
from torchjac.planning.products.operator import LinearOperator
from torchjac.structure.color import color
from torchjac.structure.coloring import Coloring
from torchjac.structure.pattern import SparsityPattern
from torchjac.transforms.batched import batched_jac
from torchjac.transforms.blocks import jac_blocks
from torchjac.transforms.contractions import divergence, hessian_diag, jac_diag, laplacian
from torchjac.transforms.hessian import hessian
from torchjac.transforms.jac import jac
from torchjac.transforms.jac_of import jac_of
from torchjac.transforms.operators import hessian_operator, jac_operator
from torchjac.transforms.sparsity import hessian_sparsity, jac_sparsity

if _TYPE_CHECKING:
    from torchjac.planning.plans.plan import Plan
    from torchjac.transforms.loading import load_plan

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
    "jac_blocks",
    "jac_diag",
    "jac_of",
    "jac_operator",
    "jac_sparsity",
    "laplacian",
    "load_plan",
    "testing",
]


# Loaded by those who use them: the test tools, and what takes half of all modules to import.
_LATER = {
    "Plan": "torchjac.planning.plans.plan",
    "load_plan": "torchjac.transforms.loading",
    "testing": "torchjac.testing",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'torchjac' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LATER[name])
    return module if name == "testing" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
