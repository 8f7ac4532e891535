"""Trees of results, held against each other leaf by leaf."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from torchjac.foundations.pytree import flatten


def pairs(got: Any, expected: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The leaves of two trees that must be of one structure, with None in the same places."""
    got_leaves, got_spec = flatten(got)
    expected_leaves, expected_spec = flatten(expected)
    assert got_spec == expected_spec
    for one, other in zip(got_leaves, expected_leaves, strict=True):
        if other is None:
            assert one is None
        else:
            yield one, other
