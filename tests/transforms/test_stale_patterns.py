"""A pattern outlives the function that it was found for: what changed is noticed, wherever the call is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

import torchjac
from tests.sparse import DETECTS
from torchjac.errors import SparsityMismatchError
from torchjac.planning import sparsity, verify
from torchjac.planning.captured.captures import Captures

pytestmark = pytest.mark.skipif(not DETECTS, reason="detection needs PyTorch 2.1")

X = torch.arange(1.0, 7.0, dtype=torch.float64)
BATCH = torch.stack([X, -X])


class Shift(nn.Module):
    """Row i depends on two of the inputs, which ones on what can be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.inner = 1, nn.Identity()
        self.at = torch.tensor([5, 0, 1, 2, 3, 4])
        self.register_buffer("mask", torch.ones(6, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).roll(self.shift)[self.at] * x * self.mask


class Reversed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(0)


def shift(module: Shift) -> None:
    module.shift = 2


def replace(module: Shift) -> None:
    module.inner = Reversed()


def hook(module: Shift) -> None:
    module.inner.register_forward_hook(lambda _, inputs, output: output.flip(0))


def patch(module: Shift) -> None:
    module.forward = lambda x: x.flip(0) * x.sum()  # type: ignore[method-assign]


def assign(module: Shift) -> None:
    module.at = torch.tensor([0, 0, 0, 1, 1, 1])


def copy_behind(module: Shift) -> None:
    module.at.data.copy_(torch.tensor([0, 0, 0, 1, 1, 1]))


def write_as_array(module: Shift) -> None:
    module.at.numpy()[:] = [0, 0, 0, 1, 1, 1]


SEEN = [shift, replace, hook, patch, assign]
# Of a pattern that was given nobody knows which captured values it was made with.
CHANGES = [*SEEN, copy_behind, write_as_array]
# The way around a transform: what is compared, of the transform and of its peer.
PLACES: dict[str, Callable[[Any], Tensor]] = {
    "plain": lambda j: j(X),
    "vmap": lambda j: vmap(j)(BATCH),
    "grad": lambda j: grad(lambda x: j(x).square().sum())(X),
    "jac": lambda j: torchjac.jac(j)(X),
}


def total(func: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: func(x).sum()


@pytest.mark.parametrize("check", ["first", "never"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_module_that_has_changed(change: Any, place: str, check: Any) -> None:
    module, at = Shift(), PLACES[place]
    derivative = torchjac.jac(module, sparsity="detect", check=check)
    torch.testing.assert_close(at(derivative), at(jacrev(module)))
    change(module)
    for _ in range(2):
        torch.testing.assert_close(at(derivative), at(jacrev(module)))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", CHANGES)
def test_the_transform_is_made_anew(change: Any, place: str) -> None:
    module, at = Shift(), PLACES[place]
    at(torchjac.jac(module, sparsity="detect"))
    change(module)
    for _ in range(2):
        found = at(torchjac.jac(module, sparsity="detect"))
        torch.testing.assert_close(found, at(jacrev(module)))


@pytest.mark.parametrize("place", ["plain", "vmap"])
@pytest.mark.parametrize("change", CHANGES)
def test_hessians(change: Any, place: str) -> None:
    module, at = Shift(), PLACES[place]
    derivative = torchjac.hessian(total(module), sparsity="detect")
    dense = torch.func.hessian(total(module))
    torch.testing.assert_close(at(derivative), at(dense))
    change(module)
    torch.testing.assert_close(at(derivative), at(dense))


@pytest.mark.parametrize("check", ["first", "never"])
@pytest.mark.parametrize("around", [lambda j: j(X), lambda j: vmap(j)(BATCH)])
def test_outputs_that_are_more_now(around: Any, check: Any) -> None:
    module = Shift()
    module.at = torch.tensor([0, 1, 2])
    module.forward = lambda x: x[module.at] ** 2  # type: ignore[method-assign]
    derivative = torchjac.jac(module, sparsity="detect", check=check)
    around(derivative)
    module.at = torch.tensor([0, 1, 2, 5, 4])
    torch.testing.assert_close(around(derivative), around(jacrev(module)))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("change", SEEN)
def test_a_given_pattern_that_is_wrong_by_now_is_refused(change: Any, keep: bool) -> None:
    module = Shift()
    pattern = torchjac.jac_sparsity(module)(X)
    derivative = torchjac.jac(module, sparsity=pattern)
    derivative(X)
    derivative(X)
    change(module)
    with pytest.raises(SparsityMismatchError, match="Add the entries that it lacks"):
        (derivative if keep else torchjac.jac(module, sparsity=pattern))(X)


# What it costs


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often patterns are detected, and answers compared."""
    made = {"detected": 0, "compared": 0}
    find, compare = sparsity.find_pattern, verify._disagreement

    def finding(*args: Any, **kwargs: Any) -> Any:
        made["detected"] += 1
        return find(*args, **kwargs)

    def comparing(*args: Any, **kwargs: Any) -> Any:
        made["compared"] += 1
        return compare(*args, **kwargs)

    monkeypatch.setattr(sparsity, "find_pattern", finding)
    monkeypatch.setattr(verify, "_disagreement", comparing)
    return made


@pytest.mark.parametrize("place", ["plain", "vmap"])
def test_a_transform_that_is_kept_watches_the_module(place: str, counts: dict[str, int]) -> None:
    module, at = Shift(), PLACES[place]
    derivative = torchjac.jac(module, sparsity="detect")
    for _ in range(5):
        at(derivative)
    assert counts == {"detected": 1, "compared": int(place == "plain")}
    module.shift = 2
    at(derivative)
    assert counts["detected"] == 2


@pytest.mark.parametrize(
    ("pattern", "compared"), [("detect", 5), (torch.ones(6, 6).bool(), 2)], ids=["detect", "given"]
)
def test_a_second_one_of_it(pattern: Any, compared: int, counts: dict[str, int]) -> None:
    """What was detected for the first one is never taken for granted; what is given is compared twice.

    The first call may be the only one, so that the second is the one that is taken down.
    """
    module = Shift()
    torchjac.jac(module, sparsity=pattern)(X)
    counts["compared"] = 0
    derivative = torchjac.jac(module, sparsity=pattern)
    for _ in range(5):
        derivative(X)
    assert counts["compared"] == compared
    module.shift = 2
    torch.testing.assert_close(derivative(X), jacrev(module)(X))


class Turned(nn.Module):
    """Its Jacobian is diagonal until it is turned, and then only where the inputs are negative."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = 0

    def forward(self, x: Tensor) -> Tensor:
        return x * x + torch.relu(x.roll(1)) if self.turned else x * x


def test_an_entry_that_is_zero_where_it_is_compared_proves_nothing() -> None:
    for second in (False, True):
        module = Turned()
        derivative = torchjac.jac(module, sparsity="detect")
        for _ in range(3):
            derivative(-X)
        module.turned = 1
        derivative = torchjac.jac(module, sparsity="detect") if second else derivative
        for x in [-X] * 4 + [X] * 2:
            torch.testing.assert_close(derivative(x), jacrev(module)(x))


def test_nor_does_it_for_a_pattern_that_was_given() -> None:
    module = Turned()
    derivative = torchjac.jac(module, sparsity=torch.eye(6).bool())
    for _ in range(3):
        derivative(-X)
    module.turned = 1
    for _ in range(4):
        derivative(-X)
    with pytest.raises(SparsityMismatchError):
        derivative(X)


def test_what_cannot_be_followed_is_looked_into_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once when it is first seen, and once when a second transform of it is kept."""
    looked = 0
    look = Captures.of

    def counting(func: Any) -> Any:
        nonlocal looked
        looked += 1
        return look(func)

    monkeypatch.setattr(Captures, "of", counting)

    class Opaque(Shift):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * len(vars(self)) ** 0

    module = Opaque()
    for _ in range(2):
        derivative = torchjac.jac(module, sparsity=torch.ones(6, 6).bool())
        for _ in range(5):
            derivative(X)
    assert looked == 2


def test_what_is_compared_at_zeros_is_not_taken_down(counts: dict[str, int]) -> None:
    module = Shift()
    torchjac.jac(module, sparsity=torch.ones(6, 6).bool())(X)
    counts["compared"] = 0
    derivative = torchjac.jac(module, sparsity=torch.ones(6, 6).bool())
    for x in [torch.zeros_like(X), torch.zeros_like(X), torch.zeros_like(X), X, X, X]:
        derivative(x)
    assert counts["compared"] == 4


def test_one_that_is_made_anew_compares_every_call(counts: dict[str, int]) -> None:
    module = Shift()
    for _ in range(5):
        torchjac.jac(module, sparsity="detect")(X)
    assert counts == {"detected": 1, "compared": 5}


def test_one_that_is_made_anew_detects_where_nothing_can_be_compared(
    counts: dict[str, int],
) -> None:
    module = Shift()
    for _ in range(3):
        vmap(torchjac.jac(module, sparsity="detect"))(BATCH)
    assert counts == {"detected": 3, "compared": 0}


@pytest.mark.parametrize("place", PLACES)
def test_functions_whose_signature_tells_all_are_detected_once(
    place: str, counts: dict[str, int]
) -> None:
    at = PLACES[place]
    for _ in range(5):
        at(torchjac.jac(lambda x: x.roll(1) * x, sparsity="detect"))
    # The first look at a function that calls the transform itself remembers nothing.
    assert counts["detected"] == (2 if place == "jac" else 1)
    assert counts["compared"] <= counts["detected"]


# What changes


SHIFT = 1


def make_of_closure() -> Any:
    shift = 1

    def func(x: Tensor) -> Tensor:
        return x.roll(shift) * x

    def change() -> None:
        nonlocal shift
        shift = 2

    return func, change


def make_of_globals() -> Any:
    def func(x: Tensor) -> Tensor:
        return x.roll(SHIFT) * x

    def change() -> None:
        func.__globals__["SHIFT"] = 3 - SHIFT

    return func, change


def make_of_list() -> Any:
    shifts = [1]
    return lambda x: x.roll(shifts[0]) * x, lambda: shifts.__setitem__(0, 2)


def make_of_dict() -> Any:
    shifts = {"a": 1}
    return lambda x: x.roll(shifts["a"]) * x, lambda: shifts.update(a=2)


def make_of_defaults() -> Any:
    def func(x: Tensor, shift: int = 1) -> Tensor:
        return x.roll(shift) * x

    return func, lambda: setattr(func, "__defaults__", (2,))


def make_of_code() -> Any:
    def func(x: Tensor) -> Tensor:
        return x.roll(1) * x

    def other(x: Tensor) -> Tensor:
        return x.roll(2) * x

    return func, lambda: setattr(func, "__code__", other.__code__)


def make_of_a_helper() -> Any:
    def helper(x: Tensor) -> Tensor:
        return x.roll(1)

    def func(x: Tensor) -> Tensor:
        return helper(x) * x

    def change() -> None:
        nonlocal helper

        def helper(x: Tensor) -> Tensor:
            return x.roll(2)

    return func, change


def make_of_a_mask() -> Any:
    mask = torch.eye(6, dtype=torch.float64).roll(1, 0)

    def change() -> None:
        nonlocal mask
        mask = torch.eye(6, dtype=torch.float64).roll(2, 0)

    return lambda x: (mask @ x) * x, change


MAKERS = [value for key, value in list(globals().items()) if key.startswith("make_of")]


@pytest.mark.parametrize("make", MAKERS)
def test_what_changes_after_many_calls(make: Any) -> None:
    func, change = make()
    derivative = torchjac.jac(func, sparsity="detect")
    for _ in range(6):
        torch.testing.assert_close(derivative(X), jacrev(func)(X))
    change()
    for _ in range(3):
        torch.testing.assert_close(derivative(X), jacrev(func)(X))


def test_a_tensor_that_requires_grad_by_now() -> None:
    scale = X.clone()
    derivative = torchjac.jac(lambda x: x * x * scale, sparsity="detect")
    for _ in range(6):
        assert not derivative(X).requires_grad
    scale.requires_grad_()
    (got,) = torch.autograd.grad(derivative(X).sum(), scale)
    torch.testing.assert_close(got, 2 * X)
