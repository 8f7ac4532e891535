"""Functions of one code over other tensors share a pattern, where it does not depend on their values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from tests.sparse import DETECTS, point

pytestmark = pytest.mark.skipif(not DETECTS, reason="needs torch 2.1")


@pytest.fixture
def detected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every detection."""
    from torchjac.structure import detection

    calls: list[int] = []
    detect = detection.linear_pattern
    monkeypatch.setattr(
        detection, "linear_pattern", lambda *args: (calls.append(1), detect(*args))[1]
    )
    return calls


def implicit_step(old: Tensor, dt: float | Tensor) -> Callable[[Tensor], Tensor]:
    """The residual of an implicit Euler step of nonlinear diffusion."""
    return lambda x: x - old - dt * torch.diff(torch.diff(x, prepend=x[:1], append=x[-1:]) ** 3)


def agrees(func: Callable[..., Tensor], *args: Any, **options: Any) -> None:
    found = torchjac.jac(func, sparsity="detect", **options)(*args)
    torch.testing.assert_close(found, torch.func.jacrev(func)(*args))


@pytest.mark.parametrize("check", ["first", "never"])
def test_a_right_hand_side_that_is_another_every_time(detected: list[int], check: Any) -> None:
    for k in range(6):
        agrees(implicit_step(point(7) + k, 0.1), point(7), check=check)
    assert len(detected) == 1


@pytest.mark.parametrize("captured", [True, False])
def test_a_step_that_changes(detected: list[int], captured: bool) -> None:
    old = point(7)
    for k in range(6):
        dt = torch.tensor(0.1 + k / 8, dtype=torch.float64)
        if captured:
            agrees(implicit_step(old, dt), point(7))
        else:
            agrees(lambda x, dt: implicit_step(old, dt)(x), point(7), dt)
    assert len(detected) == 1


def test_what_stays_is_looked_at_by_itself(detected: list[int]) -> None:
    old = point(7)
    torchjac.jac(implicit_step(point(7), 0.5), sparsity="detect")(point(7))
    counts = []
    for _ in range(6):
        agrees(implicit_step(old, 0.5), point(7))
        counts.append(len(detected))
    assert counts == [1, 1, 1, 2, 2, 2]


def gated(gate: float, order: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda x: x[order] ** 2 + gate * x.sum()


def test_a_pattern_that_does_not_fit_is_found_anew(detected: list[int]) -> None:
    straight, turned = list(range(6)), list(range(6))[::-1]
    cases = [(0.0, straight), (0.0, turned), (0.5, turned), (0.0, straight), (1.0, straight)]
    for gate, order in cases:
        agrees(gated(gate, order), point(6))
    assert len(detected) == 4  # numbers are told apart


def shifted(shift: int, penalty: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([penalty * x[:1], (x + x.roll(shift) ** 2)[1:]])


@pytest.mark.parametrize("check", ["first", "always", "never"])
def test_an_entry_too_small_to_be_seen_in_a_comparison(check: Any) -> None:
    for shift in (1, 5):
        agrees(shifted(shift, 1e9), point(12), check=check)


def test_an_entry_that_is_zero_at_the_point() -> None:
    torchjac.jac(shifted(1, 1.0), sparsity="detect")(torch.ones(12))
    x = torch.zeros(12, requires_grad=True)
    torchjac.jac(shifted(3, 1.0), sparsity="detect")(x)[5, 2].backward()
    assert x.grad is not None
    assert x.grad[2] == 2


def test_a_tensor_that_is_asked_for_its_values(detected: list[int]) -> None:
    def rolled(shift: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: x * x.roll(int(shift))

    for shift in (1, 2, 3):
        agrees(rolled(torch.tensor(shift)), point(6))
    assert len(detected) == 3


def test_an_alias_that_is_gone(detected: list[int]) -> None:
    for at in (0, 3):
        mask = torch.zeros(6, 6, dtype=torch.float64)
        mask[at, 5] = 1
        agrees(lambda x, mask=mask: mask.data @ x.sin(), point(6))
    assert len(detected) == 2


def test_masks_are_compared(detected: list[int]) -> None:
    eye = torch.eye(4, dtype=torch.float64)
    for mask in (eye, eye.flip(0), eye.clone(), torch.ones_like(eye)):
        agrees(lambda x, mask=mask: mask @ x.sin(), point(4))
    assert len(detected) >= 3


def test_where_nothing_can_be_compared_it_is_found_anew(detected: list[int]) -> None:
    x = torch.stack([point(6), point(6) + 1])
    for gate in (0.0, 1.0):
        func = gated(gate, list(range(6)))
        found = torch.func.vmap(torchjac.jac(func, sparsity="detect"))(x)
        torch.testing.assert_close(found, torch.func.vmap(torch.func.jacrev(func))(x))
    assert len(detected) == 2


def test_hessians(detected: list[int]) -> None:
    for _ in range(4):
        shift = torch.randn(6, dtype=torch.float64)

        def energy(x: Tensor, shift: Tensor = shift) -> Tensor:
            return ((x - shift) ** 4).sum() + (x[1:] * x[:-1]).sum()

        found = torchjac.hessian(energy, sparsity="detect")(point(6))
        torch.testing.assert_close(found, torch.func.hessian(energy)(point(6)))
    assert len(detected) == 1
