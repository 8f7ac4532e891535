"""Probes: compare a Jacobian with what a way that shares no code with it says.

The adjoint probe takes a random cotangent u and compares uᵀ·J with one plain backward pass, which
uses no batching rule and no forward rule. The difference probe compares J·v with a central
difference; a Jacobian that is a Hessian is compared so with a difference of gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchjac.evaluation.batching import load_forward_rules
from torchjac.evaluation.engines import FlatFunction, Graph
from torchjac.evaluation.surroundings import exclusively
from torchjac.structure.blocks import SparseBlock

__all__ = [
    "adjoint_probe",
    "agree",
    "are_alike",
    "as_matrices",
    "difference_probe",
    "forward_is_off",
    "forward_probe",
    "have_differences",
    "magnitude",
    "norms_of",
    "plain_forward",
    "random_like",
    "random_values",
    "rounding",
    "tolerance",
    "wide",
]

# Relative to the norm of the column that is looked at. Rounding in an ill-conditioned function stays
# below, a rule that is wrong is off by a good part of the column itself.
_TOLERANCES = {
    torch.float64: 1e-7,
    torch.float32: 2e-3,
    torch.float16: 1e-1,
    torch.bfloat16: 3e-1,
}

# A difference has two thirds of the digits at best; what it is known to lack is allowed for apart.
_DIFFERENCE_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-2}

Leaves = Sequence[Sequence["Tensor | SparseBlock"]]


def tolerance(tensors: Sequence[Tensor]) -> float:
    """The relative tolerance for results of the coarsest dtype among ``tensors``."""
    return max(_TOLERANCES.get(tensor.dtype, 1e-1) for tensor in tensors)


def are_alike(values: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether two evaluations of a function gave the same, beyond rounding.

    Under autocast the dtypes of values can differ between the modes.
    """
    for value, other in zip(values, others, strict=True):
        a, b, close = value.detach().double(), other.detach().double(), tolerance([value, other])
        if a.shape != b.shape or not torch.allclose(a, b, rtol=close, atol=close, equal_nan=True):
            return False
    return True


def random_like(likes: Sequence[Tensor]) -> list[Tensor]:
    """Random vectors, the same in every run, that leave the caller's generators alone.

    Of both signs and of different magnitudes: ones alone would be blind to what cancels along a row
    of a softmax, and equal vectors to what cancels between two leaves. They are multiples of 1/64,
    exact in every dtype.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    return [random_values(like.shape, generator).to(like) for like in likes]


def random_values(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Numbers of both signs and of different magnitudes, exact in every dtype; see `random_like`."""
    draw = torch.randint(0, 66, tuple(shape), generator=generator, device="cpu")
    return torch.where(draw % 2 == 0, -1.0, 1.0) * (32 + draw // 2) / 64


def wide(tensor: Tensor) -> Tensor:
    """Sum half precision in single precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def as_matrices(leaf: Tensor, output: Tensor, primal: Tensor, batched: bool) -> Tensor:
    """A leaf as a stack of matrices, one for each sample."""
    # (*out, *in) -> (1, m, n), or (B, *out, *in) -> (B, m, n)
    first = 1 if batched else 0
    samples = output.shape[:first].numel()
    shape = (samples, output.shape[first:].numel(), primal.shape[first:].numel())
    return wide(leaf.detach()).reshape(shape)


def _product(
    leaf: Tensor | SparseBlock,
    vector: Tensor,
    output: Tensor,
    primal: Tensor,
    batched: bool,
    *,
    pulled: bool,
) -> tuple[Tensor, Tensor]:
    """A leaf times a vector, and the norms of what each element of that is a product with.

    Returns:
        uᵀ·J and the norms of the columns, ``(B, n)``, if ``pulled``; else J·v and those of the rows,
        ``(B, m)``.
    """
    if isinstance(leaf, SparseBlock):
        values = wide(leaf.values.detach())
        largest = _largest(values)
        ones = values.new_ones((output if pulled else primal).numel())
        squares = (values / largest).square()
        factors = [(values, wide(vector).to(values.dtype).reshape(-1)), (squares, ones)]
        product, squares = [
            block.transposed_times(factor) if pulled else block.times(factor)
            for block, factor in [(leaf._replace(values=v), factor) for v, factor in factors]
        ]
        return product[None], squares.sqrt()[None] * largest
    matrix = as_matrices(leaf, output, primal, batched)
    # (B, m, n) -> (B, n, m), so that the vector is always multiplied from the right
    matrix = matrix.transpose(1, 2) if pulled else matrix
    column = wide(vector).to(matrix.dtype).reshape(len(matrix), matrix.shape[2], 1)
    return (matrix @ column).squeeze(2), norms_of(matrix, 2)


def norms_of(numbers: Tensor, dim: int) -> Tensor:
    """Euclidean norms along a dimension, of numbers whose squares may overflow too."""
    largest = _largest(numbers)
    return (numbers / largest).square().sum(dim).sqrt() * largest


def _largest(numbers: Tensor) -> float:
    """What to divide by before numbers are squared, which overflows from half of the exponents on."""
    return magnitude(numbers) or 1.0


def adjoint_probe(
    graph: Graph, leaves: Leaves, *, batched: bool, slack: float = 0.0
) -> list[Tensor] | None:
    """Compare uᵀ·J with one plain backward pass over ``graph``, entry by entry.

    Args:
        graph: the function recorded by plain autograd; it is kept for further passes.
        leaves: the Jacobian, ``leaves[output][input]``.
        batched: whether its leaves are ``(B, *out, *in)``.
        slack: what an entry may be off by beside; see `rounding_of_terms`.

    Returns:
        None if they agree; otherwise for every input the elements, flat, that they disagree at.
    """
    outputs = [value.detach() for value in graph.values]
    cotangents = random_like(outputs)
    trusted = graph.multiply(dict(enumerate(cotangents)), last=False)
    # Where there is no derivative, what is not finite goes along rows in one mode, and columns in the other.
    is_singular = not _are_finite([*outputs, *[pulled for pulled in trusted if pulled is not None]])
    found = []
    for i, (primal, pulled) in enumerate(zip(graph.primals, trusted, strict=True)):
        got = torch.zeros((), device=primal.device)
        norms = torch.zeros((), device=primal.device)
        for row, output, cotangent in zip(leaves, outputs, cotangents, strict=True):
            product, more = _product(row[i], cotangent, output, primal, batched, pulled=True)
            got, norms = got + product, torch.hypot(norms, more)
        expected = wide(torch.zeros_like(primal) if pulled is None else pulled).detach()
        rtol = tolerance([primal, *outputs])
        values = [*outputs, *[c for c in graph.carried if c.is_floating_point()]]
        atol = rounding(values) + slack
        wrong = torch.zeros((), dtype=torch.bool)
        if got.numel():
            wrong = disagreement(got, expected.reshape(got.shape), norms, rtol, atol)
            if is_singular:
                wrong &= got.isfinite()
        found.append(wrong.reshape(-1).nonzero().reshape(-1))
    return found if any(len(at) for at in found) else None


def forward_probe(
    function: FlatFunction,
    primals: Sequence[Tensor],
    leaves: Leaves,
    *,
    batched: bool,
    slack: float = 0.0,
) -> bool:
    """Whether J·v agrees with one plain forward pass; True where PyTorch has no rule for one."""
    directions = random_like(primals)
    found = plain_forward(function, primals, directions)
    if found is None:
        return True
    outputs, pushed = found
    for row, output, expected in zip(leaves, outputs, pushed, strict=True):
        got = torch.zeros((), device=output.device)
        norms = torch.zeros((), device=output.device)
        for leaf, primal, direction in zip(row, primals, directions, strict=True):
            product, more = _product(leaf, direction, output, primal, batched, pulled=False)
            got, norms = got + product, torch.hypot(norms, more)
        rtol, atol = tolerance([*primals, output]), rounding(outputs) + slack
        if got.numel() and not agree(got, wide(expected).reshape(got.shape), norms, rtol, atol):
            return False
    return True


def plain_forward(
    function: FlatFunction, primals: Sequence[Tensor], directions: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
    """Values and J·v by one plain forward pass; None where PyTorch has no rule for one."""
    load_forward_rules()

    def values(*here: Tensor) -> tuple[Tensor, ...]:
        return function(here)[0]

    try:
        with exclusively(), torch.no_grad():
            outputs, pushed = torch.func.jvp(values, tuple(primals), tuple(directions))[:2]
    except Exception:  # noqa: BLE001 - no forward rule
        return None
    return outputs, pushed


def forward_is_off(function: FlatFunction, primals: Sequence[Tensor]) -> bool:
    """Whether a plain forward pass itself disagrees with a central difference, as far as that tells."""
    directions = random_like(primals)
    found = plain_forward(function, primals, directions)
    if found is None:
        return False

    def along(lengths: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        steps = zip(primals, directions, strict=True)
        return function([p + lengths[0].to(p) * v for p, v in steps])

    # The Jacobian of a function of one number is what the pass has found.
    line = torch.zeros((), dtype=primals[0].dtype, device=primals[0].device)
    return not difference_probe(along, [line], [[p] for p in found[1]], batched=False)


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def disagreement(got: Tensor, expected: Tensor, norms: Tensor, rtol: float, atol: float) -> Tensor:
    """Where two vectors disagree, each entry held against the norm of its column of the Jacobian.

    Where the trusted value is not finite there is nothing to compare with.
    """
    comparable, finite = expected.isfinite(), norms[norms.isfinite()]
    typical = norms_of(finite, 0) / math.sqrt(max(len(finite), 1))
    return comparable & ~((got - expected).abs() <= rtol * (norms + typical) + atol)


def agree(got: Tensor, expected: Tensor, norms: Tensor, rtol: float, atol: float) -> bool:
    """Whether two vectors agree; see `disagreement`."""
    return not bool(disagreement(got, expected, norms, rtol, atol).any())


def rounding(outputs: Sequence[Tensor]) -> float:
    """What a derivative that is zero may be off by, because larger terms have cancelled in it."""
    largest = max((magnitude(output) for output in outputs), default=0.0)
    elements = sum(output.numel() for output in outputs)
    eps = max((torch.finfo(output.dtype).eps for output in outputs), default=0.0)
    return 16 * eps * largest * math.sqrt(elements)


def magnitude(tensor: Tensor) -> float:
    """The largest magnitude among the finite elements; 0 without any."""
    return float(tensor.detach().abs().nan_to_num(0, 0, 0).max()) if tensor.numel() else 0.0


def have_differences(primals: Sequence[Tensor]) -> bool:
    """Whether a difference quotient has any digits: in half precision there are none left."""
    return all(primal.dtype in _DIFFERENCE_TOLERANCES for primal in primals)


def difference_probe(
    function: FlatFunction,
    primals: Sequence[Tensor],
    leaves: Leaves,
    *,
    batched: bool,
    slack: float = 0.0,
) -> bool:
    """Whether J·v agrees with a central difference of ``function`` along a random direction.

    The difference is taken with two steps, and to either side. What these disagree by is the error of
    the difference itself and is not held against J. Where they have little in common, at a kink or
    where the function oscillates within a step, a difference says nothing.

    Args:
        function: what J is the Jacobian of.
        primals: where.
        leaves: the Jacobian, ``leaves[output][input]``.
        batched: whether its leaves are ``(B, *out, *in)``.
        slack: what an entry of J·v may be off by beside; see `rounding_of_terms`.
    """
    directions = random_like(primals)
    values, carried = function([p.detach() for p in primals])
    width = max(torch.finfo(t.dtype).eps for t in (*primals, *values)) ** (1 / 3)
    step = width * max(1.0, *[magnitude(primal) for primal in primals])
    center = [wide(value.detach()) for value in values]
    # Terms as large as any value may have cancelled in any other.
    size = max(magnitude(value) for value in (*values, *carried) if value.is_floating_point())
    coarse, _ = _difference(function, primals, directions, 2 * step, center)
    fine, doubts = _difference(function, primals, directions, step, center)
    for row, value, twice, once, doubt in zip(leaves, values, coarse, fine, doubts, strict=True):
        dtypes = [value.dtype, *[_dtype(leaf) for leaf in row]]
        noise = (
            32
            * max(torch.finfo(dtype).eps for dtype in dtypes)
            * (size + magnitude(once) * step)
            / step
        )
        doubt = 4 * max(doubt, magnitude(once - twice))
        if doubt > max(0.5 * magnitude(once), 4 * noise):
            continue
        product = torch.zeros((), device=once.device)
        norms = torch.zeros((), device=once.device)
        for leaf, primal, direction in zip(row, primals, directions, strict=True):
            pushed, more = _product(leaf, direction, once, primal, batched, pulled=False)
            product, norms = product + pushed, torch.hypot(norms, more)
        if product.numel() == 0:
            continue
        expected = once.reshape(product.shape)
        margin = doubt + noise + slack
        nearest = expected + (product - expected).clamp(-margin, margin)
        # A product that is not finite where the difference is has nothing that excuses it.
        nearest = torch.where(product.isfinite(), nearest, expected)
        rtol = _DIFFERENCE_TOLERANCES.get(min(dtypes, key=_digits), 1e-1)
        if not agree(product, nearest, norms, rtol, rounding([once])):
            return False
    return True


def _dtype(leaf: Tensor | SparseBlock) -> torch.dtype:
    return leaf.values.dtype if isinstance(leaf, SparseBlock) else leaf.dtype


def _digits(dtype: torch.dtype) -> float:
    return -torch.finfo(dtype).eps


def _difference(
    function: FlatFunction,
    primals: Sequence[Tensor],
    directions: Sequence[Tensor],
    step: float,
    center: Sequence[Tensor],
) -> tuple[list[Tensor], list[float]]:
    """Central differences along one direction, and their doubt.

    The doubt is what the differences to either side disagree by at worst: one kink puts all entries
    in doubt, since it can cancel in some of them.
    """
    ahead, _ = function([p.detach() + step * v for p, v in zip(primals, directions, strict=True)])
    behind, _ = function([p.detach() - step * v for p, v in zip(primals, directions, strict=True)])
    quotients, doubts = [], []
    for a, b, middle in zip(ahead, behind, center, strict=True):
        high, low = wide(a.detach()), wide(b.detach())
        quotients.append((high - low) / (2 * step))
        bend = high - 2 * middle + low
        doubts.append(magnitude(bend) / step if bend.isfinite().all() else 0.0)
    return quotients, doubts
