"""`Blocks`: a Jacobian that comes in pieces, none of which is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchjac.evaluation.progress import metered
from torchjac.foundations.ranks import Ranks
from torchjac.planning.modes import choose_mode
from torchjac.planning.products.operator import LinearOperator

__all__ = ["Blocks", "By"]

By: TypeAlias = Literal["rows", "columns"]
Stream: TypeAlias = "Iterator[tuple[slice, Tensor]]"


class Blocks(Iterator[tuple[slice, Tensor]]):
    """The blocks of a Jacobian ``(m, n)``, in order; what `torchjac.jac_blocks` returns.

    Every step makes one block and forgets it. A block and its slice belong together as ``J[slice]`` where
    ``by`` is ``"rows"``, and as ``J[:, slice]`` where it is ``"columns"``.

    Args:
        op: the Jacobian.
        by: what a block is a stretch of, or ``"auto"``.
        chunk_size: how many of them.
        shown: the name under which progress is shown, if it is.
        ranks: who the blocks are divided over, if they are.
    """

    def __init__(
        self,
        op: LinearOperator,
        by: str,
        chunk_size: Any,
        *,
        shown: str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        m, n = op.shape
        columns = by == "columns" or (by == "auto" and choose_mode(n, m) == "forward")
        self.by: By = "columns" if columns else "rows"
        self.shape, self.dtype, self.device = op.shape, op.dtype, op.device
        self.value = op.value
        """What func returned, from the one evaluation."""
        count = n if columns else m
        share = range(count) if ranks is None else ranks.share(count)
        many = max(len(share), 1)
        size = op._pass_size(many) if chunk_size == "auto" else chunk_size or many
        self.chunk_size = min(size, many)
        """Rows, or columns, of every block but the last."""
        self._left = -(-len(share) // self.chunk_size)
        blocks = (op._columns if columns else op._rows)(share, self.chunk_size)
        self._blocks = _made(blocks, len(share), shown)
        if ranks is not None:
            self._blocks = _heard(self._blocks, ranks)

    def __next__(self) -> tuple[slice, Tensor]:
        found = next(self._blocks)
        self._left -= 1
        return found

    def __len__(self) -> int:
        """How many blocks are still to come."""
        return self._left

    def __repr__(self) -> str:
        m, n = self.shape
        return f"Blocks({m}×{n} by {self.by}, {self._left} to come, {self.dtype}, {self.device})"


def _made(blocks: Stream, total: int, shown: str | None) -> Stream:
    """The same blocks without a graph, counted as they are made.

    ``torch.no_grad`` must not be left on between the steps. No generator holds the iterator that holds
    it: in a cycle the graph of func would live on after both.
    """
    with metered(shown, total) as meter:
        while True:
            with torch.no_grad():
                found = next(blocks, None)
            if found is None:
                return
            at, _ = found
            meter.update(at.stop - at.start)
            yield found


def _heard(blocks: Stream, ranks: Ranks) -> Stream:
    """The same blocks; where those of one rank cannot all be made, all ranks hear of it at the end."""
    try:
        yield from blocks
    except GeneratorExit:
        raise  # nobody wants the rest, and maybe nobody anywhere
    except BaseException as error:
        ranks.meet("all blocks are made", error)
        raise
    ranks.meet("all blocks are made")
