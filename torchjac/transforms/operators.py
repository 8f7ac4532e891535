"""`jac_operator` and `hessian_operator`: derivatives that are multiplied with and never held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchjac.evaluation.gradients import Gradients
from torchjac.evaluation.surroundings import compiling, inside_transform, out_of_inference
from torchjac.foundations.compiler import eagerly
from torchjac.foundations.spaces import Trees
from torchjac.planning.memory import Known, known_of
from torchjac.planning.products.linearization import Linearization
from torchjac.planning.products.operator import JacobianOperator, LinearOperator, SymmetricOperator
from torchjac.transforms.call import Call
from torchjac.transforms.options import Argnums, Options
from torchjac.transforms.transformed import like_func

__all__ = ["hessian_operator", "jac_operator", "maker"]


def jac_operator(func: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., LinearOperator]:
    """Return a function that evaluates ``func`` once and gives its Jacobian there as a linear operator.

    The operator ``op`` stands for J, ``(m, n)``, which is never held. ``op.T @ u`` is one backward pass over
    the graph of that evaluation. ``op @ v`` is one over the graph of such a pass, which is recorded at the
    first of these products and kept. Neither evaluates ``func`` again; so random numbers are drawn once,
    and all products have the same dropout mask. Where PyTorch cannot go backward over a backward
    pass (fused attention, ``cdist``, ...), ``op @ v`` is one forward pass, which evaluates ``func``
    once, at the same random state; and where there is no forward rule either, m backward passes. That
    is said in a `TorchjacFallbackWarning`. The first products of a signature cost two or three passes
    more, for a check by random vectors.

    | call                          | passes                                                |
    |-------------------------------|-------------------------------------------------------|
    | making it                     | none; one evaluation                                  |
    | ``op.T @ u``, ``u @ op``      | 1, of u ``(m,)``; k of ``(m, k)``, vmapped into one   |
    | ``op @ v``                    | likewise; 1 more at the first                         |
    | ``to_dense()``                | m, or n if that is less than half                     |
    | ``diagonal()``, ``trace()``   | n                                                     |
    | ``gram("inputs")``            | m, or 2n if that is less                              |

    Args:
        func: as for `torchjac.jac`.
        argnums: as for `torchjac.jac`.

    Returns:
        A function with the signature of ``func`` that returns a `torchjac.LinearOperator`. It keeps the
        graph of ``func`` for as long as it, or its transpose, lives. Made in grad mode from arguments or
        parameters that require grad, its products carry a graph; under ``torch.no_grad()`` none
        does. Made within vmap, grad, jvp or torch.compile it belongs there and has to be used there.

    Shapes:
        Flat vectors run over the elements of all inputs ``(n,)`` or outputs ``(m,)``, leaf after leaf.
        ``op.matvec`` takes and gives trees of them.

    Dtypes:
        Inputs and outputs are real floating-point tensors; flat vectors have the dtype that all of them
        promote to, ``op.dtype``.

    Raises:
        OptionError, OptionTypeError: as for `torchjac.jac`, at once.
        ArgumentError, ArgumentTypeError, OutputTypeError: as for `torchjac.jac`, at the call; and where a
            vector does not fit, at the product.
        UnsupportedError: at a product, where PyTorch cannot make it in any way.

    Example:
        >>> import torch, torchjac
        >>> op = torchjac.jac_operator(lambda x: x[0] * x)(torch.tensor([2.0, 3.0]))
        >>> op @ torch.tensor([1.0, 0.0])
        tensor([4., 3.])
        >>> op.T @ torch.tensor([1.0, 0.0])
        tensor([4., 0.])

    Source:
        Griewank & Walther, *Evaluating Derivatives* (2008), chapter 3; on the product J·v, Townsend, *A
        new trick for calculating Jacobian vector products* (2017).
    """
    return maker("jac_operator", func, argnums, order=1)


def hessian_operator(
    func: Callable[..., Any], argnums: Argnums = 0
) -> Callable[..., LinearOperator]:
    """Return a function that evaluates ``func`` once and gives its Hessian there as a linear operator.

    For a function with one output the operator is symmetric, ``op.T is op``. Making it costs one evaluation
    and one backward pass, for the gradient, and ``op @ v`` is one backward pass over the graph of the
    gradient; where PyTorch cannot make that, one forward pass over the gradient, which evaluates ``func``
    once. For m outputs it is the Jacobian of the m gradients, ``(m·n, n)``, made with m backward passes.
    At the first product of a signature a difference of gradients is compared as well, 5 evaluations.

    Args:
        func: as for `torchjac.hessian`; usually with one output.
        argnums: as for `torchjac.jac`.

    Returns:
        A function with the signature of ``func`` that returns a `torchjac.LinearOperator`; as for
        `torchjac.jac_operator`.

    Shapes:
        ``(n, n)`` for one output, whatever its shape, taking trees of inputs to trees of inputs. For m
        outputs ``(m·n, n)``, stacked as the leaves ``(*out, *in_i)`` of the outer trees of
        `torchjac.hessian`: outputs first, then inputs.

    Dtypes:
        As for `torchjac.jac_operator`.

    Raises:
        UnsupportedError: PyTorch cannot make the gradient.
        TorchjacError: as for `torchjac.jac_operator`.

    Example:
        >>> import torch, torchjac
        >>> op = torchjac.hessian_operator(lambda x: x[0] ** 2 * x[1])(torch.tensor([1.0, 2.0]))
        >>> op @ torch.tensor([1.0, 0.0]), op.trace()
        (tensor([4., 2.]), tensor(4.))

    Source:
        Pearlmutter, *Fast exact multiplication by the Hessian* (1994), here in reverse over reverse;
        Griewank & Walther, *Evaluating Derivatives* (2008), chapter 5.
    """
    return maker("hessian_operator", func, argnums, order=2)


def maker(
    name: str, func: Callable[..., Any], argnums: Argnums, order: int
) -> Callable[..., LinearOperator]:
    """What makes the operator of a call, under the name of the call that wants one."""
    options = Options.checked(name, func, argnums)

    @like_func(func, options)
    def operator(*args: Any, **kwargs: Any) -> LinearOperator:
        call = Call(options, func, args, kwargs)
        if compiling():
            return _MAKE[order](call, call.primals, Known())
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                outside: LinearOperator = operator(*args, **kwargs)
                return outside
        return eagerly(_made)(call, order)

    return operator


def _made(call: Call, order: int) -> LinearOperator:
    return _MAKE[order](call, out_of_inference(call.primals), _found_before(call, order))


def _found_before(call: Call, order: int) -> Known:
    """What operators of such calls have found out; within a transform or a trace, nothing of their own."""
    if torch._C._len_torch_dispatch_stack():
        return Known()
    # It also tells whether a module runs, whose parameters may be swapped by one thread at a time.
    key = call.signature()
    if inside_transform():
        return Known()
    known = known_of(key)
    if order == 2 and not known.checked:
        call.keep_state()  # gradients will be made anew, to be compared
    return known


def _jacobian(call: Call, primals: Sequence[Tensor], known: Known) -> LinearOperator:
    name = call.options.name
    point = Linearization(name, call, primals, known)
    value = _handed_out(call, point, point.engine.values, point.engine.carried)
    domain = Trees(point.inputs, call.input_trees)
    codomain = Trees(point.outputs, call.outcome.jacobian)
    return JacobianOperator(name, point, domain, codomain, value)


def _hessian(call: Call, primals: Sequence[Tensor], known: Known) -> LinearOperator:
    name, n = call.options.name, len(primals)
    gradient = Gradients(call)
    point = Linearization(name, gradient, primals, known)
    values, carried = _split(point.engine.carried, gradient.num_values)
    value = _handed_out(call, point, values, carried)
    domain = Trees(point.inputs, call.input_trees)
    if sum(output.numel() for output in values) == 1:
        return SymmetricOperator(name, point, domain, value)

    def put(leaves: Sequence[Any]) -> Any:
        # leaves[output · n + i] -> trees by output, then i
        rows = [call.input_trees(leaves[at : at + n]) for at in range(0, len(leaves), n)]
        return call.outcome.jacobian(rows)

    return JacobianOperator(name, point, domain, Trees(point.outputs, put), value)


_MAKE = {1: _jacobian, 2: _hessian}


def _split(tensors: Sequence[Tensor], count: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return tensors[:count], tensors[count:]


def _handed_out(
    call: Call, point: Linearization, values: Sequence[Tensor], carried: Sequence[Tensor]
) -> Any:
    """What func returned, as copies: the graph may need the values as they are."""
    if not point.engine.keeps_graph:
        values = [value.detach() for value in values]
        carried = [more.detach() for more in carried]
    copies = [[tensor.clone() for tensor in tensors] for tensors in (values, carried)]
    return call.outcome.value(*copies)
