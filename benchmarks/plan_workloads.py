"""What plans are raced on: every workload for PyTorch and, by the same formula, for JAX.

A workload is a function that builds ``(func, args)`` as in `workloads`, and a twin that makes a function
of JAX from it. The numbers are those of the original: the parameters of a module, or what a closure
reaches. JAX is imported only where twins are built.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from . import workloads
from .sparse_workloads import TORCH, brusselator, jax_arrays
from .workloads import Func, Problem

Twin = Callable[[Func], Callable[[Any], Any]]
KINDS = {
    "jac": "Jacobians",
    "hessian": "Hessians",
    "batched": "Batches",
    "sparse": "Sparse Jacobians",
}


@dataclass(frozen=True)
class PlanWorkload:
    """One row of the table.

    Args:
        name: What it is called in the table and by ``--only``.
        build: Makes the function and its arguments.
        twin: Makes the same function for JAX, which takes one array.
        kind: One of `KINDS`; functions of batches take one sample as well.
        grad_mode: Whether the race is held in grad mode, where results carry a graph if they can.
        crashes: Peers that would take the process with them, and how.
    """

    name: str
    build: Callable[[], Problem]
    twin: Twin
    kind: str = "jac"
    grad_mode: bool = False
    crashes: dict[str, str] = field(default_factory=dict)


def numbers(func: Func) -> SimpleNamespace:
    """What a closure reaches, by name, tensors as arrays of JAX."""
    reached = inspect.getclosurevars(func).nonlocals.items()
    return SimpleNamespace(**{k: array(v) if isinstance(v, Tensor) else v for k, v in reached})


def array(tensor: Tensor) -> Any:
    from jax import numpy as jnp

    return jnp.asarray(tensor.detach().numpy())


# --- networks ------------------------------------------------------------------------------------


def network(model: nn.Sequential) -> Callable[[Any], Any]:
    """Return the same layers for JAX, applied to one sample."""
    layers = [layer_twin(layer) for layer in model]
    return lambda x: functools.reduce(lambda value, layer: layer(value), layers, x)


def layer_twin(layer: nn.Module) -> Callable[[Any], Any]:
    import jax
    from jax import numpy as jnp

    match layer:
        case nn.Linear():
            weight, bias = array(layer.weight), array(layer.bias)
            return lambda x: weight @ x + bias
        case nn.Conv2d() | nn.ConvTranspose2d():
            return convolution_twin(layer)
        case nn.Tanh():
            return jnp.tanh
        case nn.ReLU():
            return jax.nn.relu
        case nn.Flatten():
            return jnp.ravel
        case nn.Unflatten():
            shape = tuple(layer.unflattened_size)
            return lambda x: x.reshape(shape)
    raise TypeError(f"no twin of {layer}")


def convolution_twin(layer: nn.Conv2d | nn.ConvTranspose2d) -> Callable[[Any], Any]:
    """A transposed convolution is one of the dilated image with the flipped kernel."""
    import jax

    kernel, bias = array(layer.weight), array(layer.bias)[:, None, None]
    (stride, _), (pad, _), size = layer.stride, layer.padding, kernel.shape[-1]
    options: dict[str, Any] = {"window_strides": (stride, stride), "padding": [(pad, pad)] * 2}
    if isinstance(layer, nn.ConvTranspose2d):
        kernel = kernel.swapaxes(0, 1)[:, :, ::-1, ::-1]
        options = {"window_strides": (1, 1), "padding": [(size - 1 - pad,) * 2] * 2}
        options["lhs_dilation"] = (stride, stride)
    return lambda x: jax.lax.conv_general_dilated(x[None], kernel, **options)[0] + bias


def conv_autoencoder() -> Problem:
    """An image to ten latents and back."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(0),
        nn.Linear(16 * 6 * 6, 10),
        nn.Linear(10, 16 * 6 * 6),
        nn.Unflatten(0, (16, 6, 6)),
        nn.Tanh(),
        nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
    )
    return model, (torch.randn(1, 24, 24),)


def latent_attention() -> Problem:
    """Tokens are read into four latents by attention, and read out of them by attention."""
    tokens, width, latents = 64, 8, 4
    queries, keys = torch.randn(latents, width), torch.randn(width, width) / width**0.5
    out_queries, out_keys = torch.randn(tokens, width), torch.randn(width, width) / width**0.5

    def func(x: Tensor) -> Tensor:
        read = torch.softmax(queries @ (x @ keys).T, 1) @ x
        return torch.softmax(out_queries @ (read @ out_keys).T, 1) @ read

    return func, (torch.randn(tokens, width),)


def attention_twin(func: Func) -> Callable[[Any], Any]:
    from jax.nn import softmax

    at = numbers(func)

    def twin(x: Any) -> Any:
        read = softmax(at.queries @ (x @ at.keys).T, 1) @ x
        return softmax(at.out_queries @ (read @ at.out_keys).T, 1) @ read

    return twin


def hessian_twin(func: Func) -> Callable[[Any], Any]:
    model = network(numbers(func).model)
    return lambda x: model(x).sum()


# --- numerics ------------------------------------------------------------------------------------


def tiny_twin(func: Func) -> Callable[[Any], Any]:
    from jax import numpy as jnp

    def twin(x: Any) -> Any:
        squares = jnp.square(x)
        return jnp.concatenate([squares, 4 * squares])

    return twin


def arm_twin(func: Func) -> Callable[[Any], Any]:
    from jax import numpy as jnp

    at = numbers(func)

    def twin(q: Any) -> Any:
        angles = q[:, None, None]
        transforms = jnp.cos(angles) * at.cos_part + jnp.sin(angles) * at.sin_part + at.rest
        return functools.reduce(jnp.matmul, list(transforms))[:3, 3]

    return twin


def pool_and_spread() -> Problem:
    """Averages of eight stretches, coupled, and each spread over its stretch again."""
    coupling, weight = torch.randn(8, 8), torch.randn(600)

    def func(x: Tensor) -> Tensor:
        pooled = torch.tanh(coupling @ x.reshape(8, 75).mean(1))
        return torch.sin(pooled[:, None].expand(8, 75).reshape(600) * weight)

    return func, (torch.randn(600),)


def pool_twin(func: Func) -> Callable[[Any], Any]:
    from jax import numpy as jnp

    at = numbers(func)

    def twin(x: Any) -> Any:
        pooled = jnp.tanh(at.coupling @ x.reshape(8, 75).mean(1))
        return jnp.sin(jnp.broadcast_to(pooled[:, None], (8, 75)).reshape(600) * at.weight)

    return twin


def function_of_mean() -> Problem:
    weight = torch.randn(1000)

    def func(x: Tensor) -> Tensor:
        return torch.sin(weight * x.mean())

    return func, (torch.randn(1000),)


def mean_twin(func: Func) -> Callable[[Any], Any]:
    from jax import numpy as jnp

    at = numbers(func)
    return lambda x: jnp.sin(at.weight * x.mean())


def elementwise_twin(func: Func) -> Callable[[Any], Any]:
    from jax import numpy as jnp

    return lambda x: jnp.sin(x) * jnp.exp(-jnp.square(x))


def rbf_twin(func: Func) -> Callable[[Any], Any]:
    from jax import numpy as jnp

    at = numbers(func)

    def twin(parameters: Any) -> Any:
        weight, x, y, log_width = parameters[: 4 * at.bumps].reshape(4, at.bumps)
        squared_distance = jnp.square(at.points[:, :1] - x) + jnp.square(at.points[:, 1:] - y)
        basis = jnp.exp(-squared_distance * jnp.exp(-2 * log_width))
        return basis @ weight + parameters[4 * at.bumps :].sum() - at.values

    return twin


def tall_twin(func: Func) -> Callable[[Any], Any]:
    from jax import numpy as jnp

    at = numbers(func)
    return lambda x: jnp.tanh(at.weight @ x)


def solve_twin(func: Func) -> Callable[[Any], Any]:
    from jax import numpy as jnp

    at = numbers(func)
    return lambda diagonal: jnp.linalg.solve(at.matrix + jnp.diag(diagonal), at.right_hand_side)


def torch_brusselator(size: int) -> Problem:
    return brusselator(TORCH, size), (torch.randn(2 * size**2),)


def brusselator_row(size: int) -> PlanWorkload:
    return PlanWorkload(
        f"Brusselator N={size}",
        functools.partial(torch_brusselator, size),
        lambda func: brusselator(jax_arrays(), size),
        "sparse",
    )


WAIST = "waist MLP"  # there is a factored Jacobian by hand of this one
ARM = "UR5 arm"

PLAN_WORKLOADS = [
    PlanWorkload("tiny", workloads.tiny, tiny_twin),
    PlanWorkload(ARM, workloads.ur5_arm, arm_twin),
    PlanWorkload("7-joint arm", workloads.seven_joint_arm, arm_twin),
    PlanWorkload(WAIST, workloads.waist_autoencoder, network),
    PlanWorkload("conv autoencoder", conv_autoencoder, network),
    PlanWorkload("pool and spread", pool_and_spread, pool_twin),
    PlanWorkload("low-rank attention", latent_attention, attention_twin),
    PlanWorkload("function of a mean", function_of_mean, mean_twin),
    PlanWorkload("MLP square", workloads.mlp_square, network),
    PlanWorkload("MLP wide in", workloads.mlp_wide_in, network),
    PlanWorkload("MLP wide out", workloads.mlp_wide_out, network),
    PlanWorkload("conv same size", workloads.conv_image_to_image, network),
    PlanWorkload("elementwise", workloads.elementwise, elementwise_twin),
    PlanWorkload("RBF residuals", workloads.rbf_fit, rbf_twin),
    PlanWorkload("very tall", workloads.very_tall, tall_twin),
    PlanWorkload(
        "linear solve",
        workloads.linear_solve,
        solve_twin,
        crashes={"compile(jacfwd)": "segmentation fault: Inductor reads an _efficientzerotensor"},
    ),
    PlanWorkload("MLP Hessian", workloads.mlp_hessian, hessian_twin, "hessian"),
    PlanWorkload("batch of 128", workloads.small_batch, network, "batched"),
    PlanWorkload("batch of 512", workloads.large_batch, network, "batched"),
    brusselator_row(64),
    brusselator_row(256),
    PlanWorkload(f"{ARM}, grad mode", workloads.ur5_arm, arm_twin, grad_mode=True),
    PlanWorkload(f"{WAIST}, grad mode", workloads.waist_autoencoder, network, grad_mode=True),
]
