"""The processes of a ``torch.distributed`` mesh, and the few things that torchjac asks of them.

They exchange one small report where a call ends, and before anything else is communicated. So what one
of them raises, all of them hear, and nobody waits for a tensor that never comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchjac.errors import ArgumentError, OptionError, OptionTypeError, RankError
from torchjac.foundations.digests import Digest

__all__ = ["Ranks", "Report", "Split", "best_split"]

_LONGEST = 2000  # characters of a message that are sent round


@dataclass(frozen=True)
class Report:
    """What a rank tells the others."""

    stage: str
    """How far the call has come."""
    facts: dict[str, Any]
    """What has to be the same everywhere, by the name that a user knows it by."""
    kind: str | None = None
    """The type of what it raised, if it did."""
    message: str = ""


@dataclass(frozen=True)
class Split:
    """One dimension of a tensor, cut into a stretch for every rank."""

    dim: int
    size: int
    own: range
    least: int = 1
    """How many this rank computes at least, its own or not."""

    @property
    def made(self) -> range:
        """What this rank computes: its stretch, and if that is too short what is beside it.

        So every rank makes a pass, and what PyTorch refuses it refuses to all of them.
        """
        least = min(self.least, self.size)
        start = min(self.own.start, self.size - least) if self.own else 0
        return range(start, max(self.own.stop if self.own else 0, start + least))

    def of(self, tensor: Tensor) -> Tensor:
        """What this rank computes of a tensor, a view."""
        return tensor.narrow(self.dim, self.made.start, len(self.made))

    def kept(self, made: Tensor) -> Tensor:
        """What is this rank's of what it computed, a view."""
        before = self.own.start - self.made.start if self.own else 0
        return made.narrow(self.dim, before, len(self.own))

    def beside(self, dims: int) -> Split:
        """The same stretch of a tensor that has more dimensions in front."""
        return replace(self, dim=self.dim + dims)


class Ranks:
    """The ranks of a one-dimensional mesh.

    Args:
        name: the call that the user made, for messages.
        mesh: a ``torch.distributed`` `DeviceMesh`.
    """

    def __init__(self, name: str, mesh: Any) -> None:
        self.name, self._mesh = name, mesh
        self.rank, self.size = int(mesh.get_local_rank()), int(mesh.size())
        # In messages a process has the number that torchrun gave it, whatever the mesh.
        self._numbers: list[int] = mesh.mesh.tolist()
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

    def meet(self, stage: str, error: BaseException | None = None) -> None:
        """Exchange reports with all ranks, and raise on each where one of them cannot go on.

        Args:
            stage: how far the call has come.
            error: what this rank raised itself, if it did.

        Raises:
            RankError: another rank, or this one and not all, raised; or contact is lost.
            ArgumentError: the ranks were not called alike.
            BaseException: ``error``, where all ranks raised the like, or it asks for an end (an interrupt).
        """
        reports = self._exchanged(_report(stage, self.facts, error))
        if any(other.kind is not None for other in reports):
            if error is not None and len({(other.stage, other.kind) for other in reports}) == 1:
                raise error  # all of them alike: it has nothing to do with ranks
            self.parted = True
            if error is not None and not isinstance(error, Exception):
                raise error
            raise RankError(f"{self.name}(device_mesh=...): {self._failures(reports)}") from error
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
                f"{self.name}(device_mesh=...): rank {self._numbers[self.rank]} has lost contact with the "
                f"others; one of them has probably ended. The process group can no longer be used. ({error})"
            ) from error
        return reports

    def _failures(self, reports: Sequence[Report]) -> str:
        return "; ".join(
            f"rank {number} raised {report.kind}: {report.message}"
            for number, report in zip(self._numbers, reports, strict=True)
            if report.kind is not None
        )

    def _compare(self, facts: Sequence[dict[str, Any]]) -> None:
        for name in dict.fromkeys(name for known in facts for name in known):
            first, *others = [known.get(name) for known in facts]
            for number, other in zip(self._numbers[1:], others, strict=True):
                if not _alike(first, other):
                    self.parted = True
                    raise ArgumentError(
                        f"{self.name}(device_mesh=...): the ranks disagree on {name}: rank "
                        f"{self._numbers[0]} has {first}, rank {number} has {other}. Every rank makes the "
                        f"same call with the same arguments, and torchjac divides the work."
                    )

    def gathering(self, own: Tensor, total: int) -> Callable[[], Tensor]:
        """Get ready to gather the rows ``(total, ...)`` of which every rank has its `share`.

        What can fail for want of memory is done here, before the ranks meet; and what the function that
        is returned does is done by all of them or none.
        """
        import torch.distributed as dist

        each = math.ceil(total / self.size)
        padded = own.new_zeros(each, *own.shape[1:])
        padded[: len(own)] = own
        whole = own.new_empty(self.size, *padded.shape)

        def gather() -> Tensor:
            dist.all_gather(list(whole), padded, group=self._mesh.get_group())
            # (ranks, each, ...) -> (ranks * each, ...) -> (total, ...)
            return whole.flatten(0, 1)[:total]

        return gather

    # Results.

    def sharded(self, made: Tensor, split: Split | None) -> Tensor:
        """A `DTensor` of which this rank computed ``made``; the same on all of them if it is not split."""
        from torch.distributed import tensor as dtensor

        place: Any = dtensor.Replicate() if split is None else dtensor.Shard(split.dim)
        own = made if split is None else split.kept(made)
        sizes = list(own.shape)
        if split is not None:
            sizes[split.dim] = split.size
        shape = torch.Size(sizes)
        whole: Tensor = dtensor.DTensor.from_local(
            own.contiguous(),
            self._mesh,
            [place],
            run_check=False,
            shape=shape,
            stride=torch.empty(shape, device="meta").stride(),
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


def _report(stage: str, facts: dict[str, Any], error: BaseException | None) -> Report:
    if error is None:
        return Report(stage, facts)
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a class of the user's that cannot say what it is
        message = "(without a message)"
    if len(message) > _LONGEST:
        message = message[:_LONGEST] + " ..."
    return Report(stage, facts, type(error).__name__, message)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Digest) and isinstance(other, Digest):
        return one.agrees(other)
    return bool(one == other)
