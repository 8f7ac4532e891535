"""Plain values as JSON, with their arrays beside it; and back, without ever running anything.

A file is a zip archive of ``plan.json`` and of arrays of integers, 64 bits each, the lowest byte first. In
``plan.json`` a value that JSON lacks is an object with one key, which says what it is.
"""

from __future__ import annotations

import collections
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchjac.errors import PlanError
from torchjac.structure.coloring import Coloring
from torchjac.structure.pattern import SparsityPattern

__all__ = ["Json", "Packer", "Unpacker"]

Json: TypeAlias = Any

_MANIFEST = "plan.json"
_AS_THEY_ARE = (type(None), bool, int, float, str)
_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format)


class Packer:
    """Values on their way into a file; ``name`` is that of the call, for messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._arrays: list[Tensor] = []
        self._known: dict[SparsityPattern | Coloring, Json] = {}

    def pack(self, value: Any) -> Json:
        """A value as JSON; of a tensor only its kind.

        Raises:
            PlanError: it is nothing that a file can hold.
        """
        if type(value) in _AS_THEY_ARE:
            return value
        if isinstance(value, Tensor) and value.layout is torch.strided:
            kind = [str(value.dtype), str(value.device)]
            return {"tensor": [list(value.shape), list(value.stride()), *kind]}
        if isinstance(value, _OF_TORCH):
            return {"torch": str(value)}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if type(value) in (list, tuple, torch.Size):
            return {type(value).__name__: [self.pack(part) for part in value]}
        if type(value) in (dict, collections.OrderedDict):
            pairs = [[self.pack(key), self.pack(part)] for key, part in value.items()]
            return {type(value).__name__: pairs}
        if type(value) is slice:
            return {"slice": [self.pack(part) for part in (value.start, value.stop, value.step)]}
        if type(value) is complex:
            return {"complex": [value.real, value.imag]}
        if value is Ellipsis:
            return {"ellipsis": None}
        if isinstance(value, (SparsityPattern, Coloring)):
            return self._once(value)
        raise PlanError(
            f"{self._name}: there is a {type(value).__name__} among the arguments or options, which a file "
            f"cannot hold. Tensors and plain values can be saved (numbers, strings, None, dtypes, devices, "
            f"slices; in tuples, lists and dicts); let func capture the rest."
        )

    def _once(self, value: SparsityPattern | Coloring) -> Json:
        """A pattern or a colouring, whose arrays are written once however often it is mentioned."""
        if value not in self._known:
            if isinstance(value, SparsityPattern):
                arrays = [self._array(value.rows), self._array(value.cols)]
                self._known[value] = {"pattern": [*arrays, list(value.shape)]}
            else:
                colors = [self._array(c) for c in (value.column_colors, value.row_colors)]
                self._known[value] = {
                    "coloring": [self.pack(value.pattern), value.by, *colors, value.max_terms]
                }
        return self._known[value]

    def _array(self, array: Tensor | None) -> int | None:
        if array is None:
            return None
        self._arrays.append(array)
        return len(self._arrays) - 1

    def write(self, path: str | os.PathLike[str], manifest: Json) -> None:
        """Write a file of JSON, and the arrays that were packed for it."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=1))
            for number, array in enumerate(self._arrays):
                archive.writestr(f"arrays/{number}", array.numpy().tobytes())


class Unpacker:
    """Values on their way out of a file. A file that is none raises whatever it makes Python raise."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with zipfile.ZipFile(path) as archive:
            self.manifest: Json = json.loads(archive.read(_MANIFEST))
            arrays = [name for name in archive.namelist() if name != _MANIFEST]
            self._arrays = {name: bytearray(archive.read(name)) for name in arrays}
        self._patterns: dict[int, SparsityPattern] = {}
        self._generator = torch.Generator().manual_seed(0)

    def unpack(self, packed: Json) -> Any:
        """The value that was packed; for a tensor another one of its kind."""
        if not isinstance(packed, dict):
            return packed
        ((what, content),) = packed.items()
        return _READERS[what](self, content)

    def _all(self, content: list[Json]) -> list[Any]:
        return [self.unpack(part) for part in content]

    def _pattern(self, content: list[Json]) -> SparsityPattern:
        rows, cols, shape = content
        if rows not in self._patterns:
            found = SparsityPattern(self._array(rows), self._array(cols), tuple(shape))
            self._patterns[rows] = found
        return self._patterns[rows]

    def _coloring(self, content: list[Json]) -> Coloring:
        pattern, by, columns, rows, max_terms = content
        colors = [None if number is None else self._array(number) for number in (columns, rows)]
        return Coloring(self.unpack(pattern), by, *colors, max_terms=max_terms)

    def _array(self, number: int) -> Tensor:
        held = self._arrays[f"arrays/{number}"]
        return (
            torch.frombuffer(held, dtype=torch.int64) if held else torch.empty(0, dtype=torch.int64)
        )

    def _tensor(self, content: list[Json]) -> Tensor:
        """A stand-in: numbers between 0 and 1, where most functions are defined; integers are 0."""
        shape, stride, dtype, device = content
        steps = [(size - 1) * step for size, step in zip(shape, stride, strict=True)]
        count = 0 if 0 in shape else 1 + sum(steps)
        dtype = _of_torch(self, dtype)
        values = torch.zeros(count, dtype=dtype, device=_device(self, device))
        if dtype.is_floating_point or dtype.is_complex:
            wide = torch.complex128 if dtype.is_complex else torch.float64
            drawn = torch.rand(count, dtype=wide, generator=self._generator, device="cpu")
            values = drawn.to(values.device, dtype)
        return values.as_strided(shape, stride)


def _of_torch(_: Unpacker, content: str) -> Any:
    found = getattr(torch, content.removeprefix("torch."))
    if not isinstance(found, _OF_TORCH):
        raise ValueError(content)
    return found


def _device(_: Unpacker, content: str) -> torch.device:
    device = torch.device(content)
    try:
        torch.empty(1, device=device)
    except Exception as error:
        raise PlanError(f"it is for device {content!r}, which is not here ({error})") from error
    return device


_READERS: Mapping[str, Callable[[Unpacker, Any], Any]] = {
    "tensor": Unpacker._tensor,
    "torch": _of_torch,
    "device": _device,
    "list": Unpacker._all,
    "tuple": lambda unpacker, content: tuple(unpacker._all(content)),
    "Size": lambda unpacker, content: torch.Size(content),
    "dict": lambda unpacker, content: dict(map(unpacker._all, content)),
    "OrderedDict": lambda unpacker, content: collections.OrderedDict(map(unpacker._all, content)),
    "slice": lambda unpacker, content: slice(*unpacker._all(content)),
    "complex": lambda unpacker, content: complex(*content),
    "ellipsis": lambda unpacker, content: Ellipsis,
    "pattern": Unpacker._pattern,
    "coloring": Unpacker._coloring,
}
