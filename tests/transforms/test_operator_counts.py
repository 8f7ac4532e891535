"""What products cost, what is done when PyTorch refuses one or gets it wrong, and what stays behind."""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import torchjac
from torchjac.errors import DerivativeMismatchWarning, TorchjacFallbackWarning, UnsupportedError
from torchjac.evaluation import engines


class Spy:
    """Counts evaluations of a function, and the passes of the autograd engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.evaluations = self.passes = 0
        run = engines._run_backward

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            return run(*args, **kwargs)

        monkeypatch.setattr(engines, "_run_backward", counted)

    def watch(self, func: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def watched(x: Tensor) -> Tensor:
            self.evaluations += 1
            return func(x)

        return watched

    def since(self) -> tuple[int, int]:
        """Evaluations and passes since this was asked last."""
        counts = self.evaluations, self.passes
        self.evaluations = self.passes = 0
        return counts


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


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


class Scaled(torch.autograd.Function):
    """A product whose own derivative is refused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        return x * factor

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        raise NotImplementedError("no second backward")


class NoSecondBackward(torch.autograd.Function):
    """The square, with a forward rule and a backward that cannot be differentiated."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return Scaled.apply(cotangent, 2 * ctx.saved_tensors[0].detach())

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * tangent


def test_forward_mode_where_there_is_no_second_backward(spy: Spy) -> None:
    def func(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(NoSecondBackward.apply(x), 0.5, True)

    x = torch.ones(30, dtype=torch.float64)
    op = torchjac.jac_operator(spy.watch(func))(x)
    state = torch.get_rng_state()
    with pytest.warns(TorchjacFallbackWarning, match="a forward pass, which evaluates func again"):
        product = op @ x
    assert spy.since()[0] == 3, "one for the product, one for the check"
    assert torch.equal(torch.get_rng_state(), state), "drawn again, and the generator left alone"
    torch.testing.assert_close(product, 2 * op.value)
    torch.testing.assert_close(op @ x, 2 * op.value)  # said once
    assert spy.since() == (1, 0)


class OnlyBackward(NoSecondBackward):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        raise NotImplementedError("no forward rule")


def test_rows_where_there_is_no_forward_rule_either(spy: Spy) -> None:
    op = torchjac.jac_operator(spy.watch(OnlyBackward.apply))(X)
    with pytest.warns(TorchjacFallbackWarning, match="a plain backward pass for every row"):
        product = op @ X
    torch.testing.assert_close(product, 2 * X**2)
    spy.since()
    torch.testing.assert_close(op @ torch.eye(2).double(), torch.diag(2 * X))
    assert spy.since() == (0, 2)


class Hidden(torch.autograd.Function):
    """The square, with a backward that hides from autograd: a second one finds nothing, in silence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * cotangent.detach()


class Once(Hidden):
    """Likewise; what PyTorch raises for ``once_differentiable`` does not reach who asks by cotangent."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * cotangent


@pytest.mark.parametrize("square", [Hidden, Once])
def test_a_second_backward_that_is_silently_wrong_is_noticed(square: Any) -> None:
    op = torchjac.jac_operator(square.apply)(X)
    with pytest.warns(DerivativeMismatchWarning, match="a backward pass over the backward pass"):
        product = op @ X
    torch.testing.assert_close(product, 2 * X**2)
    torch.testing.assert_close(op @ torch.eye(2).double(), torch.diag(2 * X))


def test_warnings_point_at_the_line_of_the_product() -> None:
    """Also where a compiler is loaded, which stands between them."""
    pytest.importorskip("torch._dynamo")
    op = torchjac.jac_operator(Hidden.apply)(X)
    with pytest.warns(DerivativeMismatchWarning) as caught:
        op @ X
    assert [warning.filename for warning in caught] == [__file__]


def test_a_wrong_batching_rule_is_noticed() -> None:
    """PyTorch's own, of ``cdist``; where it is right one day, nothing is said."""
    x = torch.randn(4, 3, dtype=torch.float64)

    def func(x: Tensor) -> Tensor:
        return torch.cdist(x, x.flip(0) + 0.1)

    dense = torchjac.jac(func, mode="reverse", chunk_size=1)(x).reshape(16, 12)
    op = torchjac.jac_operator(func)(x)
    with pytest.warns(DerivativeMismatchWarning, match="a backward pass, one column at a time"):
        torch.testing.assert_close(op.T @ torch.eye(16).double(), dense.T)
    torch.testing.assert_close(op.to_dense(), dense)


def plain_rows_first(x: Tensor) -> Tensor:
    """Four rows that no batching rule gets wrong, and then those of ``cdist``."""
    return torch.cat([x.sum() * torch.ones(4).to(x), torch.cdist(x, x[:2] + 1).flatten()])


@pytest.mark.parametrize("first", ["zeros", "one row", "other rows"])
@pytest.mark.filterwarnings("ignore::torchjac.errors.DerivativeMismatchWarning")
def test_a_wrong_batching_rule_is_noticed_whatever_is_multiplied_first(first: str) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    dense = torchjac.jac(plain_rows_first, mode="reverse", chunk_size=1)(x).reshape(12, 12)
    op = torchjac.jac_operator(plain_rows_first)(x)
    eye = torch.eye(12).double()
    op.T @ {"zeros": 0 * eye, "one row": eye[:, :1], "other rows": eye[:, :4]}[first]
    torch.testing.assert_close(op.T @ eye, dense.T)
    torch.testing.assert_close(op.to_dense(), dense)
    torch.testing.assert_close(op.gram("inputs"), dense.T @ dense)


def test_a_second_backward_that_is_wrong_is_noticed_whatever_is_multiplied_first() -> None:
    op = torchjac.jac_operator(lambda x: torch.cat([x[:1], Hidden.apply(x[1:])]))(X)
    with pytest.warns(DerivativeMismatchWarning, match="a backward pass over the backward pass"):
        op @ torch.tensor([1.0, 0.0]).double()
    torch.testing.assert_close(op @ X, torch.stack([X[0], 2 * X[1] ** 2]))


class ByNumPy(Hidden):
    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        slope = 2 * ctx.saved_tensors[0].detach().numpy()
        return cotangent * torch.from_numpy(slope)


@pytest.mark.parametrize("square", [Hidden, Once, ByNumPy])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_gradient_that_hides_from_autograd_is_noticed(
    square: Any, transposed: bool, outputs: int
) -> None:
    def func(x: Tensor) -> Tensor:
        return square.apply(x).sum() * torch.arange(1.0, outputs + 1).to(x).squeeze()

    op = torchjac.hessian_operator(func)(X)
    op = op.T if transposed else op
    v = torch.ones(op.shape[1]).double()
    with pytest.warns(DerivativeMismatchWarning, match="disagrees with a difference of gradients"):
        op @ v
    op @ v  # said once
    torchjac.hessian_operator(func)(X) @ X


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_right_gradients_stand_the_difference(dtype: torch.dtype) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
    module, x = module.to(dtype), torch.randn(5, 3, dtype=dtype)
    for argnums, chosen in ((0, x), ("params", dict(module.named_parameters()))):
        op = torchjac.hessian_operator(module, argnums)(10 * x)
        for side in (op, op.T):
            side @ torch.ones(side.shape[1], dtype=dtype)
        assert op.shape[1] == sum(
            leaf.numel() for leaf in (chosen.values() if chosen is not x else [x])
        )
    weight = module[0].weight.detach()
    torchjac.hessian_operator(lambda w, x: (x @ w.T).logsumexp(1).sum(), (0, 1))(weight, x).trace()


def test_the_difference_is_made_from_the_state_that_the_gradient_was() -> None:
    """A spectral norm takes a step of its power iteration at every evaluation."""
    linear = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 4)).double()
    for buffer in linear.buffers():
        buffer.copy_(torch.nn.functional.normalize(torch.randn_like(buffer), dim=0))
    state = {name: buffer.clone() for name, buffer in linear.named_buffers()}
    op = torchjac.hessian_operator(lambda x: linear(x).tanh().sum())(torch.ones(3).double())
    after = {name: buffer.clone() for name, buffer in linear.named_buffers()}
    op @ torch.ones(3).double()
    assert all(torch.equal(buffer, after[name]) for name, buffer in linear.named_buffers())
    assert not all(torch.equal(buffer, state[name]) for name, buffer in linear.named_buffers())


def test_a_gradient_that_pytorch_refuses() -> None:
    module = torch.nn.Linear(2, 2).double()

    def func(x: Tensor) -> Tensor:
        return checkpoint(module, x, use_reentrant=True).square().sum()

    message = r"hessian_operator: PyTorch cannot differentiate this function \(.*[cC]heckpoint"
    with (
        pytest.warns(UserWarning, match="requires_grad"),
        pytest.raises(UnsupportedError, match=message),
    ):
        torchjac.hessian_operator(func)(X)


@pytest.mark.parametrize("transform", [torchjac.jac_operator, torchjac.hessian_operator])
def test_what_the_function_itself_raises_comes_out_as_it_is(transform: Any) -> None:
    def func(x: Tensor) -> Tensor:
        raise RuntimeError("of the function's own")

    with pytest.raises(RuntimeError, match="of the function's own"):
        transform(func)(X)


def multi_margin(x: Tensor) -> Tensor:
    return torch.nn.functional.multi_margin_loss(x, torch.tensor([0, 1, 0]))


def test_no_way_at_all() -> None:
    op = torchjac.hessian_operator(multi_margin)(torch.randn(3, 2))
    message = r"hessian_operator: PyTorch can make this product in no way \(a backward pass: .*multi_margin"
    with pytest.raises(UnsupportedError, match=message):
        op @ torch.ones(6)


def test_an_exception_of_a_rule_comes_out_as_it_is() -> None:
    class OwnError(RuntimeError):
        pass

    def fail(cotangent: Tensor) -> Tensor:
        raise OwnError

    def func(x: Tensor) -> Tensor:
        y = x * 2
        y.register_hook(fail)
        return y

    with pytest.raises(OwnError):
        torchjac.jac_operator(func)(X).T @ X


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
