"""A line on the terminal that says how far a long computation has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from torchjac.evaluation.surroundings import compiling

__all__ = ["Meter", "metered"]

_EVERY = 0.1  # seconds: faster than that nobody reads


class Meter(Protocol):
    """Is told what has been done."""

    def update(self, done: int) -> object:
        """So many more passes are done."""


class _Silent:
    """Nobody is shown anything. A plain class, which a compiler traces and a small call does not feel."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, done: int) -> None:
        pass


class _Line:
    """What tqdm shows, in one plain line on standard error, rewritten in place."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._done, self._shown, self._width = 0, 0.0, 0
        self._began = time.monotonic()
        self._show()

    def update(self, done: int) -> None:
        self._done += done
        if time.monotonic() - self._shown >= _EVERY:
            self._show()

    def close(self) -> None:
        self._show()
        self._write("\n")

    def _show(self) -> None:
        self._shown = time.monotonic()
        line = describe(self._name, self._done, self._total, self._shown - self._began)
        # A shorter line has to cover what is left of a longer one.
        self._write(f"\r{line:<{self._width}}")
        self._width = len(line)

    def _write(self, text: str) -> None:
        if sys.stderr is None:
            return  # a program without a console
        # That nobody can read it any more (closed, a broken pipe) is no reason to lose the work.
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def describe(name: str, done: int, total: int, seconds: float) -> str:
    """Passes done, their rate and the time left.

    Example:
        >>> describe("jac", 500, 2000, 10.0)
        'jac: 500/2000 passes (25%), 50 per second, 0:30 left'
        >>> describe("jac", 0, 2000, 0.1)
        'jac: 0/2000 passes (0%)'
        >>> describe("jac", 3, 9, 360.0)
        'jac: 3/9 passes (33%), 0.0083 per second, 12:00 left'
    """
    line = f"{name}: {done}/{total} passes ({100 * done // max(total, 1)}%)"
    if not done or seconds <= 0:
        return line
    rate = done / seconds
    left = round((total - done) / rate)
    hours, minutes, rest = left // 3600, left // 60 % 60, left % 60
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    number = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
    return f"{line}, {number} per second, {clock} left"


def metered(name: str | None, total: int) -> AbstractContextManager[Meter]:
    """Show within the block how many of ``total`` passes are done; with tqdm where it is installed.

    Args:
        name: of the call that is shown; None to show nothing. A compiler that traces the call shows nothing.
        total: how many passes there will be.
    """
    return _Silent() if name is None or compiling() else _shown(name, total)


@contextmanager
def _shown(name: str, total: int) -> Iterator[Meter]:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        line = _Line(name, total)
        try:
            yield line
        finally:
            line.close()
        return
    with tqdm(total=total, desc=name, unit="pass") as bar:
        yield bar
