"""What a function captures: a tensor that is written to is seen, and what is rebound is refused by name."""

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchjac
from tests.transforms.planned import BY_SIZES, MARKS, MATRIX, X, Y, reason, single_passes
from torchjac.errors import PlanMismatchError

pytestmark = MARKS


# Values that are captured


def in_a_thread(read: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def run(held: Tensor) -> Any:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(read(held)))
        thread.start()
        thread.join()
        return found[0]

    return run


POOL = ThreadPoolExecutor(1)


def by_a_pool(read: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda held: POOL.submit(read, held).result()


def number_in(text: str) -> float:
    return float(re.findall(r"\d+\.\d*", text)[0])


def past_the_modes(held: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        return held.tolist()


def captured_values() -> dict[str, tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]]:
    """A tensor that is captured, and a function of it that is about its value."""
    two, numbers = torch.tensor(2.0, dtype=torch.float64), torch.arange(1.0, 5).double()
    whole = torch.tensor(2)
    return {
        "item": (two, lambda x, held: x * held.item()),
        "float": (two, lambda x, held: x * float(held)),
        "int": (whole, lambda x, held: x ** int(held)),
        "index": (whole, lambda x, held: x[:held] * 2),
        "branch": (two, lambda x, held: x * 2 if held > 2 else x * 3),
        "tolist": (numbers, lambda x, held: x * x.new_tensor(held.tolist())),
        "numpy": (numbers, lambda x, held: x * torch.from_numpy(held.numpy() * 2)),
        "asarray": (numbers, lambda x, held: x * torch.as_tensor(np.asarray(held) * 2)),
        "max": (numbers, lambda x, held: x * max(held)),
        "entry": (numbers, lambda x, held: x * held[0].item()),
        "nonzero": (numbers, lambda x, held: x[(held > 3).nonzero()[:, 0]]),
        "full": (two, lambda x, held: x * torch.full((4,), held)),
        "arange": (two, lambda x, held: x[torch.arange(0, held).long()]),
        "alpha": (two, lambda x, held: torch.add(x * x, x, alpha=held)),
        "split": (whole, lambda x, held: x.split([held, 4 - held])[0] * 1),
        "shifted": (two, lambda x, held: x * (held + 1).item()),
        "converted": (two, lambda x, held: x * held.int().item()),
        "row": (two, lambda x, held: x.square()[held.long()]),
        "list": (two, lambda x, held: x * torch.tensor([held] * 4)),
        "new list": (two, lambda x, held: x * x.new_tensor([held] * 4)),
        "old constructor": (two, lambda x, held: x * torch.Tensor([held]).double()),
        "old new": (two, lambda x, held: x * x.new([held])),
        "list of entries": (
            whole,
            lambda x, held: torch.sparse_coo_tensor([[0], [0]], [held], (4, 4)).double() @ x,
        ),
        "old index": (whole, lambda x, held: x[torch.LongTensor([held, 0])] ** 2),
        "allclose": (two, lambda x, held: x * torch.allclose(held, torch.tensor(2.0).double())),
        "in": (two, lambda x, held: x * (3 if held in [torch.tensor(2.0).double()] else 4)),
        "equals a literal": (two, lambda x, held: x * (3 if held == torch.tensor(2.0) else 4)),
        "format": (two, lambda x, held: x * float(f"{held:.3f}")),
        "str": (two, lambda x, held: x * number_in(str(held))),
        "repr": (two, lambda x, held: x * number_in(repr(held))),
        "texts": (numbers, lambda x, held: x * number_in(f"{[held]}")),
        "index of a range": (whole, lambda x, held: sum(x * n for n in range(held + 1))),
        "item in a thread": (two, lambda x, held: x * in_a_thread(Tensor.item)(held)),
        "float in a thread": (two, lambda x, held: x * in_a_thread(float)(held)),
        "numpy in a thread": (two, lambda x, held: x * float(in_a_thread(Tensor.numpy)(held))),
        "str in a thread": (two, lambda x, held: x * number_in(in_a_thread(str)(held))),
        "product in a thread": (two, lambda x, held: x * in_a_thread(lambda h: 2 * h)(held)),
        "item by a pool": (two, lambda x, held: x * by_a_pool(Tensor.item)(held)),
        "past the modes": (two, lambda x, held: x * past_the_modes(held)),
        # These are about the tensor, and stay in the graph.
        "power": (two, lambda x, held: x.abs() ** held),
        "clamp": (two, lambda x, held: (9 * x).clamp(max=held)),
        "gather": (whole, lambda x, held: x.gather(0, held.reshape(1))),
        "detach": (numbers, lambda x, held: x * held.detach()),
        "data": (numbers, lambda x, held: x * held.data),
        "cast": (numbers, lambda x, held: x * held.float()),
        "rows": (numbers, lambda x, held: x.square()[held.long() % 4]),
        "write": (two, lambda x, held: (x * x).index_fill(0, torch.tensor([1]), held)),
        "copy": (numbers, lambda x, held: x * torch.as_tensor(held)),
        "derived": (numbers, lambda x, held: x * (held * 2)),
        "shared": (numbers, lambda x, held: x * torch.from_dlpack(held)),
    }


@pytest.mark.parametrize("name", captured_values())
def test_a_captured_tensor_that_is_written_to_is_seen(name: str) -> None:
    held, func = captured_values()[name]
    plan = torchjac.jac(lambda x: func(x, held)).plan(X)
    held.add_(1)
    torch.testing.assert_close(plan(Y), single_passes(lambda x: func(x, held), Y))


def test_writes_into_a_module_are_seen() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval()).double()
    func = lambda x: module(x[None])[0]  # noqa: E731
    plan = torchjac.jac(func).plan(X)
    with torch.no_grad():
        for held in (*module.parameters(), module[1].running_mean, module[1].running_var):
            held.mul_(2)
    module[0].weight.data = module[0].weight.data + 1
    module.load_state_dict({name: t + 1 for name, t in module.state_dict().items()})
    torch.testing.assert_close(plan(X).detach(), single_passes(func, X))


GRADIENT = torch.ones(4, dtype=torch.float64)
BELONGING: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], Any]]] = {
    "gradient": (
        lambda x: x * (2 if GRADIENT.grad is None else GRADIENT.grad),
        lambda: setattr(GRADIENT, "grad", 3 * torch.ones(4).double()),
    ),
    "version": (lambda x: x * (1 + GRADIENT._version % 2), lambda: GRADIENT.mul_(1)),
    "environment": (
        lambda x: x * float(os.environ.get("TORCHJAC_TESTS_SCALE", "2")),
        lambda: os.environ.__setitem__("TORCHJAC_TESTS_SCALE", "3"),
    ),
}


@pytest.mark.parametrize("name", BELONGING)
def test_what_belongs_to_a_tensor_or_to_the_world_is_not_written_down(name: str) -> None:
    func, change = BELONGING[name]
    plan = torchjac.jac(func).plan(X)
    assert BY_SIZES in reason(plan)
    try:
        change()
        torch.testing.assert_close(plan(Y), single_passes(func, Y))
    finally:
        GRADIENT.grad = None
        os.environ.pop("TORCHJAC_TESTS_SCALE", None)


# Bindings that are captured


def rebindings() -> dict[str, tuple[Callable[[nn.Module], Any], str]]:
    parameter = nn.Parameter(torch.ones(4, 4))
    return {
        "eval": (nn.Module.eval, "training was True and is False now"),
        "parameter": (lambda m: setattr(m[0], "weight", parameter), "0.weight is another tensor"),
        "submodule": (lambda m: m.__setitem__(0, nn.Linear(4, 4)), "0 is another Linear now"),
        "hook": (lambda m: m[1].register_forward_hook(lambda *_: None), "_forward_hooks"),
        "attribute": (lambda m: setattr(m[1], "approximate", "tanh"), "was 'none' and is 'tanh'"),
        "double": (nn.Module.double, "another shape, dtype or device now"),
        "resized": (
            lambda m: setattr(m[0].bias, "data", torch.ones(1)),
            "another shape, dtype or device now",
        ),
        "transposed": (
            lambda m: setattr(m[0].weight, "data", torch.randn(4, 4).T),
            "or other strides",
        ),
    }


@pytest.mark.parametrize("change", rebindings())
def test_what_is_rebound_is_refused_by_name(change: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    plan = torchjac.jac(module).plan(X.float())
    run, said = rebindings()[change]
    run(module)
    with pytest.raises(PlanMismatchError, match="Make a new plan") as caught:
        plan(X.float())
    assert said in str(caught.value)


def test_what_is_rebound_is_refused_within_a_transform_too() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    plan = torchjac.jac(module).plan(X.float())
    module.eval()
    with pytest.raises(PlanMismatchError, match="training was True and is False now"):
        torch.func.vmap(plan)(X.float()[None])


def test_numbers_and_tensors_of_closures() -> None:
    scale, weight, options = 2.0, MATRIX, {"shift": [1.0]}

    def func(x: Tensor) -> Tensor:
        return (weight @ x) ** scale + options["shift"][0] * x

    plan = torchjac.jac(func).plan(X)
    scale = 3.0
    with pytest.raises(PlanMismatchError, match=r"'scale' of func was 2.0 and is 3.0 now"):
        plan(X)
    scale = 2.0
    plan(X)
    options["shift"][0] = 5.0
    with pytest.raises(PlanMismatchError, match="'shift'"):
        plan(X)
    options["shift"][0] = 1.0
    weight = MATRIX.clone()
    with pytest.raises(PlanMismatchError, match="'weight'"):
        plan(X)
    weight = MATRIX
    torch.testing.assert_close(plan(Y), single_passes(func, Y))


def test_which_parameters_require_grad_is_part_of_the_plan() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(X.clone()), nn.Parameter(Y.clone(), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.a**2 * self.b.sin()

    net = Net()
    transform = torchjac.jac(net, argnums="params")
    plan = transform.plan(X)
    net.b.requires_grad_(True)
    with pytest.raises(PlanMismatchError):
        plan(X)
    net.a.requires_grad_(False)
    with pytest.raises(PlanMismatchError):
        plan(X)
    net.a.requires_grad_(True)
    net.b.requires_grad_(False)
    torch.testing.assert_close(plan(Y), transform(Y))
