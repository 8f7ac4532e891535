"""What launches many small kernels on a GPU, recorded once and launched as one.

A kernel of a small function takes less time than its launch. A CUDA graph launches all of them at once, but
reads and writes the memory that it was recorded with, so that arguments are copied in and results out:
two kernels of some bytes in place of one launch each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchjac.foundations.overlap import shares_elements

__all__ = ["Replayed", "replayed"]

Run: TypeAlias = Callable[..., Sequence[Tensor]]
Record: TypeAlias = Callable[
    [Callable[[], Sequence[Tensor]], torch.device], tuple[Callable[[], object], Sequence[Tensor]]
]

# Bytes that are copied at every call: as long as that takes about a launch.
_SMALL = 2**22
# What PyTorch's guide to CUDA graphs wants run before one is recorded, so that libraries are set up.
_WARM_UPS = 3


def replayed(run: Run, tensors: Sequence[Tensor]) -> Run:
    """The same function, recorded, where that is possible and worth it; else the function as it is.

    Args:
        run: of tensors like those given; without side effects, and without random numbers.
        tensors: what it is recorded with.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1 or next(iter(devices)).type != "cuda" or not _are_small(tensors):
        return run
    try:
        made = Replayed(run, tensors, next(iter(devices)), _recorded)
    except (
        RuntimeError
    ):  # it waits for the device, allocates in a way of its own, or the memory is short
        return run
    return made if _are_small(made.results) else run


def _are_small(tensors: Sequence[Tensor]) -> bool:
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    return sum(sizes) <= _SMALL and not any(map(shares_elements, tensors))


class Replayed:
    """A recorded function. Threads and streams have it one after another.

    Args:
        run: the function.
        tensors: like those that it will be called with.
        device: theirs.
        record: runs what it is given, and returns what runs it once more, into the same results.
    """

    def __init__(
        self, run: Run, tensors: Sequence[Tensor], device: torch.device, record: Record
    ) -> None:
        self._inputs = [_copied(tensor) for tensor in tensors]
        self._replay, self.results = record(lambda: run(*self._inputs), device)
        self._device, self._lock = device, threading.Lock()
        self._done: Any = None
        # Only what a call copies in can be right from now on.
        for tensor in self._inputs:
            tensor.zero_()

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        with self._lock:
            stream = (
                torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
            )
            if stream is not None and self._done is not None:
                stream.wait_event(self._done)  # the call before may be of another stream
            for own, tensor in zip(self._inputs, tensors, strict=True):
                own.copy_(tensor)
            self._replay()
            results = [result.clone() for result in self.results]
            if stream is not None:
                self._done = stream.record_event()
            return results


def _copied(tensor: Tensor) -> Tensor:
    """A copy with the same strides, which the function counts on."""
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copy.copy_(tensor)


def _recorded(
    call: Callable[[], Sequence[Tensor]], device: torch.device
) -> tuple[Callable[[], object], Sequence[Tensor]]:
    """Record the kernels that ``call`` launches.

    Source: the section on CUDA graphs of PyTorch's notes on CUDA semantics.
    """
    with torch.cuda.device(device):
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                call()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()
        return graph.replay, results
