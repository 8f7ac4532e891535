"""Modules that write into their buffers: the answer is that of the state which the call finds.

The evaluations that a first call, a plan or a check makes on top of the one asked for leave no trace.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import functional

import torchjac
from tests.sparse import DETECTS
from torchjac.testing import check_hessian, check_jac, finite_difference_jac

pytestmark = pytest.mark.skipif(not DETECTS, reason="detection needs PyTorch 2.1")
X = torch.linspace(-1, 2, 5, dtype=torch.float64)


class Counts(nn.Module):
    """Multiplies with the number of times that it was evaluated."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x.sin() * self.count


class Replaces(Counts):
    """The same, with another tensor for a buffer each time."""

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x.sin() * self.count


class Iterates(nn.Module):
    """Divides by a norm that converges from call to call, as a spectral norm does."""

    u: Tensor
    matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(5, 5, dtype=torch.float64, generator=generator)
        self.register_buffer("matrix", matrix)
        self.register_buffer("u", torch.ones(5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            v = nn.functional.normalize(self.matrix.T @ self.u, dim=0)
            self.u.copy_(nn.functional.normalize(self.matrix @ v, dim=0))
        return torch.tanh(self.matrix @ x) / (self.u @ self.matrix @ v)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "counts": Counts,
    "replaces": Replaces,
    "iterates": Iterates,
    "within": lambda: nn.Sequential(nn.Identity(), Counts()),
}


def jacobian(module: nn.Module) -> Tensor:
    """By plain backward passes after one evaluation."""
    x = X.clone().requires_grad_()
    rows = [torch.autograd.grad(row, x, retain_graph=True)[0] for row in module(x)]
    return torch.stack(rows)


def hessian(module: nn.Module) -> Tensor:
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    rows = [torch.autograd.grad(row, x, retain_graph=True)[0] for row in gradient]
    return torch.stack(rows)


Derivative = Callable[[Any], Tensor]

# Of a module, with what plain backward passes make of it.
DERIVATIVES: dict[str, tuple[Derivative, Derivative]] = {
    "jac": (lambda f: torchjac.jac(f)(X), jacobian),
    "jac, reverse": (lambda f: torchjac.jac(f, mode="reverse")(X), jacobian),
    "jac, forward": (lambda f: torchjac.jac(f, mode="forward")(X), jacobian),
    "jac, one at a time": (lambda f: torchjac.jac(f, chunk_size=1, mode="reverse")(X), jacobian),
    "jac, always compared": (lambda f: torchjac.jac(f, check="always")(X), jacobian),
    "jac, never compared": (lambda f: torchjac.jac(f, check="never")(X), jacobian),
    "jac, in a closure": (lambda f: torchjac.jac(lambda x: f(x))(X), jacobian),
    "jac, sparse": (lambda f: torchjac.jac(f, sparsity="detect")(X), jacobian),
    "batch": (lambda f: torchjac.batched_jac(f, per_sample=False)(X[None])[0], jacobian),
    "operator": (lambda f: torchjac.jac_operator(f)(X).to_dense(), jacobian),
    "diagonal": (lambda f: torchjac.jac_diag(f)(X).diag(), lambda f: jacobian(f).diag().diag()),
    "plan": (lambda f: torchjac.jac(f).plan(X)(X), jacobian),
    "hessian": (lambda f: torchjac.hessian(total(f))(X), hessian),
    "hessian, sparse": (lambda f: torchjac.hessian(total(f), sparsity="detect")(X), hessian),
    "laplacian": (lambda f: torchjac.laplacian(total(f))(X), lambda f: hessian(f).trace()),
}


def total(func: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: func(x).square().sum()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.mark.filterwarnings("ignore:.*PyTorch refused the faster way")
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_a_call_is_one_evaluation_at_the_state_that_it_finds(name: str, module: str) -> None:
    derivative, plain = DERIVATIVES[name]
    own, twin = MODULES[module](), MODULES[module]()
    if name == "batch" and module == "iterates":
        pytest.skip("its samples are columns of a matrix product")
    if name == "jac, forward" and module != "replaces":
        pytest.skip("PyTorch's forward mode refuses to write into what was captured")
    for _ in range(3):
        torch.testing.assert_close(derivative(own), plain(twin))
        torch.testing.assert_close(state(own), state(twin))


LOOKS: dict[str, Callable[[nn.Module], object]] = {
    "plan": lambda f: torchjac.jac(f).plan(X),
    "plan, measured": lambda f: torchjac.jac(f).plan(X, tune=True),
    "pattern": lambda f: torchjac.jac_sparsity(f)(X),
    "pattern of a Hessian": lambda f: torchjac.hessian_sparsity(total(f))(X),
}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_is_no_evaluation(look: str, module: str) -> None:
    own = MODULES[module]()
    before = state(own)
    held = dict(own.named_buffers())
    LOOKS[look](own)
    torch.testing.assert_close(state(own), before, rtol=0, atol=0)
    assert all(buffer is held[name] for name, buffer in own.named_buffers())


CHECKS: dict[str, Callable[[nn.Module], object]] = {
    "check_jac": lambda f: check_jac(f, X),
    "check_jac, of another": lambda f: check_jac(f, X, jac=lambda x: functional.jacobian(f, x)),
    "check_hessian": lambda f: check_hessian(total(f), X),
    "finite_difference_jac": lambda f: finite_difference_jac(f)(X),
}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_check_is_one_evaluation(check: str, module: str) -> None:
    own, twin = MODULES[module](), MODULES[module]()
    CHECKS[check](own)
    twin(X)
    torch.testing.assert_close(state(own), state(twin))


def test_a_finite_difference_is_that_of_the_state_that_it_finds() -> None:
    torch.testing.assert_close(finite_difference_jac(Counts())(X), jacobian(Counts()))


def test_batch_norm_counts_the_batches_that_it_was_given() -> None:
    norm, batch = nn.BatchNorm1d(5).double(), torch.randn(4, 5, dtype=torch.float64)
    for _ in range(3):
        torchjac.jac(norm)(batch)
    assert norm.num_batches_tracked == 3
    torchjac.jac(norm).plan(batch)
    assert norm.num_batches_tracked == 3
