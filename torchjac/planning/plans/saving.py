"""Writing a plan down: what was costly to find, and what it has to fit.

The derivative's graph is not written: whoever loads a plan traces the function again, which is cheap, and
which tells whether it is the same function. No code and no object of the user's is in the file.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING, Any

import torch

from torchjac.errors import PlanError
from torchjac.evaluation.programs.fingerprints import (
    code_fingerprint,
    graph_fingerprint,
    numbered,
    value_fingerprint,
)
from torchjac.planning.compressed import Compression
from torchjac.planning.plans.brackets import Tree
from torchjac.planning.plans.candidates import Candidate
from torchjac.planning.plans.packing import Json, Packer
from torchjac.planning.plans.waists import Waist

if TYPE_CHECKING:
    from torchjac.planning.plans.plan import Plan

__all__ = ["FORMAT", "kinds", "save", "versions"]

FORMAT = 2
"""Goes up whenever older versions could not read what is written, or read it wrongly."""


def save(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write ``plan`` to ``path``, or raise `PlanError`."""
    path = os.fspath(path)
    packer = Packer(f"{plan._name}.save")
    packer.write(path, _manifest(plan, packer))


def versions() -> dict[str, str]:
    """What a trace, or the code of a function, may depend on."""
    try:
        own = importlib.metadata.version("torchjac")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        own = "unknown"
    return {"torchjac": own, "torch": torch.__version__, "Python": platform.python_version()}


def kinds(tensors: Any) -> list[str]:
    """The tensors that are differentiated by, in words that can be compared in another process."""
    return [f"{tuple(t.shape)} {t.dtype} {t.device}" for t in tensors]


def _manifest(plan: Plan, packer: Packer) -> Json:
    found, transform, record = plan._design, plan._transform, plan._record
    pack = functools.partial(_compression, packer, plan)
    return {
        "format": FORMAT,
        "versions": versions(),
        "transform": transform.name,
        "keywords": packer.pack(dict(transform.keywords)),
        "arguments": packer.pack(plan._fields.given),
        "primals": kinds(plan._problem.primals),
        "fingerprint": _fingerprint(plan),
        "record": {
            "output_counts": list(record.output_counts),
            "largest": record.largest,
            "ways": [list(way) for way in record.ways],
        },
        "compression": None if found.compression is None else pack(found.compression),
        "waist": None if found.waist is None else _waist(plan, found.waist, pack),
        "considered": [_candidate(candidate) for candidate in found.considered],
        "chosen": [candidate is found.chosen for candidate in found.considered].index(True),
        "runs": {"traced": plan._program is not None, "waist": found.chosen.waist is not None},
        "reason": found.reason,
        "notes": found.notes,
    }


def _fingerprint(plan: Plan) -> Json:
    linear, compression = plan._design.linear, plan._design.compression
    relies = compression is not None and compression.relies_on_constants
    if linear is None:
        if relies:
            raise PlanError(
                f"{plan._name}.save: the pattern holds for the values of captured tensors, and func could "
                f"not be traced, so nobody could tell later whether it still does. Give the pattern by "
                f"hand: sparsity=plan.pattern."
            )
        return {"of": "code", "digest": code_fingerprint(plan._transform.func)}
    captured = numbered(linear.graph)
    values = _by_value(plan, captured) if relies else []
    return {
        "of": "trace",
        "digest": graph_fingerprint(linear.graph),
        "by_value": values,
        "values": value_fingerprint(captured[at] for at in values),
    }


def _by_value(plan: Plan, captured: list[torch.Tensor]) -> list[int]:
    """Which of the captured tensors the pattern may hold for the values of."""
    compression = plan._design.compression
    assert compression is not None
    if compression.is_stale:
        raise PlanError(
            f"{plan._name}.save: a captured tensor, with whose values the pattern was found, has been "
            f"changed since. Make a new plan."
        )
    watched = plan._captures.tensors
    constants = {id(tensor) for tensor in compression.constants}
    # What func makes itself, as torch.tensor(...) does, is made anew by every trace.
    own = {id(tensor) for tensor in watched} - constants
    return [
        at
        for at, tensor in enumerate(captured)
        if id(tensor) not in own and tensor.layout is torch.strided
    ]


def _compression(packer: Packer, plan: Plan, compression: Compression) -> Json:
    return {
        "pattern": packer.pack(compression.pattern),
        "symmetric": compression.symmetric,
        "colorings": [packer.pack(coloring) for coloring in compression.colorings],
        "relies_on_constants": compression.relies_on_constants,
    }


def _waist(plan: Plan, waist: Waist, pack: Any) -> Json:
    linear, bracketing = plan._design.linear, waist.bracketing
    assert linear is not None
    number = {node: at for at, node in enumerate(linear.graph.graph.nodes)}
    return {
        "cuts": [[number[node] for node in cut] for cut in waist.cuts],
        "bracketing": [list(bracketing.sizes), bracketing.cost, bracketing.passes],
        "tree": _tree(bracketing.tree),
        "saves": waist.saves,
        "factors": [[at, pack(factor)] for at, factor in waist.factors.items()],
        "batched": waist.batched,
    }


def _tree(tree: Tree) -> Json:
    parts = [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    return [
        type(tree).__name__,
        *[part if isinstance(part, int) else _tree(part) for part in parts],
    ]


def _candidate(candidate: Candidate) -> Json:
    return {
        "name": candidate.name,
        "way": list(candidate.way),
        "passes": candidate.passes,
        "chunk_size": candidate.chunk_size,
        "colored": candidate.colored,
        "cost": None if candidate.cost is None else list(candidate.cost),
        "refusal": candidate.refusal,
        "seconds": candidate.seconds,
    }
