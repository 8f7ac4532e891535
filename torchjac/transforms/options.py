"""The options that transforms share: one name, one meaning, one check, when the transform is built."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from torchjac.errors import OptionError, OptionTypeError
from torchjac.evaluation.surroundings import compiling, without_transforms
from torchjac.planning.modes import HESSIAN_MODES, MODES
from torchjac.structure.blocks import LAYOUTS
from torchjac.structure.coloring import Coloring
from torchjac.structure.pattern import SparsityPattern

__all__ = ["PARAMS", "Argnums", "Check", "ChunkSize", "HessianMode", "Mode", "Options", "Sparsity"]

Mode: TypeAlias = Literal["auto", "forward", "reverse"]
HessianMode: TypeAlias = Literal[
    "auto",
    "forward-over-reverse",
    "reverse-over-reverse",
    "reverse-over-forward",
    "forward-over-forward",
]
Check: TypeAlias = Literal["first", "always", "never"]
ChunkSize: TypeAlias = "int | Literal['auto'] | None"
Sparsity: TypeAlias = "SparsityPattern | Coloring | Tensor | Literal['detect'] | Any | None"
Argnums: TypeAlias = "int | tuple[int, ...] | Literal['params']"

PARAMS = "params"
_CHECKS = ("first", "always", "never")


class Options(NamedTuple):
    """What a transform was built with, checked."""

    name: str
    argnums: Any
    has_aux: bool
    return_value: bool
    mode: str
    chunk_size: Any
    check: str
    sparsity: Any = None
    layout: torch.layout = torch.strided

    @staticmethod
    def checked(
        name: str,
        func: Callable[..., Any],
        argnums: Any,
        has_aux: bool = False,
        return_value: bool = False,
        mode: str = "auto",
        chunk_size: Any = "auto",
        check: str = "first",
        sparsity: Any = None,
        layout: torch.layout = torch.strided,
    ) -> Options:
        """Refuse what cannot be meant, naming the call and what would be right."""
        check_function(name, func)
        rest = (has_aux, return_value, mode, chunk_size, check, sparsity, layout)
        # The compiler warns of what remembers anything.
        if type(argnums) is int and sparsity is None and not compiling():
            try:
                return _kept(name, argnums, *rest)
            except TypeError:  # an option that cannot be hashed is refused in words below
                pass
        check_argnums(name, func, argnums)
        return _checked(name, argnums, *rest)


def _checked(
    name: str,
    argnums: Any,
    has_aux: bool,
    return_value: bool,
    mode: str,
    chunk_size: Any,
    check: str,
    sparsity: Any,
    layout: torch.layout,
) -> Options:
    """The options that do not depend on the function."""
    check_flag(name, "has_aux", has_aux)
    check_flag(name, "return_value", return_value)
    check_choice(name, "mode", mode, HESSIAN_MODES if name == "hessian" else MODES)
    check_chunk_size(name, chunk_size)
    check_choice(name, "check", check, _CHECKS)
    pattern = None if sparsity is None else as_sparsity(name, sparsity)
    if isinstance(pattern, (SparsityPattern, Coloring)):
        pattern = _representative(pattern)
    check_layout(name, layout, pattern)
    if isinstance(pattern, Coloring):
        mode = _mode_of(name, mode, pattern)
    return Options(name, argnums, has_aux, return_value, mode, chunk_size, check, pattern, layout)


# People build a transform anew for every call: what is plain is checked once.
_kept = functools.lru_cache(maxsize=256, typed=True)(_checked)


def check_function(name: str, func: object) -> None:
    """Refuse what cannot be called."""
    if not callable(func):
        raise OptionTypeError(f"{name}(func): expected a callable, got {type(func).__name__}.")


def check_argnums(name: str, func: Callable[..., Any], argnums: object) -> None:
    """Refuse what is no choice among the arguments of a function."""
    if argnums == PARAMS:
        if not isinstance(func, torch.nn.Module):
            raise OptionTypeError(
                f"{name}(argnums='params'): func must be an nn.Module, whose parameters are meant; got "
                f"{type(func).__name__}. For a function, pass the parameters as an argument instead."
            )
        return
    meaning = "expected an int, a tuple of ints, or 'params' for the parameters of a module"
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if isinstance(argnums, str) or not numbers:
        raise OptionError(f"{name}(argnums={argnums!r}): {meaning}.")
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise OptionTypeError(f"{name}(argnums={argnums!r}): {meaning}.")
    if len(set(numbers)) < len(numbers):
        raise OptionError(
            f"{name}(argnums={argnums!r}): an argument is chosen twice; name it once."
        )


def check_choice(name: str, option: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not one of those allowed."""
    if not isinstance(value, str) or value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise OptionError(f"{name}({option}={value!r}): expected one of {words}.")


def check_flag(name: str, option: str, value: object) -> None:
    """Refuse what is not True or False."""
    if not isinstance(value, bool):
        raise OptionTypeError(f"{name}({option}={value!r}): expected True or False.")


def check_chunk_size(name: str, chunk_size: object) -> None:
    """Refuse what is no number of seeds."""
    if chunk_size is None or chunk_size == "auto":
        return
    meaning = "expected a positive int, None for all at once, or 'auto'"
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, (int, str)):
        raise OptionTypeError(f"{name}(chunk_size={chunk_size!r}): {meaning}.")
    if isinstance(chunk_size, str) or chunk_size < 1:
        raise OptionError(f"{name}(chunk_size={chunk_size!r}): {meaning}.")


def as_sparsity(name: str, sparsity: Any) -> SparsityPattern | Coloring | Literal["detect"]:
    """Take what may be given for a pattern, and refuse what is none."""
    if isinstance(sparsity, (SparsityPattern, Coloring)):
        return sparsity
    meaning = "expected None, 'detect', a SparsityPattern, a Coloring or a boolean matrix"
    if isinstance(sparsity, str):
        if sparsity != "detect":
            raise OptionError(f"{name}(sparsity={sparsity!r}): {meaning}.")
        return "detect"
    boolean = getattr(sparsity, "dtype", None) in (torch.bool, bool)
    if boolean and isinstance(sparsity, Tensor) and sparsity.dim() == 2:
        with without_transforms():
            if sparsity.layout is torch.strided:
                return SparsityPattern.from_dense(sparsity)
            rows, cols = sparsity.to_sparse_coo().coalesce().indices()
            return SparsityPattern.from_coo(rows, cols, tuple(sparsity.shape))
    if boolean and getattr(sparsity, "ndim", None) == 2 and not isinstance(sparsity, Tensor):
        made = (
            SparsityPattern.from_scipy if hasattr(sparsity, "tocsr") else SparsityPattern.from_dense
        )
        return made(sparsity)
    got = type(sparsity).__name__
    if hasattr(sparsity, "dtype"):
        got = f"{got} of {sparsity.dtype} and shape {tuple(sparsity.shape)}"
    raise OptionTypeError(
        f"{name}(sparsity=...): {meaning}, got {got}. "
        f"SparsityPattern.from_dense and from_scipy take the nonzeros of other matrices."
    )


Given = TypeVar("Given", bound=SparsityPattern | Coloring)
_given: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def _representative(given: Given) -> Given:
    """The first of all that are equal: two are compared entry by entry at every call, one never."""
    first = _given.setdefault(given, weakref.ref(given))()
    return given if first is None else first


def _mode_of(name: str, mode: str, coloring: Coloring) -> str:
    """The mode that products with the given colours are made in; refuse colours that do not belong here."""
    if name == "hessian":
        if coloring.by != "symmetric":
            raise OptionError(
                f"{name}(sparsity={coloring!r}): the colours of a Hessian are by='symmetric'. Give those, or "
                f"the pattern."
            )
        return mode
    modes = {"columns": "forward", "rows": "reverse", "bidirectional": "auto"}
    if coloring.by not in modes:
        raise OptionError(
            f"{name}(sparsity={coloring!r}): colours by='symmetric' are those of a Hessian. Give colours by "
            f"columns, rows or both, or the pattern."
        )
    needed = modes[coloring.by]
    if mode not in ("auto", needed):
        raise OptionError(
            f"{name}(mode={mode!r}, sparsity={coloring!r}): the colours are seeds of mode={needed!r}. Leave "
            f"mode away, or give the pattern."
        )
    return needed


def check_layout(name: str, layout: object, sparsity: object) -> None:
    """Refuse a layout that cannot be made, or not without knowing where the nonzeros are."""
    if layout not in LAYOUTS:
        words = ", ".join(str(known) for known in LAYOUTS)
        raise OptionError(f"{name}(layout={layout!r}): expected one of {words}.")
    if layout is not torch.strided and sparsity is None:
        raise OptionError(
            f"{name}(layout={layout!r}): a sparse layout needs to know where the nonzeros are. Pass "
            f"sparsity='detect', or a pattern."
        )
