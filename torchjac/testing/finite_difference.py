"""Jacobians from function values alone: the slow, obvious reference, independent of autograd."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchjac.errors import UnsupportedError
from torchjac.foundations.pytree import unflatten
from torchjac.testing.differences import Estimate, Line, along, first_step
from torchjac.testing.options import check_options
from torchjac.testing.point import Argnums, Point, flat, split, unravel
from torchjac.testing.tolerances import precision
from torchjac.transforms.options import check_choice

__all__ = ["column", "direction", "finite_difference_jac"]

METHODS = ("central", "complex", "auto")


def finite_difference_jac(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    return_error: bool = False,
    method: str = "central",
    step: float | None = None,
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian of ``func`` from its values alone.

    No derivative rule takes part, neither PyTorch's nor a custom function's, so it is the reference
    that they are all judged by. It moves one input entry at a time: 10n + 1 evaluations for n input
    entries, and n + 12 with complex steps. Use float64.

    Args:
        func: a function of tensors, or an `torch.nn.Module`.
        argnums: the argument, or tuple of arguments, to differentiate by; ``"params"`` for the
            parameters of a module that require grad.
        has_aux: ``func`` returns ``(output, aux)``, and the result is followed by ``aux``.
        return_error: follow the Jacobian with its estimated errors, entry by entry.
        method: ``"central"`` extrapolates central differences and suits every function.
            ``"complex"`` takes complex steps, which lose nothing to cancellation and are right
            to rounding, but need ``func`` to accept complex tensors and to be analytic all the way
            (no ``abs``, ``norm``, ``max``, comparison); it is refused where a central difference
            along a random direction contradicts it. ``"auto"`` takes complex steps where they are
            accepted and central differences elsewhere.
        step: the longest displacement, relative to ``max(1, abs(entry))``; four more follow,
            down to 1/1400 of it. The default suits functions that vary over lengths of about one.

    Returns:
        A callable with ``func``'s signature that returns the Jacobian, ``(jacobian, error)`` with
        ``return_error``, each followed by ``aux`` with ``has_aux``.

    Shapes:
        The tree of the outputs, each leaf replaced by the tree of the chosen inputs, each leaf
        of which is ``(*out, *in)``. None stands for integer, boolean and None outputs.

    Dtypes:
        ``func`` sees its arguments' own dtypes; differences are formed in float64, and the result
        has the input's dtype.

    Raises:
        OptionError, OptionTypeError: an option is none of those above.
        ArgumentError: ``argnums`` is out of range.
        ArgumentTypeError: a chosen argument is no real floating-point tensor.
        OutputTypeError: ``func`` returned what has no Jacobian.
        UnsupportedError: ``method="complex"`` and ``func`` is not analytic in PyTorch's complex
            arithmetic.

    Example:
        >>> import torch
        >>> from torchjac.testing import finite_difference_jac
        >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> jacobian, error = finite_difference_jac(torch.exp, return_error=True)(x)
        >>> torch.allclose(jacobian, torch.diag(x.exp()), rtol=0, atol=1e-9)
        True
        >>> bool(((jacobian - torch.diag(x.exp())).abs() <= error).all())
        True

    Source:
        Central differences as in `torchjac.testing.differences`. Complex steps: Squire & Trapp,
        *Using complex variables to estimate derivatives of real functions*, SIAM Review 40(1),
        1998.
    """
    where = "finite_difference_jac"
    check_options(where, func, argnums, has_aux=has_aux, return_error=return_error, step=step)
    check_choice(where, "method", method, METHODS)

    @functools.wraps(func, updated=())
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        point = Point(where, func, argnums, args, kwargs, has_aux=has_aux)
        try:
            estimate = _matrix(point, method, step)
        finally:
            point.settle()
        result = tuple(_tree(point, part) for part in (estimate if return_error else estimate[:1]))
        result = (*result, point.aux) if has_aux else result
        return result if len(result) > 1 else result[0]

    return jacobian


def direction(
    values: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    leaves: Sequence[Tensor],
    tangents: Sequence[Tensor],
    step: float | None = None,
) -> Estimate:
    """Differentiate ``values`` at ``leaves`` along ``tangents``: eleven evaluations.

    No entry moves by more than ``step`` times its magnitude, or one.
    """
    center = values(leaves)
    epsilon = precision([*leaves, *center])
    room = flat(leaves).abs().clamp(min=1) / flat(tangents).abs()
    reach = float(room.min()) if room.isfinite().any() else 1.0

    def line(displacement: float) -> tuple[Tensor, float]:
        moved = [
            leaf + displacement * tangent for leaf, tangent in zip(leaves, tangents, strict=True)
        ]
        return flat(values(moved)), displacement

    return along(line, flat(center), (step or first_step(epsilon)) * reach, epsilon)


def column(point: Point, leaf: int, entry: int, step: float | None = None) -> Estimate:
    """One column of the Jacobian: the derivative by one entry of one input leaf."""
    epsilon = precision([*point.leaves, *point.outputs])
    first = step or first_step(epsilon)
    start = float(point.leaves[leaf].reshape(-1)[entry])
    return along(
        _entry_line(point, leaf, entry), flat(point.outputs), first * max(1.0, abs(start)), epsilon
    )


def _entry_line(point: Point, leaf: int, entry: int) -> Line:
    def line(displacement: float) -> tuple[Tensor, float]:
        leaves = list(point.leaves)
        leaves[leaf] = moved = leaves[leaf].clone()
        # A view of one entry, whatever the strides.
        position = unravel(entry, moved.shape)
        start = float(moved[position])
        moved[position] += displacement
        return flat(point.values(leaves)), float(moved[position]) - start

    return line


def _matrix(point: Point, method: str, step: float | None) -> Estimate:
    if method != "central":
        refused = "it did not agree with central differences along a random direction"
        try:
            complex_steps = _verified(point, _complex_matrix(point), step)
        except Exception as error:  # noqa: BLE001 - whatever func raises on complex tensors
            complex_steps, refused = None, f"{type(error).__name__}: {error}"
        if complex_steps is not None:
            return complex_steps
        if method == "complex":
            raise UnsupportedError(
                f"{point.where}(method='complex'): func is not analytic in complex arithmetic: "
                f"{refused}. Use method='central' or 'auto'"
            )
    columns = [
        column(point, leaf, entry, step)
        for leaf, tensor in enumerate(point.leaves)
        for entry in range(tensor.numel())
    ]
    if not columns:
        return Estimate(
            *(torch.zeros(flat(point.outputs).numel(), 0, dtype=torch.float64) for _ in "ve")
        )
    # n columns of m -> (m, n)
    return Estimate(*(torch.stack(part, dim=1) for part in zip(*columns, strict=True)))


def _complex_matrix(point: Point) -> Tensor:
    """Im f(x + ih e_j) / h for every entry j; h is so small that its square vanishes."""
    m = flat(point.outputs).numel()
    columns = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a discarded imaginary part is only warned of
        for leaf, tensor in enumerate(point.leaves):
            h = torch.finfo(tensor.dtype).eps ** 2
            for entry in range(tensor.numel()):
                moved = [_as_complex(each) for each in point.leaves]
                moved[leaf][unravel(entry, tensor.shape)] += 1j * h
                values = point.raw_values(_as_complex, moved)
                columns.append(flat([_imaginary(value) for value in values]) / h)
    return torch.stack(columns, dim=1) if columns else torch.zeros(m, 0, dtype=torch.float64)


def _as_complex(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    return torch.complex(tensor, torch.zeros_like(tensor))


def _imaginary(value: Tensor) -> Tensor:
    return value.imag if value.is_complex() else torch.zeros_like(value)


def _verified(point: Point, matrix: Tensor, step: float | None) -> Estimate | None:
    """``matrix`` and its error, or None where a central difference contradicts it."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.rand(matrix.shape[1], dtype=torch.float64, generator=generator) + 0.5
    central = direction(point.values, point.leaves, split(vector, point.leaves), step)
    epsilon = precision([*point.leaves, *point.outputs])
    rounding = 16 * epsilon * (matrix.abs() @ vector)
    apart = (matrix @ vector - central.value).abs()
    if not bool((apart <= central.error + rounding).all()):
        return None
    # What the verification could not have seen is all that can be wrong beyond rounding.
    unseen = (apart + central.error).unsqueeze(1)
    return Estimate(matrix, 16 * epsilon * matrix.abs() + unseen)


def _tree(point: Point, matrix: Tensor) -> Any:
    # (m, n) -> per output leaf, per input leaf (*out, *in)
    leaves: list[Any] = [None] * point.output_spec.num_leaves
    rows = matrix.split([output.numel() for output in point.outputs])
    for index, output, block in zip(point.kept, point.outputs, rows, strict=True):
        pieces = block.split([leaf.numel() for leaf in point.leaves], dim=1)
        leaves[index] = unflatten(
            [
                piece.reshape((*output.shape, *leaf.shape)).to(leaf.device, leaf.dtype)
                for piece, leaf in zip(pieces, point.leaves, strict=True)
            ],
            point.input_spec,
        )
    return unflatten(leaves, point.output_spec)
