"""Our docstrings as Griffe reads them: it knows fewer sections than CONTRIBUTING.md asks for."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

# What Griffe does not know becomes a paragraph under its own name; so does what it would take apart, although
# the signature tells the type.
OURS = re.compile(r"^(Returns|Yields|Shapes|Dtypes|Source):\n((?:    .*\n?|\n)+)", re.MULTILINE)


class Sections(griffe.Extension):
    """Names the sections of every docstring in Griffe's way."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = in_griffes_way(obj.docstring.value)


def in_griffes_way(docstring: str) -> str:
    """The same docstring with the sections that Griffe knows."""
    known = re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)
    return OURS.sub(lambda section: _paragraph(section[1], textwrap.dedent(section[2])), known)


def _paragraph(name: str, text: str) -> str:
    return f"**{name}:**\n\n{text.strip()}\n\n"
