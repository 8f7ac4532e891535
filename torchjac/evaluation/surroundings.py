"""Where a call finds itself: plain eager code, another transform, a compiler's trace; and its locks.

Everything torchjac asks of PyTorch's interpreter state is asked here, and each question that leans
on an undocumented name has a test in ``tests/contracts``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _python_dispatch
from torch.utils._device import DeviceContext

from torchjac.foundations.compiler import compiling

__all__ = [
    "Draw",
    "are_faked",
    "carry_tangents",
    "compiling",
    "defaults",
    "exclusively",
    "has_values",
    "inside_transform",
    "inside_vmap",
    "is_aside",
    "is_eager",
    "is_fake",
    "is_out_of_memory",
    "is_traced",
    "lock",
    "nothing_around",
    "out_of_inference",
    "unwatched",
    "without_modes",
    "without_transforms",
]

_functorch = torch._C._functorch
_MODE_KEYS = "_TorchDispatchModeKey"


def inside_transform() -> bool:
    """True within vmap, grad, jvp, ...: a plain autograd graph cannot be recorded there."""
    return _functorch.peek_interpreter_stack() is not None


def inside_vmap() -> bool:
    """True where one of the transforms around is vmap; before torch 2.1, if the innermost is."""
    if not inside_transform():
        return False
    stack = getattr(_functorch, "get_interpreter_stack", None)
    layers = stack() if stack else [_functorch.peek_interpreter_stack()]
    return any(layer.key() == _functorch.TransformType.Vmap for layer in layers)


@contextlib.contextmanager
def without_transforms() -> Iterator[None]:
    """Step out of vmap, grad, jvp, ... within the block, for what concerns shapes and indices alone."""
    layers = []
    try:
        while inside_transform():
            layers.append(_functorch.pop_dynamic_layer_stack())
        yield
    finally:
        while layers:
            _functorch.push_dynamic_layer_stack(layers.pop())


def without_modes() -> contextlib.AbstractContextManager[object]:
    """Step out of dispatch modes (fake tensors, counters of operations) as well; since torch 2.1."""
    step_out = getattr(_python_dispatch, "_disable_current_modes", contextlib.nullcontext)
    return cast("contextlib.AbstractContextManager[object]", step_out())


def is_eager() -> bool:
    """True where plain autograd records: no transform, compiler, dispatch mode, level of forward mode."""
    return (
        not compiling()  # first, for the compiler cannot trace the others
        and _functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and not torch.is_inference_mode_enabled()
    )


def nothing_around(*, autocast: bool = False) -> bool:
    """True in eager code that no mode changes.

    Nor autocast, unless ``autocast`` says that it would not matter. A default device is no mode here: it
    is asked for by `defaults`.
    """
    return (
        is_eager()
        and (not torch._C._len_torch_function_stack() or _default_device() is not None)
        and (autocast or not torch._C._is_any_autocast_enabled())
    )


def unwatched() -> bool:
    """True in eager code where nobody looks on at what is called: no mode but for a default device."""
    if torch._C._len_torch_dispatch_stack():
        return False
    return not torch._C._len_torch_function_stack() or _default_device() is not None


_cpu = torch.device("cpu")


def defaults() -> tuple[torch.dtype, torch.device | None, bool]:
    """What a new tensor is of, and where, if nobody says it; and whether algorithms are deterministic.

    The device is None where modes have a say in it. PyTorch's own functions are other ones where results
    have to be the same every time. How products of single precision are rounded is nothing that PyTorch can
    always be asked: where somebody has said it for one backend the question is an error.
    """
    device = _default_device() if torch._C._len_torch_function_stack() else _cpu
    return torch.get_default_dtype(), device, torch.are_deterministic_algorithms_enabled()


def _default_device() -> torch.device | None:
    """That of the innermost of the modes, if all of them are about no more than that."""
    modes = _get_current_function_mode_stack()
    return modes[-1].device if all(type(mode) is DeviceContext for mode in modes) else None


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and no values, being part of a trace."""
    return hasattr(tensor, "fake_mode")


def are_faked() -> bool:
    """Whether a mode makes all that is computed fake, so that nothing is written; since torch 2.1."""
    return _is_active("FAKE")


def is_traced() -> bool:
    """Whether all that is computed is written down as a graph; since torch 2.1."""
    return _is_active("PROXY")


def _is_active(mode: str) -> bool:
    mode_of, keys = (getattr(torch._C, name, None) for name in ("_get_dispatch_mode", _MODE_KEYS))
    return mode_of is not None and keys is not None and mode_of(getattr(keys, mode)) is not None


def out_of_inference(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, copied where they were made in inference mode: those can be no part of a graph."""
    return [tensor.clone() if tensor.is_inference() else tensor for tensor in tensors]


def carry_tangents(tensors: Sequence[Tensor]) -> bool:
    """True for dual numbers of the caller's own forward mode, which plain autograd would lose."""
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def has_values(tensors: Sequence[Tensor]) -> bool:
    """True where tensors hold numbers that can be compared: no transform, no trace, no fake tensor."""
    if compiling() or inside_transform() or torch._C._len_torch_dispatch_stack():
        return False
    if carry_tangents(tensors):
        return False
    return not any(tensor.is_meta or is_fake(tensor) for tensor in tensors)


# PyTorch's forward-mode levels and `functional_call` are global to the process: two threads inside
# either one corrupt each other. The lock is reentrant, since transforms nest.
lock = threading.RLock()

_unguarded = contextlib.nullcontext()


def exclusively(needed: bool = True) -> contextlib.AbstractContextManager[object]:
    """The lock for forward mode and for modules; passed by under a compiler, which cannot trace it."""
    return lock if needed and not compiling() else _unguarded


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch, on any device, failed to allocate."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "allocate memory" in text or "out of memory" in text
    )


class Draw:
    """The state of the random generators at a call's start, so that a repetition draws the same."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._cuda: dict[torch.device, None] = {}
        for tensor in tensors:
            if tensor.is_cuda:
                self._cuda[tensor.device] = None
        self._before = self._read()

    def _read(self) -> tuple[Tensor, list[Tensor]]:
        here = torch.default_generator.get_state()
        return here, [
            torch.cuda.get_rng_state(device) for device in self._cuda
        ] if self._cuda else []

    def _write(self, state: tuple[Tensor, list[Tensor]]) -> None:
        torch.set_rng_state(state[0])
        for device, cuda_state in zip(self._cuda, state[1], strict=True):
            torch.cuda.set_rng_state(cuda_state, device)

    def again(self) -> None:
        """Set the generators back to the call's start."""
        self._write(self._before)

    def has_moved(self) -> bool:
        """Whether anybody has drawn since."""
        now, before = self._read(), self._before
        pairs = [(now[0], before[0]), *zip(now[1], before[1], strict=True)]
        return not all(torch.equal(one, other) for one, other in pairs)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Draw from the call's start within the block, and leave the generators untouched after it.

        What is evaluated within it is to leave no trace elsewhere either; see `is_aside`.
        """
        now = self._read()
        self.again()
        outer = is_aside()
        _aside.inside = True
        try:
            yield
        finally:
            _aside.inside = outer
            self._write(now)


_aside = threading.local()


def is_aside() -> bool:
    """Whether an evaluation is one on top of those that the user asked for."""
    return getattr(_aside, "inside", False)
