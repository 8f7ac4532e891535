"""What products cost, and what stays behind."""

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from tests.transforms.spied import Spy


def curve(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1], x.sin().sum(), x[1].tanh()])


def scalar(x: Tensor) -> Tensor:
    return (x**3).sum() * x[0]


X = torch.tensor([0.3, -0.8], dtype=torch.float64)


def test_products_with_a_jacobian(spy: Spy) -> None:
    op = torchjac.jac_operator(spy.watch(curve))(X)
    assert spy.since() == (1, 0)
    for _ in range(2):
        op.T @ torch.ones(3).double()
        assert spy.since() == (0, 1)
    op @ X
    assert spy.since() == (0, 3), "the second graph is recorded, and a random product of it checked"
    for _ in range(2):
        op @ X
        assert spy.since() == (0, 1)
    op @ torch.eye(2).double()
    assert spy.since() == (0, 2), "columns are vmapped into one pass, and so are those of the check"
    op.T @ torch.eye(3).double()
    assert spy.since() == (0, 3), "two random columns are checked against a plain pass of both"
    op.T @ torch.eye(3).double()
    assert spy.since() == (0, 1)
    op.to_dense()
    assert spy.since() == (0, 1)
    op.gram("inputs")
    assert spy.since() == (0, 1)
    _ = op.value, op.shape, op.T, repr(op)
    assert spy.since() == (0, 0)


def test_checks_are_remembered_for_a_signature(spy: Spy) -> None:
    func = spy.watch(curve)
    for make in (torchjac.jac_operator, torchjac.hessian_operator):
        op = make(func)(X)
        _ = op @ X, op @ torch.eye(2).double(), op.to_dense(), op.T @ op.to_dense()
    spy.since()
    op = torchjac.jac_operator(func)(2 * X)
    op.to_dense()
    assert spy.since() == (1, 1)
    op @ X
    assert spy.since() == (0, 2), "the second graph belongs to the operator"
    torchjac.hessian_operator(func)(2 * X) @ X
    assert spy.since() == (1, 3 + 2)


@pytest.mark.parametrize("zeros", [1, 2, 5])
def test_a_check_that_tells_nothing_is_made_again(spy: Spy, zeros: int) -> None:
    """At zero, where people warm up; but not for ever."""
    op_of = torchjac.jac_operator(spy.watch(torch.square))
    for _ in range(zeros):
        op = op_of(0 * X)
        spy.since()
        op.to_dense()
    assert spy.since() == (0, 3 if zeros < 5 else 1)
    op.to_dense()
    assert spy.since() == (0, 1), "at one point it is made once"
    op_of(X).to_dense()
    assert spy.since() == (1, 3 if zeros < 5 else 1)


def test_products_with_a_hessian(spy: Spy) -> None:
    op = torchjac.hessian_operator(spy.watch(scalar))(X)
    assert spy.since() == (1, 1), "the gradient"
    op @ X
    assert spy.since() == (5, 5 + 1 + 1), (
        "a difference of gradients, and the product held against it"
    )
    for _ in range(2):
        op @ X
        assert spy.since() == (0, 1)
    op @ torch.eye(2).double()
    assert spy.since() == (0, 3)
    for method in (op.to_dense, op.diagonal, op.trace):
        method()
        assert spy.since() == (0, 1)


def test_a_hessian_of_several_outputs_is_made_with_a_pass_for_each(spy: Spy) -> None:
    op = torchjac.hessian_operator(spy.watch(curve))(X)
    assert spy.since() == (1, 3)
    op @ X
    spy.since()
    op @ X
    assert spy.since() == (0, 1)


def test_a_gram_matrix_takes_the_fewer_passes(spy: Spy) -> None:
    op = torchjac.jac_operator(spy.watch(lambda x: x.sum() * torch.ones(9).double()))(X)
    _ = op @ torch.eye(2).double(), op.T @ torch.eye(9).double()
    spy.since()
    op.gram("inputs")
    assert spy.since() == (0, 2), "two columns to either side, not nine rows"
    op.to_dense()
    assert spy.since() == (0, 1)


def test_chunks_where_not_all_columns_fit(spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchjac.planning.products import linearization

    monkeypatch.setattr(linearization, "choose_chunk_size", lambda total, held, device: 2)
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    op = torchjac.jac_operator(spy.watch(torch.sin))(x)
    J, weights = x.cos().diag(), x + 2
    torch.testing.assert_close(op @ torch.eye(5).double(), J)
    torch.testing.assert_close(op.to_dense(), J)
    torch.testing.assert_close(op.diagonal(), x.cos())
    spy.since()
    torch.testing.assert_close(op.gram("inputs", weights), J.T @ weights.diag() @ J)
    assert spy.since() == (0, 3)


def test_nothing_of_the_callers_is_changed_and_nothing_kept() -> None:
    x, weight = X.clone(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    op = torchjac.jac_operator(lambda x: x.mul_(2).sin() * weight)(x)
    results = [op @ X, op.T @ X, op.to_dense(), op.gram("inputs")]
    assert torch.equal(x, X)
    assert not x.requires_grad
    assert x.grad is None
    assert weight.grad is None
    assert all(result.requires_grad for result in results), "by the captured weight"
    x.zero_()
    torch.testing.assert_close(op @ X, results[0])
    with torch.no_grad():
        assert not (torchjac.jac_operator(lambda x: x.sin() * weight)(x) @ X).requires_grad
    assert not (torchjac.jac_operator(torch.sin)(x) @ X).requires_grad


class Payload:
    pass


class Keeps(torch.autograd.Function):
    """The identity, with something in its node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, payload: Payload) -> Tensor:
        ctx.payload = payload
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent, None


@pytest.mark.parametrize("transform", [torchjac.jac_operator, torchjac.hessian_operator])
def test_the_graph_is_freed_with_the_operator_at_once(transform: Any) -> None:
    kept: list[weakref.ref[Payload]] = []

    def func(x: Tensor) -> Tensor:
        payload = Payload()
        kept.append(weakref.ref(payload))
        return (Keeps.apply(x, payload) ** 3).sum()

    gc.collect()
    gc.disable()
    try:
        op = transform(func)(X)
        dropped = weakref.ref(op)
        _ = op @ X, op @ torch.eye(2).double(), op.to_dense(), op.gram("inputs"), op.value
        transpose = op.T
        del op
        assert kept[0]() is not None, "the transpose keeps it"
        del transpose
        assert dropped() is None
        assert not any(payload() for payload in kept)
    finally:
        gc.enable()


def test_threads_share_an_operator() -> None:
    x = torch.linspace(-1, 1, 6, dtype=torch.float64)
    errors: list[BaseException] = []

    def work(op: Any, J: Tensor, gate: threading.Barrier) -> None:
        try:
            gate.wait()
            for _ in range(20):
                torch.testing.assert_close(op @ x, J @ x)
                torch.testing.assert_close(op.T @ x, J.T @ x)
                torch.testing.assert_close(op.to_dense(), J)
        except BaseException as error:  # noqa: BLE001 (it must reach the main thread)
            errors.append(error)

    op, gate = torchjac.jac_operator(lambda x: x.sin() * x.sum())(x), threading.Barrier(8)
    J = (x.cos() * x.sum()).diag() + x.sin()[:, None]
    threads = [threading.Thread(target=work, args=(op, J, gate)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
