"""What a check has found is not believed of a function that goes another way by now."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac
from torchjac.errors import BatchCouplingError, DerivativeMismatchWarning

X = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5], [3.0, 1.0, 1.5], [-1.0, 2.5, 0.75]])


class Net(nn.Module):
    """Two functions, and several switches to choose between them."""

    def __init__(self, plain: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]):
        super().__init__()
        self._both = {False: plain, True: other}
        self.inner = nn.Identity()
        self.inner.word = "plain"
        self.switch, self.missing = False, None
        self.settings: dict[str, Any] = {"word": "plain"}
        self.flags, self.state = [False], SimpleNamespace(on=None)
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        other = (
            self.switch
            or self.missing is not None
            or self.shift is None
            or self.flags[0]
            or self.state.on is not None
            or "other" in (self.inner.word, self.settings["word"])
        )
        return self._both[bool(other)](x)


CHANGES: dict[str, Callable[[Net], Any]] = {
    "switch": lambda net: setattr(net, "switch", True),
    "word inside": lambda net: setattr(net.inner, "word", "other"),
    "missing": lambda net: setattr(net, "missing", torch.ones(1)),
    "buffer": lambda net: setattr(net, "shift", None),
}
HELD: dict[str, Callable[[Net], Any]] = {
    "dict": lambda net: net.settings.update(word="other"),
    "list": lambda net: net.flags.__setitem__(0, True),
    "object": lambda net: setattr(net.state, "on", True),
}


def reaching(net: Net) -> Callable[[Tensor], Tensor]:
    """A function that reaches what a module only holds."""
    settings, flags, state = net.settings, net.flags, net.state
    return lambda x: (net(x), settings, flags, state)[0]


def distances(x: Tensor) -> Tensor:
    return torch.cdist(x, x.flip(0) + 1, p=1.0)  # whose batching rule is wrong


def the_same_by_hand(x: Tensor) -> Tensor:
    return (x[:, None] - x.flip(0) - 1).abs().sum(-1)


@pytest.mark.parametrize("change", [*CHANGES.values(), *HELD.values()], ids=[*CHANGES, *HELD])
def test_a_rule_that_is_wrong_is_found_behind_a_switch(change: Callable[[Net], Any]) -> None:
    net = Net(the_same_by_hand, distances)
    func = reaching(net)
    expected = torch.func.jacrev(the_same_by_hand)(X)
    torch.testing.assert_close(torchjac.jac(func)(X), expected)
    change(net)
    with pytest.warns(DerivativeMismatchWarning):
        found = torchjac.jac(func)(X)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_samples_are_coupled_behind_a_switch(change: Callable[[Net], Any], kept: bool) -> None:
    net = Net(lambda x: x * 2, lambda x: x - x.mean(0))
    transform = torchjac.batched_jac(net, per_sample=False)
    transform(X)
    change(net)
    with pytest.raises(BatchCouplingError):
        (transform if kept else torchjac.batched_jac(net, per_sample=False))(X)


def test_batch_norm_that_lost_its_statistics() -> None:
    norm = nn.BatchNorm1d(3).eval()
    torchjac.batched_jac(norm, per_sample=False)(X)
    norm.running_mean = norm.running_var = None
    with pytest.raises(BatchCouplingError):
        torchjac.batched_jac(norm, per_sample=False)(X)


def test_a_module_that_counts_is_checked_once() -> None:
    class Counting(nn.Module):
        calls, last = 0, 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.calls, self.last = self.calls + 1, float(x.detach().sum())
            return x**2

    net = Counting()
    for factor in (1, 2):
        torchjac.jac(net)(X[0] * factor)
    before = net.calls
    torchjac.jac(net)(X[0] * 3)
    assert net.calls == before + 1


def test_parts_that_a_module_says_it_has() -> None:
    """Its walk over its parts is one of its own."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [nn.BatchNorm1d(3)]

        def modules(self) -> Any:
            yield self
            yield from self.parts

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[0](x)

    net = Hidden()
    net.parts[0].eval()
    derivative = torchjac.batched_jac(nn.Sequential(net), per_sample=False)
    alone = torchjac.batched_jac(net, per_sample=False)
    for _ in range(3):
        derivative(X)
        alone(X)
    net.parts[0].train()
    with pytest.raises(BatchCouplingError):
        alone(X)
