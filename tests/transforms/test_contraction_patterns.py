"""Colours of a diagonal outlive the function that they were found for: what changed is noticed."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

import torchjac
from tests.sparse import DETECTS
from tests.transforms.contracted import close, trace_of_hessian

pytestmark = [
    pytest.mark.skipif(not DETECTS, reason="detection needs PyTorch 2.1"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

X = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64)
BATCH = torch.stack([X, -X])


class Part(nn.Module):
    """Of one input each, or linear; what can be changed couples them, or bends it."""

    def __init__(self) -> None:
        super().__init__()
        self.couples, self.act = False, torch.relu
        self.inner = nn.Identity()
        self.at = torch.arange(12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.inner(x))
        return y * y.roll(1) + y.sum() if self.couples else y[self.at] * 3


def couple(part: Part) -> None:
    part.couples = True


def bend(part: Part) -> None:
    part.act = torch.tanh


def replace(part: Part) -> None:
    part.inner = nn.Softmax(-1)


def hook(part: Part) -> None:
    part.inner.register_forward_hook(lambda _, inputs, output: output * output.sum())


def hook_before(part: Part) -> None:
    part.inner.register_forward_pre_hook(lambda _, inputs: (inputs[0] * inputs[0].sum(),))


def patch(part: Part) -> None:
    part.forward = lambda x: x**2 * x.sum()  # type: ignore[method-assign]


def assign(part: Part) -> None:
    part.at = torch.arange(12).roll(1)


def write(part: Part) -> None:
    part.at.copy_(torch.arange(12).roll(1))


def write_as_array(part: Part) -> None:
    part.at.numpy()[:] = 0


CHANGES = [couple, bend, replace, hook, hook_before, patch, assign, write, write_as_array]


def total(func: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: func(x).sum()


# Of a transform: of what function, and the dense formula.
DENSE: dict[str, Callable[[Any], Any]] = {
    "jac_diag": lambda f: lambda x: jacrev(f)(x).diagonal(),
    "divergence": lambda f: lambda x: jacrev(f)(x).trace(),
    "hessian_diag": lambda f: lambda x: jacrev(jacrev(total(f)))(x).diagonal(),
    "laplacian": trace_of_hessian,
}
PLACES: dict[str, Callable[[Any], Tensor]] = {
    "plain": lambda transformed: transformed(X),
    "vmap": lambda transformed: vmap(transformed)(BATCH),
}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", DENSE)
def test_a_module_that_has_changed(name: str, change: Any, place: str, keep: bool) -> None:
    part, at = Part(), PLACES[place]
    func = total(part) if name == "hessian_diag" else part
    dense, kept = DENSE[name](part), getattr(torchjac, name)(func)
    close(at(kept), at(dense))
    change(part)
    for _ in range(2):
        close(at(kept if keep else getattr(torchjac, name)(func)), at(dense))


@pytest.mark.parametrize("entry", [(0, 1), (3, 3), (11, 4)])
@pytest.mark.parametrize("name", DENSE)
def test_a_function_that_cannot_be_followed(name: str, entry: tuple[int, int]) -> None:
    """Whatever there is outside of the pattern shows when its products are compared, at every call."""
    weights, part = torch.zeros(12, 12, dtype=torch.float64), Part()
    weights[entry] = 1

    def func(x: Tensor) -> Tensor:
        import importlib

        importlib.import_module("os")  # nobody knows what that brings
        return (weights @ x) * x if part.couples else torch.zeros_like(x)

    transformed = getattr(torchjac, name)(total(func) if name == "hessian_diag" else func)
    close(transformed(X), DENSE[name](func)(X))
    couple(part)
    close(transformed(X), DENSE[name](func)(X))


def test_an_entry_that_is_zero_at_the_point_has_a_gradient() -> None:
    def squares(shift: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x**3 + x.roll(shift) ** 2 / 2

    for shift in (1, 2, 3, 4):
        x = torch.zeros(64, dtype=torch.float64, requires_grad=True)
        torchjac.divergence(squares(shift))(x).backward()
        close(x.grad, torch.zeros_like(x))


def test_an_entry_that_is_small_beside_others() -> None:
    def steep(shift: int) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.cat([1e9 * x[:1], (x + 0.7 * x.roll(shift))[1:]])

    for shift in (1, 2, 4, 5):
        found = torchjac.jac_diag(steep(shift))(torch.ones(64, dtype=torch.float64))
        close(found[1:], torch.ones_like(found[1:]))


def by_strides(x: Tensor) -> Tensor:
    """Another function of what lies in memory in another order."""
    return x.as_strided((4, 4), (1, 4)) ** 2 * x.exp() + (x if x.is_contiguous() else x.T)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", DENSE)
def test_arguments_in_another_order_in_memory(name: str, place: str) -> None:
    x = torch.linspace(-1.0, 2.0, 32, dtype=torch.float64).reshape(2, 4, 4)

    def flat(x: Tensor) -> Tensor:
        return by_strides(x).reshape(-1)

    def dense(x: Tensor) -> Tensor:
        if name in ("jac_diag", "divergence"):
            diagonal = jacrev(flat)(x).reshape(16, 16).diagonal()
        else:
            func = total(by_strides)
            diagonal = jacrev(jacrev(func))(x).reshape(16, 16).diagonal()
        return diagonal.reshape(4, 4) if name.endswith("diag") else diagonal.sum()

    func = by_strides if name in ("jac_diag", "divergence") else total(by_strides)
    transformed = getattr(torchjac, name)(func)
    for xs in (x, x.mT, x, x.repeat_interleave(2, -1)[..., ::2]):
        if place == "plain":
            close(transformed(xs[0]), dense(xs[0].clone()))
        else:
            close(vmap(transformed)(xs), torch.stack([dense(one.clone()) for one in xs]))


def test_arguments_in_another_order_in_memory_share_no_colours() -> None:
    for shift in (1, 2):
        x = torch.zeros(8, 16, dtype=torch.float64, requires_grad=True)
        torchjac.divergence(lambda x, k=shift: x**3 + x.roll(k) ** 2 / 2)(x.T).backward()
        assert x.grad is not None
        assert not x.grad.any()


def test_what_a_partial_is_given_is_told_apart() -> None:
    def func(factor: float, x: Tensor) -> Tensor:
        return (x**2 * factor).sum()

    x = torch.ones(6, dtype=torch.float64)
    for factor in (2.0, 3.0):
        found = torchjac.laplacian(functools.partial(func, factor))(x)
        torch.testing.assert_close(found, torch.tensor(12 * factor, dtype=torch.float64))
