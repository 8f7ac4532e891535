"""Operators of functions whose rules are wrong, hidden or missing."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import torchjac
from tests.transforms.spied import Spy
from torchjac.errors import DerivativeMismatchWarning, TorchjacFallbackWarning, UnsupportedError

X = torch.tensor([0.3, -0.8], dtype=torch.float64)


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
