"""The verdict on one derivative: run the probes, find the entries that are wrong, say why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchjac.errors import UnsupportedError
from torchjac.testing.point import unravel
from torchjac.testing.probes import Comparison, Probe, compare, locate, random_vector, unit_vector
from torchjac.testing.report import CheckReport, DerivativeError, Mismatch
from torchjac.testing.structure import Axis
from torchjac.testing.tolerances import Tolerance

__all__ = ["Judge"]


class _Seen(NamedTuple):
    """A probe, the vectors it used, and what came out."""

    probe: Probe
    vectors: list[Tensor]
    compared: Comparison


class Judge:
    """Holds a derivative, flattened to one axis per side, against independent probes."""

    def __init__(
        self,
        where: str,
        what: str,
        tensor: Tensor,
        axes: Sequence[Axis],
        allowance: Tolerance,
        seed: int,
    ) -> None:
        self._where, self._what = where, what
        self._tensor, self._axes, self._allowance = tensor, axes, allowance
        self._generator = torch.Generator().manual_seed(seed)
        self._closeness: dict[str, float] = {}
        self._notes: dict[str, None] = {}
        self._found: dict[tuple[int, ...] | None, Mismatch] = {}

    def verdict(
        self, probes: Sequence[Probe], samples: int, *, symmetric: bool = False
    ) -> CheckReport:
        """Compare by every probe; raise if anything is wrong, and tell what was seen if not."""
        seen, usable = self._compare(probes, samples)
        if not usable and not symmetric:
            raise UnsupportedError(
                f"{self._where}: nothing to compare with: {'; '.join(self._notes)}"
            )
        for one in seen:
            self._judge(one, usable)
        if symmetric:
            self._judge_symmetry()
        if self._found:
            listed = "\n".join(str(mismatch) for mismatch in self._found.values())
            raise DerivativeError(
                f"{self._where}: the {self._what} is wrong:\n{listed}", tuple(self._found.values())
            )
        shape = tuple(self._tensor.shape)
        return CheckReport(self._where, shape, dict(self._closeness), tuple(self._notes))

    def _compare(self, probes: Sequence[Probe], samples: int) -> tuple[list[_Seen], list[Probe]]:
        """What every probe sees, and the probes that work: PyTorch may refuse to differentiate."""
        seen, usable = [], list(probes)
        for _ in range(samples):
            vectors = [random_vector(axis.scale, self._generator) for axis in self._axes]
            for probe in tuple(usable):
                kept = [vector for axis, vector in enumerate(vectors) if axis != probe.free]
                try:
                    compared = compare(self._tensor, probe, kept, self._allowance)
                except RuntimeError as error:
                    self._notes[
                        f"no {probe.reference_name}: {str(error).strip().splitlines()[0]}"
                    ] = None
                    usable.remove(probe)
                    continue
                seen.append(_Seen(probe, kept, compared))
        return seen, usable

    def _judge(self, seen: _Seen, usable: Sequence[Probe]) -> None:
        probe, vectors, compared = seen
        resolved = ~compared.unresolved
        apart = compared.excess + compared.allowed
        closest = self._closeness.get(probe.name, 0.0)
        self._closeness[probe.name] = max(
            closest, _ratio(apart[resolved], compared.allowed[resolved])
        )
        size, lost = len(compared.got), int(compared.unresolved.sum())
        if lost:
            self._notes[f"the {probe.reference_name} is undefined in {lost} of {size} entries"] = (
                None
            )
        if not size or float(compared.excess.max()) <= 0:
            return
        worst = int(compared.excess.argmax())
        entry = locate(self._tensor, probe, vectors, self._allowance, worst)
        if entry is None and probe.name == "difference":
            place = self._axes[probe.free].place(worst)
            self._notes[f"not differentiable here: slopes of {place} do not add up"] = None
        elif entry not in self._found:
            self._found[entry] = self._mismatch(seen, worst, entry, usable)

    def _judge_symmetry(self) -> None:
        """Compare a Hessian's entries with their mirror images."""
        hessian = self._tensor
        self._closeness["symmetry"] = 0.0
        if not hessian.numel():
            return
        mirrored = hessian.transpose(1, 2)
        # The scale of entry (i, j) is that of its row and its column.
        rows = hessian.abs().amax(2, keepdim=True)
        scale = (rows * rows.transpose(1, 2)).sqrt()
        allowed = self._allowance.atol + self._allowance.rtol * scale
        apart = torch.where(hessian.isnan() & mirrored.isnan(), 0.0, (hessian - mirrored).abs())
        self._closeness["symmetry"] = _ratio(apart, allowed)
        excess = (apart - allowed).nan_to_num(nan=0.0)
        o, i, j = unravel(int(excess.argmax()), excess.shape)
        if float(excess[o, i, j]) <= 0 or (o, i, j) in self._found or (o, j, i) in self._found:
            return
        self._found[o, i, j] = Mismatch(
            f"symmetry probe, in {int((excess > 0).sum()) // 2} pair(s) of entries",
            self._axes[0].place(o),
            (self._axes[1].place(i), self._axes[2].place(j)),
            float(hessian[o, i, j]),
            {"mirror image": float(hessian[o, j, i])},
            float(allowed[o, i, j]),
        )

    def _mismatch(
        self, seen: _Seen, worst: int, entry: tuple[int, ...] | None, usable: Sequence[Probe]
    ) -> Mismatch:
        probe, _, compared = seen
        bad, size = int((compared.excess > 0).sum()), len(compared.excess)
        side = "output" if probe.free == 0 else "input"
        found_by = f"{probe.name} probe, in {bad} of {size} {side} entries"
        hints = self._pattern_hints(seen)
        if entry is None:
            place = self._axes[probe.free].place(worst)
            return Mismatch(
                found_by,
                place if probe.free == 0 else None,
                () if probe.free == 0 else (place,),
                float(compared.got[worst]),
                {probe.reference_name: float(compared.expected[worst])},
                float(compared.allowed[worst]),
                hints,
            )
        alone = {each.reference_name: self._at(each, entry) for each in usable}
        return Mismatch(
            found_by,
            self._axes[0].place(entry[0]),
            tuple(axis.place(index) for axis, index in zip(self._axes[1:], entry[1:], strict=True)),
            float(self._tensor[entry]),
            {name: float(each.expected) for name, each in alone.items()},
            float(alone[probe.reference_name].allowed),
            (*hints, *self._blame(alone)),
        )

    def _at(self, probe: Probe, entry: tuple[int, ...]) -> Comparison:
        """The comparison of a single entry, by unit vectors."""
        vectors = [
            unit_vector(axis.size, index)
            for position, (axis, index) in enumerate(zip(self._axes, entry, strict=True))
            if position != probe.free
        ]
        compared = compare(self._tensor, probe, vectors, self._allowance)
        return Comparison(*(part[entry[probe.free]] for part in compared))

    def _blame(self, alone: dict[str, Comparison]) -> list[str]:
        agree = [name for name, each in alone.items() if float(each.excess) <= 0]
        if len(alone) < 2 or not agree:
            return []
        if agree[0].startswith("reverse"):
            return [
                f"the {agree[0]} agrees with it: either a backward rule is wrong, or func hides a "
                "dependency from autograd (detach, no_grad, .data, .item())"
            ]
        return [
            f"the {agree[0]} agrees with it: a backward rule that plain reverse mode uses is wrong"
        ]

    def _pattern_hints(self, seen: _Seen) -> tuple[str, ...]:
        hints, (probe, vectors, compared) = [], seen
        telling = compared.expected.abs() > 100 * compared.allowed
        ratio = compared.got[telling] / compared.expected[telling]
        scale = float(ratio.mean()) if len(ratio) > 1 else 1.0
        if abs(scale - 1) > 1e-4 and float((ratio - scale).abs().max()) <= 1e-4 * abs(scale):
            hints.append(f"all of it looks {f'scaled by {scale:.6g}' if scale else 'like zero'}")
        square = self._tensor.dim() == 2 and self._tensor.shape[0] == self._tensor.shape[1]
        if square and not bool(compared.unresolved.any()):
            turned = compare(self._tensor.T, probe, vectors, self._allowance)
            if float(turned.excess.max()) <= 0:
                hints.append("its transpose is right")
        return tuple(hints)


def _ratio(apart: Tensor, allowed: Tensor) -> float:
    ratio = (apart / allowed).nan_to_num(nan=0.0)
    return float(ratio.max()) if ratio.numel() else 0.0
