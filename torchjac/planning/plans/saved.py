"""What is in the file of a plan, read and checked for being one."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torchjac.errors import PlanError
from torchjac.planning.compressed import Compression
from torchjac.planning.memory import Record
from torchjac.planning.plans import brackets
from torchjac.planning.plans.candidates import Candidate
from torchjac.planning.plans.costs import Cost
from torchjac.planning.plans.packing import Json, Unpacker
from torchjac.planning.plans.saving import FORMAT, versions
from torchjac.planning.plans.waists import Waist
from torchjac.planning.ways import Way
from torchjac.structure.soundness import flaw

__all__ = ["Saved", "read"]

# What reading something else than a plan makes Python raise.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
)
_AGAIN = "Make a new plan, and save that."


@dataclass(frozen=True)
class Saved:
    """What is in a file, before there is a function to it."""

    path: str
    versions: Mapping[str, str]
    transform: str
    keywords: Mapping[str, Any]
    args: tuple[Any, ...]
    """Stand-ins where tensors were."""
    kwargs: Mapping[str, Any]
    primals: list[str]
    fingerprint: Mapping[str, Any]
    record: Record
    compression: Compression | None
    relies_on_constants: bool
    waist: Waist | None
    """Without its cuts,"""
    cuts: list[list[int]]
    """which are nodes of a graph that is still to be traced."""
    considered: list[Candidate]
    chosen: int
    is_traced: bool
    through_waist: bool
    reason: str
    notes: list[str]

    def refuse(self, why: str) -> PlanError:
        """The error for what does not fit."""
        return PlanError(f"load_plan({self.path!r}): {why}. {_AGAIN}")

    @property
    def other_versions(self) -> str:
        """A sentence on the versions that are not those of today, or nothing."""
        now = versions()
        then = [f"{name} {was}" for name, was in self.versions.items() if now.get(name) != was]
        here = [f"{name} {now[name]}" for name, was in self.versions.items() if now[name] != was]
        if not then:
            return ""
        return f" (it was saved with {', '.join(then)}, and here is {', '.join(here)})"


def read(path: str | os.PathLike[str]) -> Saved:
    """Read a file that `Plan.save` wrote; nothing in it is run.

    Raises:
        PlanError: it is of another format, damaged, or no plan; or a device is missing.
        OSError: it cannot be opened.
    """
    where = f"load_plan({os.fspath(path)!r})"
    try:
        unpacker = Unpacker(path)
        found = unpacker.manifest["format"]
    except _UNREADABLE as error:
        raise PlanError(
            f"{where}: this is no plan, or a damaged one ({error}). {_AGAIN}"
        ) from error
    if found != FORMAT:
        raise PlanError(
            f"{where}: the plan has format {found!r}, and this version of torchjac reads format {FORMAT}. "
            f"{_AGAIN}"
        )
    try:
        return _saved(os.fspath(path), unpacker)
    except PlanError as error:
        raise PlanError(f"{where}: {error}. {_AGAIN}") from error
    except _UNREADABLE as error:
        raise PlanError(
            f"{where}: the plan is damaged ({type(error).__name__}: {error}). {_AGAIN}"
        ) from error


def _saved(path: str, unpacker: Unpacker) -> Saved:
    manifest, unpack = unpacker.manifest, unpacker.unpack
    args, kwargs = unpack(manifest["arguments"])
    record, packed, waist = manifest["record"], manifest["compression"], manifest["waist"]

    def compression(packed: Json) -> Compression:
        colorings = list(map(unpack, packed["colorings"]))
        pattern = unpack(packed["pattern"])
        for coloring in colorings:
            wrong = "it is of another pattern" if coloring.pattern != pattern else flaw(coloring)
            if wrong:
                raise PlanError(f"the colouring of {coloring.by} is none: {wrong}")
        name = manifest["transform"]
        return Compression(pattern, symmetric=packed["symmetric"], name=name, colorings=colorings)

    considered = [_candidate(candidate) for candidate in manifest["considered"]]
    return Saved(
        path=path,
        versions=manifest["versions"],
        transform=manifest["transform"],
        keywords=unpack(manifest["keywords"]),
        args=args,
        kwargs=kwargs,
        primals=manifest["primals"],
        fingerprint=manifest["fingerprint"],
        record=Record(
            output_counts=tuple(record["output_counts"]),
            largest=record["largest"],
            ways=tuple([Way(*way) for way in record["ways"]]),
        ),
        compression=None if packed is None else compression(packed),
        relies_on_constants=packed is not None and packed["relies_on_constants"],
        waist=None if waist is None else _waist(waist, compression),
        cuts=[] if waist is None else waist["cuts"],
        considered=considered,
        chosen=range(len(considered))[manifest["chosen"]],
        is_traced=manifest["runs"]["traced"],
        through_waist=manifest["runs"]["waist"],
        reason=manifest["reason"],
        notes=manifest["notes"],
    )


def _candidate(packed: Json) -> Candidate:
    cost = None if packed["cost"] is None else Cost(*packed["cost"])
    return Candidate(**{**packed, "way": Way(*packed["way"]), "cost": cost})


def _waist(packed: Json, compression: Callable[[Json], Compression]) -> Waist:
    sizes, cost, passes = packed["bracketing"]
    tree = _tree(packed["tree"])
    factors = {at: compression(factor) for at, factor in packed["factors"]}
    bracketing = brackets.Bracketing(tuple(sizes), cost, passes, tree)
    return Waist((), bracketing, packed["saves"], factors, packed["batched"])


_TREES: Mapping[str, Callable[..., brackets.Tree]] = {
    kind.__name__: kind
    for kind in (
        brackets.Along,
        brackets.Against,
        brackets.ContinueAlong,
        brackets.ContinueAgainst,
        brackets.Product,
    )
}


def _tree(packed: Json) -> brackets.Tree:
    name, *parts = packed
    return _TREES[name](*[part if isinstance(part, int) else _tree(part) for part in parts])
