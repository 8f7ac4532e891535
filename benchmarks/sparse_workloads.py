"""What is raced where Jacobians are sparse: every workload, declared once, for PyTorch and for JAX.

A workload is a function that takes the array library's names from `Arrays` and a size, and returns a
function of one flat vector; so all entrants differentiate the same formula. It takes the names first, for a
function of a user's has them at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

Vector = Any
Func = Callable[[Vector], Vector]


@dataclass(frozen=True)
class Arrays:
    """The handful of names that PyTorch and JAX spell differently."""

    roll: Callable[[Any, int, int], Any]
    stack: Callable[[list[Any]], Any]
    concatenate: Callable[[list[Any]], Any]
    tanh: Callable[[Any], Any]
    cos: Callable[[Any], Any]
    convolve: Callable[[Any, Any], Any]
    """``(1, channels, height, width)`` with ``(out, in, 3, 3)``, zero padding, same size."""
    constant: Callable[[torch.Tensor], Any]


TORCH = Arrays(
    roll=torch.roll,
    stack=torch.stack,
    concatenate=torch.cat,
    tanh=torch.tanh,
    cos=torch.cos,
    convolve=lambda image, kernel: F.conv2d(image, kernel, padding=1),
    constant=lambda tensor: tensor,
)


def jax_arrays() -> Arrays:
    """The same names in JAX."""
    import jax
    from jax import numpy as jnp

    return Arrays(
        roll=jnp.roll,
        stack=jnp.stack,
        concatenate=jnp.concatenate,
        tanh=jnp.tanh,
        cos=jnp.cos,
        convolve=lambda image, kernel: jax.lax.conv(image, kernel, (1, 1), "SAME"),
        constant=lambda tensor: jnp.asarray(tensor.numpy()),
    )


@dataclass(frozen=True)
class SparseWorkload:
    """One row of the table, or one curve of the picture.

    Args:
        name: What it is called.
        build: From the array library and a size to the function.
        inputs: From the size to the number of inputs.
        sizes: What it is raced at; the growth over them is drawn where there are several.
        kind: Whether it is a Jacobian or a Hessian that is wanted.
    """

    name: str
    build: Callable[[Arrays, int], Func]
    inputs: Callable[[int], int]
    sizes: tuple[int, ...]
    kind: Literal["jac", "hessian"] = "jac"


def brusselator(np: Arrays, size: int) -> Func:
    """Two reacting, diffusing fields on a periodic grid (Hairer & Wanner, section IV.10)."""
    diffusion, roll, stack = 0.1 * size**2, np.roll, np.stack

    def laplacian(w: Any) -> Any:
        neighbours = roll(w, 1, 0) + roll(w, -1, 0) + roll(w, 1, 1) + roll(w, -1, 1)
        return diffusion * (neighbours - 4 * w)

    def rate(state: Vector) -> Vector:
        fields = state.reshape(2, size, size)
        u, v = fields[0], fields[1]
        reaction = u * u * v
        du = 1.0 + reaction - 4.4 * u + laplacian(u)
        dv = 3.4 * u - reaction + laplacian(v)
        return stack([du, dv]).reshape(-1)

    return rate


def diffusion(np: Arrays, size: int) -> Func:
    """Nonlinear diffusion on a line, whose Jacobian is tridiagonal."""
    concatenate = np.concatenate

    def rate(x: Vector) -> Vector:
        flux = (1 + x[1:] ** 2 + x[:-1] ** 2) * (x[1:] - x[:-1])
        return concatenate([flux[:1], flux[1:] - flux[:-1], -flux[-1:]])

    return rate


def heat(np: Arrays, size: int) -> Func:
    """The heat equation on a line with fixed ends."""
    concatenate = np.concatenate

    def rate(x: Vector) -> Vector:
        inner = x[2:] - 2 * x[1:-1] + x[:-2]
        return concatenate([x[1:2] - 2 * x[:1], inner, x[-2:-1] - 2 * x[-1:]])

    return rate


def convolutions(np: Arrays, size: int) -> Func:
    """Three convolutions with tanh between them, on one channel in and out."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 1), (4, 4), (1, 4)]
    kernels = [torch.randn(*shape, 3, 3, generator=generator) / math.sqrt(9) for shape in shapes]
    kernels = [np.constant(kernel) for kernel in kernels]
    convolve, tanh = np.convolve, np.tanh

    def network(x: Vector) -> Vector:
        image = x.reshape(1, 1, size, size)
        for kernel in kernels[:-1]:
            image = tanh(convolve(image, kernel))
        return convolve(image, kernels[-1]).reshape(-1)

    return network


def rosenbrock(np: Arrays, size: int) -> Func:
    """The chained Rosenbrock function, whose Hessian is tridiagonal."""

    def value(x: Vector) -> Vector:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    return value


def cosine_of_differences(np: Arrays, size: int) -> Func:
    cos = np.cos
    return lambda x: cos(x[1:] - x[:-1])


def square(np: Arrays, size: int) -> Func:
    return lambda x: x**2


SPARSE_WORKLOADS = [
    SparseWorkload("Brusselator", brusselator, lambda size: 2 * size**2, (16, 32, 64, 128, 256)),
    SparseWorkload("nonlinear diffusion", diffusion, lambda size: size, (1000, 10_000, 100_000)),
    SparseWorkload("heat", heat, lambda size: size, (200, 10_000)),
    SparseWorkload("three convolutions", convolutions, lambda size: size**2, (16, 32, 64)),
    SparseWorkload("cos(diff(x))", cosine_of_differences, lambda size: size, (10_000,)),
    SparseWorkload("x²", square, lambda size: size, (10_000, 100_000, 1_000_000)),
    SparseWorkload("Rosenbrock Hessian", rosenbrock, lambda size: size, (1000, 10_000), "hessian"),
]
