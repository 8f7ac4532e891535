"""Classes whose instances are told by their fields alone."""

from __future__ import annotations

import dataclasses
import weakref

__all__ = ["is_record"]

_MANY = 64

# What has been found of classes, which are not kept alive.
_records: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()


def is_record(kind: type) -> bool:
    """Whether its instances are fields and nothing else: frozen dataclasses without methods or slots."""
    known = _records.get(kind)
    if known is None:
        known = _records[kind] = _has_fields_alone(kind)
    return known


def _has_fields_alone(kind: type) -> bool:
    if not getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        return False
    known = [vars(base) for base in kind.__mro__[:-1]]
    fields = {field.name for field in dataclasses.fields(kind)}
    own = {name for names in known for name, value in names.items() if callable(value)} - fields
    few = len(fields) <= _MANY
    return few and all(name[:2] == "__" for name in own) and kind.__dictoffset__ != 0
