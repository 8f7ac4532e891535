"""Which mode: integers in, a choice out."""

from __future__ import annotations

from typing import NamedTuple

from torchjac.evaluation.engines import Direction

__all__ = [
    "FORWARD_COST",
    "FORWARD_COST_OF_CONVOLUTIONS",
    "FORWARD_COST_OF_SLICES",
    "HESSIAN_MODES",
    "MODES",
    "ORDINARY",
    "Work",
    "choose_hessian_mode",
    "choose_mode",
]

MODES = ("auto", "forward", "reverse")
HESSIAN_MODES = (
    "auto",
    "forward-over-reverse",
    "reverse-over-reverse",
    "reverse-over-forward",
    "forward-over-forward",
)

FORWARD_COST = 2
"""What a forward pass is taken to cost, in backward passes: it repeats the evaluation, inside vmap."""

FORWARD_COST_OF_CONVOLUTIONS = 0.5
"""The same where f convolves: vmapped backward passes of convolutions take twice as long, or longer."""

FORWARD_COST_OF_SLICES = 0.8
"""The same where f mostly takes slices: a backward pass fills a whole tensor with zeros for each."""

_MANY = 2**14  # entries; of fewer, what each op costs counts for more than the numbers it moves
# Numbers; of fewer likewise.
_FEW, _FEW_OF_HESSIANS = 2**15, 2**17


class Work(NamedTuple):
    """What goes on inside a function, as far as it decides between the modes."""

    convolves: bool = False
    slices: bool = False
    """Whether backward passes move more numbers for slices than for all else."""
    largest: int = 0
    """The elements of the largest result of any op; 0 if nobody knows."""

    def forward_cost(self, entries: int) -> float:
        """Of a forward pass in backward passes, for a Jacobian of so many entries that are not zero."""
        if self.convolves:
            return FORWARD_COST_OF_CONVOLUTIONS
        return FORWARD_COST_OF_SLICES if self.slices and entries >= _MANY else FORWARD_COST


ORDINARY = Work()


def choose_mode(
    num_inputs: int, num_outputs: int, forward_cost: float = FORWARD_COST, largest: int = 0
) -> Direction:
    """Choose the mode of a Jacobian from the number of passes that each one takes.

    The rules, in order:

    1. One output: reverse. It is a single plain backward pass.
    2. One input: forward. It is a single plain evaluation with a tangent.
    3. Few numbers, m times the largest tensor inside: reverse. Vmapped passes then cost what their
       operations cost, however many they are, and those of a backward pass cost less.
    4. Fewer inputs than half of the outputs: forward, one pass per input; of a function that convolves,
       fewer than twice the outputs, of one that mostly takes slices, fewer than 1.25 times, if the
       Jacobian has many entries.
    5. Otherwise reverse, one pass per output. Where the two counts are close reverse is preferred:
       it evaluates the function once and outside vmap, nearly every op supports it, and a forward
       pass costs more than a backward pass of a small function, for it repeats the evaluation.

    For independent samples the counts are those of one sample.

    Args:
        num_inputs: n, the columns of the Jacobian (or of a block).
        num_outputs: m, its rows.
        forward_cost: of a forward pass, in backward passes.
        largest: the elements of the largest result of any op of the function; 0 if nobody knows.

    Example:
        >>> choose_mode(7, 3), choose_mode(20, 20480), choose_mode(100, 100)
        ('reverse', 'forward', 'reverse')
    """
    if num_outputs == 1:
        return "reverse"
    if num_inputs == 1:
        return "forward"
    if forward_cost > 1 and 0 < num_outputs * largest <= _FEW:
        return "reverse"
    if forward_cost * num_inputs < num_outputs:
        return "forward"
    return "reverse"


def choose_hessian_mode(
    num_outputs: int, num_inputs: int = 0, largest: int = 0
) -> tuple[Direction, Direction]:
    """Choose the outer and the inner mode of a Hessian.

    The inner derivative is always taken in reverse: PyTorch's second derivatives are least
    trustworthy where forward mode is inside (``det`` and ``layer_norm`` are wrong by more than 1).

    1. One output: the gradient is one plain backward pass, and reverse-over-reverse goes over its
       graph n times; that takes 0.5 to 0.65 of the time of forward-over-reverse.
    2. Several outputs: forward-over-reverse takes n passes, reverse-over-reverse one for each of the
       m·n entries of the inner Jacobian, each over the graph of m backward passes. While that is little,
       m·m·n times the largest tensor inside, what each op costs counts for more than the numbers it
       moves, and reverse-over-reverse is quicker.

    Args:
        num_outputs: m.
        num_inputs: n.
        largest: the elements of the largest result of any op of the function; 0 if nobody knows.

    Example:
        >>> choose_hessian_mode(1), choose_hessian_mode(3)
        (('reverse', 'reverse'), ('forward', 'reverse'))
    """
    moved = num_outputs * num_outputs * num_inputs * largest
    return (
        "reverse" if num_outputs <= 1 or 0 < moved <= _FEW_OF_HESSIANS else "forward"
    ), "reverse"
