"""Which inputs can share a seed of an exact contraction, found once per signature."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.surroundings import is_out_of_memory
from torchjac.planning.compressed import Compression
from torchjac.planning.problem import Problem
from torchjac.planning.sparsity import find_pattern
from torchjac.structure.pattern import SparsityPattern

__all__ = ["Colors", "find_colors"]

# With fewer inputs there is little to save; with more entries, looking for them takes too long.
_FEW, _MANY = 8, 1 << 24


@dataclasses.dataclass
class Colors:
    """A colour for every input; those of one colour share a seed."""

    colors: Tensor
    witnesses: Tensor
    """The same for a comparison, where every input has a seed: it may have an entry by now."""
    compression: Compression
    """The pattern, which knows the constants that it was found with."""


def find_colors(problem: Problem, counts: Sequence[int]) -> Colors | None:
    """Look for structure; None where it saves no pass, or cannot be seen.

    A Laplacian of several outputs goes by the pattern of their Jacobian: inputs that no output depends on
    both of have no second derivative in common.
    """
    n, m = sum(primal.numel() for primal in problem.primals), sum(counts)
    if not n >= _FEW or n * max(n, m) > _MANY:
        return None
    together = problem.order == 2 and m != 1
    try:
        looked_at = dataclasses.replace(problem, order=1) if together else problem
        pattern, constants = find_pattern(looked_at, warn=False)
        # It loads SciPy's neighbours, which most users of other transforms do not need.
        from torchjac.structure.conflicts import color_diagonal, color_together

        colors = witnesses = color_together(pattern) if together else color_diagonal(pattern)
        if bool((colors < 0).any()):
            # Inputs that nothing depends on have nothing in common; those of a diagonal that is zero have.
            alone = torch.where(colors < 0, colors.max() + 1, colors)
            witnesses = alone if together else color_diagonal(_with_diagonal(pattern))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None  # what cannot be seen through is taken to be dense
    if int(colors.max()) + 1 >= n:
        return None
    compression = Compression(pattern, constants, symmetric=False, name=problem.name)
    return Colors(colors, witnesses, compression)


def _with_diagonal(pattern: SparsityPattern) -> SparsityPattern:
    places = torch.arange(pattern.shape[1], device="cpu")
    return pattern | SparsityPattern(places, places, pattern.shape)
