"""`load_plan`: a plan from a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from torchjac.errors import PlanError, TorchjacError
from torchjac.evaluation.surroundings import nothing_around
from torchjac.planning.plans.plan import Plan
from torchjac.transforms.batched import batched_jac
from torchjac.transforms.hessian import hessian
from torchjac.transforms.jac import jac

__all__ = ["load_plan"]

_TRANSFORMS: dict[str, Callable[..., Any]] = {
    "batched_jac": batched_jac,
    "hessian": hessian,
    "jac": jac,
}


def load_plan(path: str | os.PathLike[str], func: Callable[..., Any]) -> Plan:
    """Make the plan that `Plan.save` wrote down again, for the same function.

    Nothing is looked for, coloured, considered or measured again: ``func`` is traced once, on tensors
    without values, and the trace is compared with that of the function which was planned. So ``func``
    is the same if it computes the same, whatever it is called and wherever its parameters come from. A
    function that could not be traced is known by its code instead.

    The file is data and never code, so reading one from a stranger runs nothing of theirs. The colours
    in it are believed, however: they would give wrong numbers if they were made up. ``verify`` tells.

    Args:
        path: what was given to ``save``.
        func: the function, or the module, that the plan was made for.

    Returns:
        A `Plan` for arguments of the shapes that were planned for. For ``compile`` it has arguments
        that are made up.

    Raises:
        PlanError: the file is of another format, damaged, or no plan; a device is missing; or ``func``
            is another function, has parameters of other shapes, or captured tensors that shaped the
            pattern and have other values now.
        OSError: there is no such file, or it cannot be read.

    Example:
        >>> import tempfile, torch, torchjac
        >>> path = tempfile.mkdtemp() + "/differences.plan"
        >>> plan = torchjac.jac(lambda x: (x[1:] - x[:-1]) ** 2).plan(torch.zeros(1000))
        >>> plan.save(path)
        >>> again = torchjac.load_plan(path, lambda x: (x[1:] - x[:-1]) ** 2)
        >>> again.passes, again.pattern == plan.pattern
        (2, True)
    """
    # They take much of PyTorch that nobody else needs.
    from torchjac.planning.plans.loading import remade
    from torchjac.planning.plans.saved import read

    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return load_plan(path, func)
    if not nothing_around():
        raise PlanError(
            "load_plan: a plan cannot be loaded within vmap, grad, torch.compile or a dispatch mode. Load "
            "it outside, and call it there."
        )
    saved = read(path)
    try:
        derivative = _TRANSFORMS[saved.transform](func, **saved.keywords)
    except (TorchjacError, LookupError, TypeError) as error:
        raise saved.refuse(f"func does not fit the saved options ({error})") from error
    return remade(saved, derivative._transform)
