"""The processes of a ``torch.distributed`` mesh, and the few things that torchjac asks of them.

They exchange one small report where a call ends, and before anything else is communicated. So what one
of them raises, all of them hear, and nobody waits for a tensor that never comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchjac.errors import ArgumentError, OptionError, OptionTypeError, RankError

__all__ = ["Ranks", "Report", "Split", "best_split", "fingerprint"]


@dataclass(frozen=True)
class Report:
    """What a rank tells the others."""

    stage: str
    """How far the call has come."""
    facts: dict[str, Any]
    """What has to be the same everywhere, by the name that a user knows it by."""
    error: str | None = None
    """What it raised, if it did."""


@dataclass(frozen=True)
class Split:
    """One dimension of a tensor, cut into a stretch for every rank."""

    dim: int
    size: int
    own: range

    def of(self, tensor: Tensor) -> Tensor:
        """This rank's stretch, a view."""
        return tensor.narrow(self.dim, self.own.start, len(self.own))

    def beside(self, dims: int) -> Split:
        """The same stretch of a tensor that has more dimensions in front."""
        return Split(self.dim + dims, self.size, self.own)


class Ranks:
    """The ranks of a one-dimensional mesh.

    Args:
        name: the call that the user made, for messages.
        mesh: a ``torch.distributed`` `DeviceMesh`.
    """

    def __init__(self, name: str, mesh: Any) -> None:
        self.name, self._mesh = name, mesh
        self.rank, self.size = int(mesh.get_local_rank()), int(mesh.size())
        self.facts: dict[str, Any] = {}
        """What this rank knows of the call, and has to be the same on all of them."""
        self.parted = False
        """Whether a meeting ended the call, so that nobody comes to another."""

    @staticmethod
    def check(name: str, mesh: Any) -> None:
        """Refuse what is no mesh that a call can be divided over."""
        where = f"{name}(device_mesh=...)"
        try:
            from torch.distributed.tensor import DTensor  # noqa: F401
        except ImportError as error:
            raise OptionError(
                f"{where}: results are DTensors, and these need torch 2.5."
            ) from error
        if not (hasattr(mesh, "get_group") and hasattr(mesh, "mesh_dim_names")):
            raise OptionTypeError(
                f"{where}: expected a torch.distributed.device_mesh.DeviceMesh, got a "
                f"{type(mesh).__name__}. init_device_mesh('cpu', (size,)) makes one."
            )
        if mesh.ndim != 1:
            raise OptionError(
                f"{where}: expected a mesh of one dimension, got {mesh.ndim}. Name one: mesh['dp']."
            )
        if mesh.get_coordinate() is None:
            raise OptionError(f"{where}: this process is not one of the mesh's.")

    def check_device(self, tensors: Sequence[Tensor]) -> None:
        """Refuse tensors that are not on the mesh's kind of device."""
        for tensor in tensors:
            if tensor.device.type != self._mesh.device_type:
                raise ArgumentError(
                    f"{self.name}(device_mesh=...): the mesh is of {self._mesh.device_type} devices and an "
                    f"argument is on {tensor.device}. Move it, or use another mesh."
                )

    def share(self, count: int) -> range:
        """This rank's stretch of so many, cut as `torch.chunk` and DTensor cut."""
        each = math.ceil(count / self.size)
        return range(min(self.rank * each, count), min((self.rank + 1) * each, count))

    # Communication.

    def meet(self, stage: str, error: Exception | None = None) -> None:
        """Exchange reports with all ranks, and raise on each where one of them cannot go on.

        Args:
            stage: how far the call has come.
            error: what this rank raised itself, if it did.

        Raises:
            RankError: another rank, or this one and not all, raised; or contact is lost.
            ArgumentError: the ranks were not called alike.
            Exception: ``error``, where all ranks raised the same.
        """
        told = None if error is None else f"{type(error).__name__}: {error}"
        reports = self._exchanged(Report(stage, self.facts, told))
        if any(other.error for other in reports):
            if error is not None and len({other.error for other in reports}) == 1:
                raise error  # all of them alike: it has nothing to do with ranks
            self.parted = True
            raise RankError(f"{self.name}(device_mesh=...): {_failures(reports)}") from error
        self._compare(
            [{"how far the call has come": other.stage, **other.facts} for other in reports]
        )

    def _exchanged(self, report: Report) -> list[Report]:
        import torch.distributed as dist

        reports: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(reports, report, group=self._mesh.get_group())
        except Exception as error:  # whatever the backend raises: they have no common class
            self.parted = True
            raise RankError(
                f"{self.name}(device_mesh=...): rank {self.rank} has lost contact with the others; one of "
                f"them has probably ended. The process group can no longer be used. ({error})"
            ) from error
        return reports

    def _compare(self, facts: Sequence[dict[str, Any]]) -> None:
        for name in dict.fromkeys(name for known in facts for name in known):
            told = [known.get(name) for known in facts]
            for rank, other in enumerate(told[1:], start=1):
                if not _alike(told[0], other):
                    self.parted = True
                    raise ArgumentError(
                        f"{self.name}(device_mesh=...): the ranks disagree on {name}: rank 0 has "
                        f"{told[0]}, rank {rank} has {other}. Every rank makes the same call with the same "
                        f"arguments, and torchjac divides the work."
                    )

    def gathered(self, own: Tensor, total: int) -> Tensor:
        """The rows ``(total, ...)`` of which every rank has its `share`; all have the same other sizes."""
        import torch.distributed as dist

        each = math.ceil(total / self.size)
        padded = own.new_zeros(each, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self._mesh.get_group())
        return torch.cat(parts)[:total]

    # Results.

    def sharded(self, own: Tensor, split: Split | None) -> Tensor:
        """A `DTensor` of which this rank has ``own``; the same on all of them if it is not split."""
        from torch.distributed import tensor as dtensor

        own = own.contiguous()
        if split is None:
            place: Any = dtensor.Replicate()
            shape = own.shape
        else:
            place = dtensor.Shard(split.dim)
            sizes = list(own.shape)
            sizes[split.dim] = split.size
            shape = torch.Size(sizes)
        whole: Tensor = dtensor.DTensor.from_local(
            own,
            self._mesh,
            [place],
            run_check=False,
            shape=shape,
            stride=tuple(_strides(shape)),
        )
        return whole

    def split(self, shape: Sequence[int]) -> Split | None:
        """Where to cut a tensor of such a shape; None where there is nothing to cut."""
        dim = best_split(shape, self.size)
        return None if dim is None else Split(dim, shape[dim], self.share(shape[dim]))


def best_split(shape: Sequence[int], ranks: int) -> int | None:
    """The dimension to divide over so many ranks: the first that has one for each, or the largest.

    Example:
        >>> best_split((3, 640, 480), 2), best_split((3, 640, 480), 8), best_split((2, 3), 8)
        (0, 1, 1)
        >>> best_split((), 2), best_split((1, 1), 2)
        (None, None)
    """
    if math.prod(shape) < 2:
        return None
    enough = [dim for dim, size in enumerate(shape) if size >= ranks]
    return enough[0] if enough else max(range(len(shape)), key=lambda dim: shape[dim])


class _Numbers(tuple[float, ...]):
    """What tells one tensor's numbers from another's; equal but for rounding is alike."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"numbers that sum to {self[0]:.6g}"


def fingerprint(tensor: Tensor) -> _Numbers:
    """A few sums over the numbers of a tensor, and how exactly they are known.

    They show that two ranks do not differentiate at one point, where the sum of both shares would be the
    derivative at neither.
    """
    flat = tensor.detach().reshape(-1).double().nan_to_num(0.0, 1e300, -1e300)
    waves = torch.arange(len(flat), dtype=flat.dtype, device=flat.device).mul_(0.7).cos_()
    exact = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 1e-12
    sums = torch.stack([flat.sum(), flat @ waves, flat.abs().sum()]).tolist()
    return _Numbers((*sums, 256 * max(exact, 1e-13)))


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, _Numbers) or not isinstance(other, _Numbers):
        return bool(one == other)
    *sums, scale, exact = one
    *others, other_scale, _ = other
    room = exact * max(scale, other_scale)
    return all(abs(a - b) <= room for a, b in zip(sums, others, strict=True))


def _failures(reports: Sequence[Report]) -> str:
    told = [f"rank {rank} raised {r.error}" for rank, r in enumerate(reports) if r.error]
    return "; ".join(told)


def _strides(shape: Sequence[int]) -> Iterator[int]:
    for dim in range(len(shape)):
        yield math.prod(max(size, 1) for size in shape[dim + 1 :])
