"""A linear map of tensors as a `scipy.sparse.linalg.LinearOperator` of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["as_scipy", "from_array", "to_array"]

Array: TypeAlias = npt.NDArray[Any]
Product: TypeAlias = Callable[[Tensor], Tensor]


def as_scipy(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    times: Product,
    transposed_times: Product,
) -> Any:
    """Wrap two products for SciPy's iterative solvers.

    Args:
        shape: ``(m, n)``.
        dtype: of the tensors that the products take and give.
        device: where they live.
        times: from ``(n,)`` or ``(n, k)`` to ``(m,)`` or ``(m, k)``.
        transposed_times: back.

    Returns:
        A ``LinearOperator`` with matvec, rmatvec, matmat and rmatmat. On the CPU tensors and arrays of the
        same dtype share memory; bfloat16, which NumPy does not have, is handed over as float32.
    """
    from scipy.sparse.linalg import LinearOperator

    def of_arrays(product: Product) -> Callable[[Array], Array]:
        def on_arrays(x: Array) -> Array:
            if np.iscomplexobj(x):
                both: Array = on_arrays(x.real) + 1j * on_arrays(x.imag)
                return both
            with torch.no_grad():
                return to_array(product(from_array(x, dtype, device)))

        return on_arrays

    forth, back = of_arrays(times), of_arrays(transposed_times)
    return LinearOperator(
        shape=shape,
        dtype=to_array(torch.empty(0, dtype=dtype)).dtype,
        # SciPy also gives columns (n, 1) to what takes vectors.
        matvec=lambda x: forth(x.reshape(-1)),
        rmatvec=lambda x: back(x.reshape(-1)),
        matmat=forth,
        rmatmat=back,
    )


def from_array(array: Array, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor of an array, on its memory where that can be."""
    # PyTorch takes neither negative strides nor memory that it must not write to.
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array).to(device, dtype)


def to_array(tensor: Tensor) -> Array:
    """The array of a tensor, on its memory where that can be."""
    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
