"""The self-check: wrong rules, PyTorch's own and users', are caught and the answer made again."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from torchjac.errors import DerivativeMismatchWarning

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


class Square(torch.autograd.Function):
    """x² with rules that tests can spoil one by one."""

    vmap_factor = 1.0
    jvp_factor = 1.0

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return Pull.apply(ctx.saved_tensors[0], grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return Square.jvp_factor * 2 * ctx.saved_tensors[0] * tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any], x: Tensor) -> tuple[Tensor, Any]:
        return Square.apply(x), in_dims[0]


class Pull(torch.autograd.Function):
    """The backward of Square, with a batching rule of its own."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor) -> Tensor:
        return 2 * x * grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, inner = ctx.saved_tensors
        return 2 * inner * grad, 2 * x * grad

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, Any], x: Tensor, grad: Tensor) -> tuple[Tensor, Any]:
        assert in_dims[0] is None
        return Square.vmap_factor * 2 * x * grad.movedim(in_dims[1], 0), 0


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_right_rules_pass(mode: str) -> None:
    torch.testing.assert_close(torchjac.jac(Square.apply, mode=mode)(X), torch.diag(2 * X))


@pytest.mark.parametrize("factor", [1.01, -1.0, 0.0, 3.0])
def test_wrong_vmap_rule(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(Square, "vmap_factor", factor)
    with pytest.warns(DerivativeMismatchWarning, match="reverse mode, vmapped passes"):
        got = torchjac.jac(Square.apply, mode="reverse")(X)
    torch.testing.assert_close(got, torch.diag(2 * X))
    # Remembered: the next call takes the trusted way at once, and says nothing.
    torch.testing.assert_close(torchjac.jac(Square.apply, mode="reverse")(X), torch.diag(2 * X))


@pytest.mark.parametrize("chunk_size", ["auto", 1])
@pytest.mark.parametrize("factor", [1.01, -1.0, 0.0, 3.0])
def test_wrong_jvp_rule(monkeypatch: pytest.MonkeyPatch, factor: float, chunk_size: Any) -> None:
    monkeypatch.setattr(Square, "jvp_factor", factor)
    with pytest.warns(DerivativeMismatchWarning, match="forward mode"):
        got = torchjac.jac(Square.apply, mode="forward", chunk_size=chunk_size)(X)
    torch.testing.assert_close(got, torch.diag(2 * X))


def test_wrong_in_one_entry_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The projection is compared entry by entry, so one wrong column of a thousand shows."""
    factor = torch.ones(1000, dtype=torch.float64)
    factor[417] = 1.001
    monkeypatch.setattr(Square, "jvp_factor", factor)
    x = torch.linspace(1, 2, 1000, dtype=torch.float64)
    with pytest.warns(DerivativeMismatchWarning):
        torchjac.jac(Square.apply, mode="forward")(x)


def test_check_never_and_always(monkeypatch: pytest.MonkeyPatch) -> None:
    torchjac.jac(Square.apply, mode="forward")(X)
    monkeypatch.setattr(Square, "jvp_factor", 3.0)
    # Known to be right: "first" does not look again, "always" does, "never" does not even at first.
    torch.testing.assert_close(torchjac.jac(Square.apply, mode="forward")(X), 3 * torch.diag(2 * X))
    always = torchjac.jac(Square.apply, mode="forward", check="always")
    monkeypatch.setattr(Square, "jvp_factor", 1.0)
    always(X)
    monkeypatch.setattr(Square, "jvp_factor", 3.0)
    with pytest.warns(DerivativeMismatchWarning):
        torch.testing.assert_close(always(X), torch.diag(2 * X))
    never = torchjac.jac(Square.apply, mode="forward", check="never")
    torch.testing.assert_close(never(X), 3 * torch.diag(2 * X))


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0])
def test_cdist(p: float) -> None:
    """Wrong by O(1) in `torch.func.jacrev`, from a batching rule of PyTorch's."""
    torch.manual_seed(0)
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)

    def func(a: Tensor) -> Tensor:
        return torch.cdist(a, b, p)

    def by_hand(a: Tensor) -> Tensor:
        return ((a[:, None] - b).abs() ** p).sum(-1) ** (1 / p)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so where this version of PyTorch is wrong
        got = torchjac.jac(func)(a)
    torch.testing.assert_close(got, torchjac.jac(by_hand)(a))


def test_a_wrong_rule_behind_a_normalised_row() -> None:
    """The rows of a softmax cancel in a cotangent of plain signs, and hid this from the check."""
    x = torch.tensor([[1.0, 0.5], [1.0, -2.0]], dtype=torch.float64)

    def func(x: Tensor) -> Tensor:
        return torch.cdist(x, x + 9).softmax(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torchjac.jac(func)(x), torchjac.jac(func, chunk_size=1)(x))


HESSIANS = {
    "det": (torch.linalg.det, torch.randn(4, 4, dtype=torch.float64)),
    "slogdet": (lambda x: torch.linalg.slogdet(x)[1], torch.randn(4, 4, dtype=torch.float64)),
    "layer_norm": (
        lambda x: torch.nn.functional.layer_norm(x, (5,)).sin().sum(),
        torch.randn(2, 5, dtype=torch.float64),
    ),
}


@pytest.mark.parametrize(
    "mode",
    [
        "auto",
        "forward-over-reverse",
        "reverse-over-reverse",
        "reverse-over-forward",
        "forward-over-forward",
    ],
)
@pytest.mark.parametrize("name", HESSIANS)
def test_hessians_that_forward_mode_gets_wrong(name: str, mode: str) -> None:
    func, x = HESSIANS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if mode.endswith("forward") else "error")
        got = torchjac.hessian(func, mode=mode)(x)
    step = 1e-5
    n = x.numel()
    columns = []
    for i in range(n):
        bump = torch.zeros(n, dtype=torch.float64)
        bump[i] = step
        ahead = torch.func.grad(func)(x + bump.reshape(x.shape))
        behind = torch.func.grad(func)(x - bump.reshape(x.shape))
        columns.append((ahead - behind).reshape(-1) / (2 * step))
    expected = torch.stack(columns, 1)
    torch.testing.assert_close(got.reshape(n, n), expected, rtol=1e-5, atol=1e-5)


def test_rounding_in_low_precision_is_no_mismatch() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        if dtype == torch.float16 and torch.__version__ < "2.1":
            continue  # no matrix product of it on a CPU
        weights = [torch.randn(64, 64, dtype=dtype) / 8 for _ in range(6)]

        def deep(x: Tensor, weights: list[Tensor] = weights) -> Tensor:
            for weight in weights:
                x = (weight @ x).tanh()
            return x

        for mode in ("forward", "reverse"):
            torchjac.jac(deep, mode=mode)(torch.randn(64, dtype=dtype))


def test_kinks_are_no_mismatch() -> None:
    weight = torch.randn(200, 40, dtype=torch.float64)
    for func in (
        lambda x: (weight @ x).relu().square().sum(),
        lambda x: (weight @ x).abs().sum(),
        lambda x: (weight @ x).clamp(-1, 1).sin().sum(),
    ):
        torchjac.hessian(func)(torch.randn(40, dtype=torch.float64))
        torchjac.hessian(func, mode="forward-over-reverse")(torch.zeros(40, dtype=torch.float64))


def test_hessian_that_only_one_outer_mode_gets_right() -> None:
    """0**x is 0 for every x > 0; reverse-over-reverse makes 0·log(0) of its second derivative."""
    base, x = torch.tensor([0.0, 2.0], dtype=torch.float64), torch.tensor([1.5, 0.5]).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torchjac.hessian(lambda x: (base**x).sum())(x)
    second = torch.tensor([0.0, 2**0.5 * math.log(2) ** 2], dtype=torch.float64)
    torch.testing.assert_close(got, torch.diag(second))


class DetachedCube(torch.autograd.Function):
    """x³ summed, with a backward that cannot be differentiated again and does not say so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x**3).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3 * ctx.saved_tensors[0].detach() ** 2


def test_what_cancels_between_two_arguments_is_seen() -> None:
    """Of f(x - y) the columns of x and y cancel in a product with equal vectors."""
    x, y = torch.rand(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    with pytest.warns(DerivativeMismatchWarning, match="or a double backward is wrong"):
        torchjac.hessian(lambda x, y: DetachedCube.apply(x - y), (0, 1))(x, y)


def test_what_cancels_between_two_outputs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Square, "vmap_factor", 2.0)
    with pytest.warns(DerivativeMismatchWarning):
        got = torchjac.jac(lambda x: (Square.apply(x), -Square.apply(x)), mode="reverse")(X)
    torch.testing.assert_close(got, (torch.diag(2 * X), torch.diag(-2 * X)))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6])
def test_wrong_rules_are_seen_at_any_scale(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    monkeypatch.setattr(Square, "vmap_factor", 2.0)
    with pytest.warns(DerivativeMismatchWarning):
        got = torchjac.jac(lambda x: scale * Square.apply(x), mode="reverse")(X)
    torch.testing.assert_close(got, scale * torch.diag(2 * X))


def test_what_a_function_holds_back_is_no_business_of_other_modes() -> None:
    def func(x: Tensor) -> Tensor:
        with torch.no_grad():
            constant = x.exp()
        return (x * x * constant).sum()

    with pytest.warns(DerivativeMismatchWarning, match="on purpose"):
        got = torchjac.hessian(func)(X)
    torch.testing.assert_close(got, torch.diag(2 * X.exp()))


def test_autocast() -> None:
    module = torch.nn.Linear(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for mode in ("auto", "forward", "reverse"):
            got = torchjac.jac(module, mode=mode)(torch.randn(3))
            torch.testing.assert_close(got, module.weight, rtol=1e-2, atol=1e-2)


def test_double_backward_of_logcumsumexp() -> None:
    """Found by a random program: PyTorch loses a term where the cotangent is exactly zero."""
    x = torch.zeros(2, dtype=torch.float64)
    right = torchjac.hessian(lambda x: torch.stack([x[0], x.logsumexp(0)]).cos().sum())(x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = torchjac.hessian(lambda x: x.logcumsumexp(0).cos().sum())(x)
    warned = any(warning.category is DerivativeMismatchWarning for warning in said)
    assert warned or torch.allclose(got, right)
