"""Exact Jacobians and Hessians of PyTorch functions: right, and as fast as the best hand-made way."""

from torchjac import errors
from torchjac.transforms.batched import batched_jac
from torchjac.transforms.hessian import hessian
from torchjac.transforms.jac import jac
from torchjac.transforms.jac_of import jac_of

__all__ = ["batched_jac", "errors", "hessian", "jac", "jac_of", "testing"]


def __getattr__(name: str) -> object:
    # The test tools are loaded by those who use them, and by nothing else here.
    if name == "testing":
        import importlib

        return importlib.import_module("torchjac.testing")
    raise AttributeError(f"module 'torchjac' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
