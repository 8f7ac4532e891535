"""Everything torchjac raises or warns with.

Each error derives from `TorchjacError` and from the built-in that fits, so both ``except
TorchjacError`` and the ``except ValueError`` of code that knows nothing of torchjac catch it. Every
message names the call, what came, what was expected, and what to do.
"""

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BatchCouplingError",
    "DerivativeMismatchWarning",
    "OptionError",
    "OptionTypeError",
    "OutputTypeError",
    "PatternError",
    "PlanError",
    "PlanMismatchError",
    "RankError",
    "SparsityMismatchError",
    "StructureError",
    "TorchjacError",
    "TorchjacFallbackWarning",
    "UnsupportedError",
]


class TorchjacError(Exception):
    """Base of every error that torchjac raises itself."""


class OptionError(TorchjacError, ValueError):
    """An option has a value that is not allowed; raised when the transform is built, where it can be."""


class OptionTypeError(TorchjacError, TypeError):
    """An option, or the function itself, has the wrong type; raised when the transform is built."""


class ArgumentError(TorchjacError, ValueError):
    """The arguments of a call do not fit the transform: argnums out of range, unequal batches."""


class ArgumentTypeError(TorchjacError, TypeError):
    """A differentiated argument is not a real floating-point tensor."""


class OutputTypeError(TorchjacError, TypeError):
    """The function returned something that has no Jacobian."""


class UnsupportedError(TorchjacError, NotImplementedError):
    """PyTorch refuses to differentiate the function in every way that the options allow."""


class StructureError(TorchjacError, ValueError):
    """The structure of a Jacobian cannot be detected, or there is none worth detecting."""


class BatchCouplingError(TorchjacError, ValueError):
    """Samples that were promised to be independent influence each other."""


class PatternError(TorchjacError, ValueError):
    """A sparsity pattern is malformed, or does not fit what it is given for."""


class PlanMismatchError(TorchjacError, ValueError):
    """A plan was given arguments, or finds a function, that it was not made for."""


class PlanError(TorchjacError, ValueError):
    """A plan cannot be made, verified, compiled, saved or loaded."""


class SparsityMismatchError(TorchjacError, ValueError):
    """A sparsity pattern that was given lacks entries which the derivative has."""


class RankError(TorchjacError, RuntimeError):
    """Another process of a mesh cannot go on, so that this one cannot either."""


class DerivativeMismatchWarning(UserWarning):
    """A derivative rule of PyTorch, or of a custom function, gave a wrong answer and was replaced."""


class TorchjacFallbackWarning(UserWarning):
    """The fastest way was refused by PyTorch, and a slower one was taken."""
