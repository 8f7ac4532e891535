"""The options that the oracles share: what each may be, and the words for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torchjac.errors import OptionError, OptionTypeError
from torchjac.transforms.options import check_argnums, check_flag, check_function

__all__ = ["check_options"]


class _Rule(NamedTuple):
    types: tuple[type, ...]
    is_allowed: Callable[[Any], bool]
    expected: str


_TOLERANCE = _Rule(
    (int, float, type(None)),
    lambda value: value is None or 0 <= value < math.inf,
    "a finite number that is not negative, or None for that of the dtype",
)
_RULES = {
    "kwargs": _Rule(
        (Mapping, type(None)),
        lambda value: all(isinstance(name, str) for name in value or ()),
        "a dict of keyword arguments, or None",
    ),
    "samples": _Rule((int,), lambda value: value >= 1, "a positive int"),
    "rtol": _TOLERANCE,
    "atol": _TOLERANCE,
    "step": _Rule(
        (int, float, type(None)),
        lambda value: value is None or 0 < value < math.inf,
        "a positive number, or None for the default",
    ),
    "seed": _Rule((int,), lambda value: 0 <= value < 2**63, "an int that is not negative"),
}


def check_options(where: str, func: Any, argnums: object, **options: object) -> None:
    """Refuse what cannot be meant, naming the call, what came and what was expected."""
    check_function(where, func)
    check_argnums(where, func, argnums)
    for name, value in options.items():
        rule = _RULES.get(name)
        if rule is None:
            check_flag(where, name, value)
            continue
        message = f"{where}({name}={value!r}): expected {rule.expected}."
        if isinstance(value, bool) or not isinstance(value, rule.types):
            raise OptionTypeError(message)
        if not rule.is_allowed(value):
            raise OptionError(message)
