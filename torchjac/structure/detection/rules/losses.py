"""Losses whose backward passes are ops of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from torchjac.structure.detection.registry import SHAPES, Operation, Result, rule

__all__: list[str] = []


def _alignments(op: Operation) -> Sequence[Tensor]:
    """What `_ctc_loss` returns: the losses, and a table of partial sums that its backward alone reads."""
    log_probs, targets, lengths = op["log_probs"], op["targets"], op["target_lengths"]
    if isinstance(lengths, Tensor):
        known = op.known(lengths)
        # No target is longer than all that there are.
        lengths = [targets.shape[-1]] if known is None else known.reshape(-1).tolist()
    longest = max(lengths, default=0)
    steps, samples = log_probs.shape[:2]
    return [
        log_probs.new_empty((samples,)),
        log_probs.new_empty((samples, steps, 2 * longest + 1)),
    ]


SHAPES["aten::_ctc_loss"] = _alignments


@rule("_ctc_loss_backward")
def ctc_loss_backward(op: Operation) -> Result:
    """Each sample of a batch, which is the second dimension of three, by itself.

    ``ctc_loss_backward([{0}, {1}], one step, two classes) = [[[{0}, {0}], [{1}, {1}]]]``
    """
    sets, output = op.sets(op["grad"]), op.outputs[0]
    others = [op[name] for name in ("log_probs", "neg_log_likelihood", "log_alpha")]
    if sets is None or any(op.sets(other) is not None for other in others):
        raise NotImplementedError
    # (samples,) -> (steps, samples, classes)
    steps, samples, classes = output.shape
    return sets.gather(np.tile(np.repeat(np.arange(samples), classes), steps))
