"""What the describing of a function has come across."""

from __future__ import annotations

import torch

from torchjac.foundations.identity import Identity
from torchjac.planning.trail import Trail

__all__ = ["Search"]

_NO_IDENTITIES: list[Identity] = []


class Search:
    """What descriptions have come across, and how much they are to tell.

    Args:
        values: whether numbers and tensors are told apart by what they hold.
        alike: whether tensors of one kind are the same nevertheless, and only noted.
    """

    __slots__ = (
        "alike",
        "connects",
        "identities",
        "is_sure",
        "modules",
        "seen",
        "tensors",
        "trail",
        "values",
    )

    def __init__(self, values: bool = False, alike: bool = False) -> None:
        self.seen: dict[int, int] = {}
        """What has been described, and in which order."""
        self.values, self.alike = values, alike
        self.identities: list[Identity] = [] if alike else _NO_IDENTITIES
        """Of the tensors that are not told apart."""
        self.trail: Trail | None = None
        """Of what is read on the way, if that is wanted."""
        self.connects = False
        """Whether a tensor was met that requires grad, but for those of modules."""
        self.modules: list[torch.nn.Module] = []
        self.tensors: list[torch.Tensor] = []
        self.is_sure = True
        """Whether nothing was met whose contents the description leaves out: what is described the same
        may else differ in a number."""
