"""What code may look up beside its arguments, and where what it finds stays as it is."""

from __future__ import annotations

import dis
import functools
import types

__all__ = ["UNCHANGING", "mentions"]

# Packages whose functions, and whose modules, stay as they are.
UNCHANGING = frozenset({"builtins", "functools", "math", "operator", "torch", "torchjac"})
# With these, code reaches what it does not mention.
_DYNAMIC = frozenset(
    {"globals", "locals", "vars", "eval", "exec", "getattr", "__import__", "import_module", "open"}
)


@functools.lru_cache(maxsize=1024)
def mentions(code: types.CodeType) -> tuple[tuple[str, ...], bool]:
    """The global names (and attributes) that a code object and those nested in it mention.

    And whether it imports something itself, or asks for names that it does not mention.
    """
    imported = [
        step.argval.partition(".")[0]
        for step in dis.get_instructions(code)
        if step.opname == "IMPORT_NAME"
    ]
    nested = [mentions(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    looks_elsewhere = (
        not UNCHANGING.issuperset(imported)
        or not _DYNAMIC.isdisjoint(code.co_names)
        or any(elsewhere for _, elsewhere in nested)
    )
    names = {*code.co_names, *(name for inner, _ in nested for name in inner)}
    return tuple(names), looks_elsewhere
