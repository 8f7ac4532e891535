"""`check_jac` and `check_hessian`: is this derivative right, and if not, where?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchjac.errors import OptionError, UnsupportedError
from torchjac.testing.differences import Estimate
from torchjac.testing.finite_difference import direction
from torchjac.testing.judge import Judge
from torchjac.testing.options import check_options
from torchjac.testing.point import Argnums, Point, flat, split
from torchjac.testing.probes import Probe
from torchjac.testing.report import CheckReport
from torchjac.testing.structure import axes_of, read
from torchjac.testing.tolerances import precision, tolerance

__all__ = ["check_hessian", "check_jac"]


def check_jac(
    func: Callable[..., Any],
    *args: Any,
    argnums: Argnums = 0,
    jac: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    has_aux: bool = False,
    probes: Sequence[str] = ("adjoint", "difference"),
    samples: int = 2,
    rtol: float | None = None,
    atol: float | None = None,
    step: float | None = None,
    check_dtype: bool = True,
    seed: int = 0,
) -> CheckReport:
    """Check a Jacobian of ``func`` at ``args`` by random products, and say where it is wrong.

    Two probes, neither of which uses vmap or forward mode:

    - *adjoint*: u'J against one plain reverse pass with ``u``. It finds whatever a mode, a batching
      rule or the assembly of a Jacobian got wrong.
    - *difference*: Jv against a central difference of ``func`` along ``v``. It knows nothing of
      derivative rules, so it also finds rules that are wrong in every mode, and dependencies that
      autograd cannot see (``detach``, ``no_grad``, ``item``).

    A random product misses a wrong entry with a probability of about one in 10^4 or less. It costs
    one reverse pass and eleven evaluations per sample, whatever the size; naming the wrong entry
    costs a number of them that grows with the logarithm of the size.

    Args:
        func: the function, or an `torch.nn.Module`.
        *args: its arguments.
        argnums: what is differentiated, as in `torchjac.jac`.
        jac: what is checked: a callable with ``func``'s signature that returns the Jacobian, or the
            Jacobian itself. By default ``torchjac.jac(func, argnums)``.
        kwargs: keyword arguments of ``func`` (and of ``jac``).
        has_aux: ``func`` returns ``(output, aux)``, and ``jac`` gives ``(jacobian, aux)``.
        probes: which of the two to use. Leave ``"difference"`` out for functions that stop
            gradients on purpose.
        samples: how many random vectors per probe.
        rtol: a product may differ by this fraction of the sum of its terms' magnitudes. The
            defaults for this and ``atol`` depend on the dtype; float64 tells most.
        atol: and by this much besides. Lower it for functions whose values are tiny.
        step: the longest displacement of the differences, as in `finite_difference_jac`. Lower it for
            functions that vary over lengths much below one.
        check_dtype: each leaf must have its input's dtype.
        seed: of the random vectors; the global generators are left as one call of ``func`` does.

    Returns:
        A summary, with a note on whatever could not be compared: entries where ``func`` is not
        differentiable, or a reverse pass that PyTorch refuses.

    Raises:
        OptionError, OptionTypeError: an option is none of those above.
        DerivativeError: an `AssertionError` that names the entry, what is there and what should be.
        UnsupportedError: there was nothing to compare with at all.

    Example:
        >>> import torch
        >>> from torchjac.testing import check_jac
        >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> report = check_jac(torch.sin, x, jac=torch.func.jacfwd(torch.sin))
        >>> report.shape
        (2, 2)
        >>> check_jac(torch.sin, x, jac=torch.diag(x.cos() * 2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        torchjac.testing.report.DerivativeError: check_jac: the Jacobian is wrong:
        ...

    Source:
        The dot-product test and the Taylor test of every adjoint code: Griewank & Walther,
        *Evaluating Derivatives* (2008), section 3.3; one random projection in place of all entries,
        as in `autograd.test_util` and `jax.test_util.check_grads`.
    """
    where = "check_jac"
    options = {"has_aux": has_aux, "check_dtype": check_dtype, "seed": seed, "samples": samples}
    numbers = {"rtol": rtol, "atol": atol, "step": step}
    check_options(where, func, argnums, kwargs=kwargs, **options, **numbers)
    _check_probes(where, probes, ("adjoint", "difference"))
    if jac is None:
        import torchjac

        jac = torchjac.jac(func, argnums, has_aux=has_aux)
    point = Point(where, func, argnums, args, kwargs or {}, has_aux=has_aux)
    try:
        tensor = _checked(point, jac, 1, args, kwargs or {}, has_aux, check_dtype)
        known = {"adjoint": _reverse(point), "difference": _differences(point, step)}
        allowance = tolerance([*point.leaves, *point.outputs], rtol, atol)
        judge = Judge(where, "Jacobian", tensor, axes_of(point, 1), allowance, seed)
        with torch.inference_mode(False):
            return judge.verdict([known[name] for name in probes], samples)
    finally:
        point.settle()


def check_hessian(
    func: Callable[..., Any],
    *args: Any,
    argnums: Argnums = 0,
    hessian: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    has_aux: bool = False,
    probes: Sequence[str] = ("symmetry", "adjoint", "difference"),
    samples: int = 2,
    rtol: float | None = None,
    atol: float | None = None,
    step: float | None = None,
    check_dtype: bool = True,
    seed: int = 0,
) -> CheckReport:
    """Check a Hessian of ``func`` at ``args`` by random products, and say where it is wrong.

    Three probes:

    - *symmetry*: every entry against its mirror image. Wrong Hessians are often symmetric, so this
      alone proves little.
    - *adjoint*: u'Hw against a plain reverse pass over a plain reverse pass.
    - *difference*: Hv against a central difference of plain gradients along ``v``. It trusts first
      derivatives only (check those with `check_jac`).

    Args:
        func: the function, or an `torch.nn.Module`; its outputs may be of any shape.
        *args: its arguments.
        argnums: what is differentiated, as in `torchjac.hessian`.
        hessian: what is checked: a callable with ``func``'s signature that returns the Hessian, or
            the Hessian itself. By default ``torchjac.hessian(func, argnums)``.
        kwargs: keyword arguments of ``func`` (and of ``hessian``).
        has_aux: ``func`` returns ``(output, aux)``, and ``hessian`` gives ``(hessian, aux)``.
        probes: which of the three to use.
        samples: how many random vectors per probe.
        rtol: as in `check_jac`.
        atol: as in `check_jac`.
        step: as in `check_jac`.
        check_dtype: each leaf must have the dtype of one of its inputs.
        seed: of the random vectors.

    Returns:
        A summary, with a note on whatever could not be compared.

    Raises:
        OptionError, OptionTypeError: an option is none of those above.
        DerivativeError: an `AssertionError` that names the entry, what is there and what should be.
        UnsupportedError: there was nothing to compare with at all.

    Example:
        >>> import torch
        >>> from torchjac.testing import check_hessian
        >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> cube = lambda x: (x**3).sum()
        >>> check_hessian(cube, x, hessian=torch.func.hessian(cube)).shape
        (1, 2, 2)

    Source:
        As `check_jac`.
    """
    where = "check_hessian"
    options = {"has_aux": has_aux, "check_dtype": check_dtype, "seed": seed, "samples": samples}
    numbers = {"rtol": rtol, "atol": atol, "step": step}
    check_options(where, func, argnums, kwargs=kwargs, **options, **numbers)
    _check_probes(where, probes, ("symmetry", "adjoint", "difference"))
    if hessian is None:
        import torchjac

        hessian = torchjac.hessian(func, argnums, has_aux=has_aux)
    point = Point(where, func, argnums, args, kwargs or {}, has_aux=has_aux)
    try:
        tensor = _checked(point, hessian, 2, args, kwargs or {}, has_aux, check_dtype)
        known = {
            "adjoint": _reverse_over_reverse(point),
            "difference": _differences_of_gradients(point, step),
        }
        allowance = tolerance([*point.leaves, *point.outputs], rtol, atol)
        judge = Judge(where, "Hessian", tensor, axes_of(point, 2), allowance, seed)
        with torch.inference_mode(False):
            return judge.verdict(
                [known[name] for name in probes if name in known],
                samples,
                symmetric="symmetry" in probes,
            )
    finally:
        point.settle()


def _check_probes(where: str, probes: Sequence[str], allowed: Sequence[str]) -> None:
    fits = isinstance(probes, (list, tuple, set, frozenset)) and bool(probes)
    if not fits or not set(probes) <= set(allowed):
        words = ", ".join(map(repr, allowed))
        raise OptionError(f"{where}(probes={probes!r}): expected some of [{words}].")


def _checked(
    point: Point,
    derivative: Any,
    order: int,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    has_aux: bool,
    check_dtype: bool,
) -> Tensor:
    """Evaluate what is under test at the point's own random draw, and read it."""
    if callable(derivative):
        with point.again():
            derivative = derivative(*args, **kwargs)
        if has_aux:
            derivative = derivative[0]
    return read(point, derivative, order, check_dtype=check_dtype)


def _pull(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    cotangent: Tensor,
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """One plain reverse pass; zeros for leaves that the outputs do not depend on."""
    seeds = split(cotangent, outputs)
    reached = [index for index, output in enumerate(outputs) if output.requires_grad]
    if not reached:
        return [torch.zeros_like(leaf) for leaf in leaves]
    with torch.inference_mode(False), torch.enable_grad():
        products: Sequence[Tensor | None] = torch.autograd.grad(
            [outputs[index] for index in reached],
            leaves,
            [seeds[index] for index in reached],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
    return [
        torch.zeros_like(leaf) if product is None else product
        for leaf, product in zip(leaves, products, strict=True)
    ]


def _refuse_coarse(point: Point) -> None:
    """In 16-bit dtypes a difference is mostly the rounding of its own step."""
    if precision([*point.leaves, *point.outputs]) > 1e-4:
        raise UnsupportedError("the dtype is too coarse; use float64")


def _exact(value: Tensor) -> Estimate:
    return Estimate(value, torch.zeros_like(value))


def _reverse(point: Point) -> Probe:
    def reference(vectors: list[Tensor]) -> Estimate:
        leaves, outputs = point.recorded()
        return _exact(flat(_pull(outputs, leaves, vectors[0])))

    return Probe("adjoint", "reverse pass", 1, reference)


def _differences(point: Point, step: float | None) -> Probe:
    def reference(vectors: list[Tensor]) -> Estimate:
        _refuse_coarse(point)
        return direction(point.values, point.leaves, split(vectors[0], point.leaves), step)

    return Probe("difference", "finite difference", 0, reference)


def _reverse_over_reverse(point: Point) -> Probe:
    def reference(vectors: list[Tensor]) -> Estimate:
        leaves, outputs = point.recorded()
        gradient = _pull(outputs, leaves, vectors[0], create_graph=True)
        return _exact(flat(_pull(gradient, leaves, vectors[1])))

    return Probe("adjoint", "reverse over reverse", 2, reference)


def _differences_of_gradients(point: Point, step: float | None) -> Probe:
    def reference(vectors: list[Tensor]) -> Estimate:
        def gradient(leaves: Sequence[Tensor]) -> list[Tensor]:
            fresh, outputs = point.recorded(leaves)
            return _pull(outputs, fresh, vectors[0])

        _refuse_coarse(point)
        return direction(gradient, point.leaves, split(vectors[1], point.leaves), step)

    return Probe("difference", "difference of gradients", 1, reference)
