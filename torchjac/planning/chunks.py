"""How many seeds go into one vmapped pass."""

from __future__ import annotations

import math
import os

import torch

__all__ = [
    "CPU_WORKING_SET",
    "always_fits",
    "available_memory",
    "bytes_per_pass",
    "choose_chunk_size",
]

_MIB = 2**20

# Up to this much nobody runs out, and asking the system would cost more than a small pass takes.
_ALWAYS_FITS = 16 * _MIB
# On a CPU a larger working set is slower: it leaves the caches, and every temporary of more than some twelve
# megabytes is mapped and cleared by the system anew, which takes convolutions three times as long.
CPU_WORKING_SET = 40 * _MIB
_SHARE_OF_FREE = 0.5
# Beside so many seeds one more evaluation of the function does not count. To take them at once a working
# set may be so large.
_ENOUGH, _STRETCHED = 8, 256 * _MIB


def choose_chunk_size(
    passes: int, bytes_per_pass: int, device: torch.device, *, anew: bool = False
) -> int:
    """Choose the seeds per chunk so that the chunk's intermediate results fit into free memory.

    Args:
        passes: how many seeds there are in all.
        bytes_per_pass: what the intermediate results of one seed hold at once, estimated.
        device: where they live.
        anew: whether each chunk evaluates the function, so that small ones are dear.

    Returns:
        A number from 1 to ``passes``.

    Example:
        >>> choose_chunk_size(100, 8, torch.device("cpu"))
        100
        >>> choose_chunk_size(2304, 2**20, torch.device("cpu")) <= 256
        True
    """
    if always_fits(passes, bytes_per_pass):
        return max(passes, 1)
    room = int(available_memory(device) * _SHARE_OF_FREE)
    most = room // max(bytes_per_pass, 1)
    if device.type == "cpu":
        best = CPU_WORKING_SET // max(bytes_per_pass, 1)
        if anew:
            best = max(best, min(_ENOUGH, _STRETCHED // max(bytes_per_pass, 1)))
        most = min(most, best)
    most = max(1, min(passes, most))
    # Chunks of equal size: the same number of them, and no small rest.
    return math.ceil(passes / math.ceil(passes / most))


def always_fits(passes: int, bytes_per_pass: int) -> bool:
    """Whether all passes at once hold so little that free memory need not be asked."""
    return passes * bytes_per_pass <= _ALWAYS_FITS


def bytes_per_pass(largest: int, elements: int, itemsize: int) -> int:
    """Estimate what one seed holds: a few neighbouring intermediate results, and its row of J.

    Args:
        largest: bytes of the largest intermediate result.
        elements: elements of all inputs and outputs together.
        itemsize: bytes of one element.
    """
    return 4 * largest + elements * itemsize


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device`` without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        # Neither Linux nor POSIX: assume a small machine rather than a large one.
        return 1024 * _MIB
