"""The forward Laplacian: every line of its table is checked by numbers, and every kind of rule."""

import pytest
import torch
from torch import Tensor

from tests.sparse import DETECTS

if not DETECTS:
    pytest.skip("traces need torch 2.1", allow_module_level=True)

from torchjac.evaluation.programs.laplacian_trace import trace_laplacian
from torchjac.evaluation.programs.linearity import FACTORS, factors_of

aten = torch.ops.aten


def values(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


PICK = torch.tensor([1, 0, 1])
MASK = torch.tensor([[True, False, True], [False, True, True]])

# For every name of the table a call: the overload and its arguments.
CALLS = {
    "view": ("default", values(2, 3), [3, 2]),
    "_unsafe_view": ("default", values(2, 3), [3, 2]),
    "reshape": ("default", values(2, 3), [3, 2]),
    "_reshape_alias": ("default", values(2, 3), [3, 2], [2, 1]),
    "expand": ("default", values(1, 3), [2, 3]),
    "permute": ("default", values(2, 3), [1, 0]),
    "transpose": ("int", values(2, 3), 0, 1),
    "t": ("default", values(2, 3)),
    "squeeze": ("dim", values(1, 3), 0),
    "unsqueeze": ("default", values(2, 3), 0),
    "slice": ("Tensor", values(2, 3), 1, 0, 2),
    "select": ("int", values(2, 3), 1, 0),
    "narrow": ("default", values(2, 3), 1, 0, 2),
    "unfold": ("default", values(5), 0, 2, 1),
    "diagonal": ("default", values(3, 3)),
    "alias": ("default", values(2, 3)),
    "clone": ("default", values(2, 3)),
    "contiguous": ("default", values(2, 3)),
    "_to_copy": ("default", values(2, 3)),
    "lift_fresh": ("default", values(2, 3)),
    "movedim": ("int", values(2, 3), 0, 1),
    "split": ("Tensor", values(4), 2),
    "split_with_sizes": ("default", values(4), [1, 3]),
    "unbind": ("int", values(2, 3)),
    "chunk": ("default", values(4), 2),
    "unsafe_split": ("Tensor", values(4), 2),
    "unsafe_chunk": ("default", values(4), 2),
    "as_strided": ("default", values(4), [2, 2], [1, 1]),
    "detach": ("default", values(4)),
    "repeat": ("default", values(2), [3]),
    "flip": ("default", values(2, 3), [0]),
    "roll": ("default", values(3), [1]),
    "rot90": ("default", values(2, 3)),
    "tril": ("default", values(3, 3)),
    "triu": ("default", values(3, 3)),
    "diag_embed": ("default", values(3)),
    "expand_copy": ("default", values(1, 3), [2, 3]),
    "view_copy": ("default", values(2, 3), [3, 2]),
    "squeeze_copy": ("default", values(1, 3)),
    "unsqueeze_copy": ("default", values(3), 0),
    "permute_copy": ("default", values(2, 3), [1, 0]),
    "transpose_copy": ("int", values(2, 3), 0, 1),
    "select_copy": ("int", values(2, 3), 0, 1),
    "slice_copy": ("Tensor", values(2, 3), 1, 0, 2),
    "real": ("default", values(3)),
    "imag": ("default", torch.complex(values(3), values(3))),
    "view_as_real": ("default", torch.complex(values(3), values(3))),
    "view_as_complex": ("default", values(3, 2)),
    "_conj": ("default", torch.complex(values(3), values(4)[:3])),
    "resolve_conj": ("default", values(3)),
    "resolve_neg": ("default", values(3)),
    "block_diag": ("default", [values(2, 2), values(1, 3)]),
    "index": ("Tensor", values(2, 3), [None, PICK]),
    "_unsafe_index": ("Tensor", values(2, 3), [None, PICK]),
    "index_select": ("default", values(2, 3), 1, PICK),
    "gather": ("default", values(3), 0, PICK),
    "take": ("default", values(3), PICK),
    "embedding": ("default", values(4, 2), PICK),
    "neg": ("default", values(3)),
    "sum": ("dim_IntList", values(2, 3), [0]),
    "mean": ("dim", values(2, 3), [0]),
    "cumsum": ("default", values(3), 0),
    "trace": ("default", values(3, 3)),
    "avg_pool1d": ("default", values(1, 1, 4), [2]),
    "avg_pool2d": ("default", values(1, 1, 4, 4), [2, 2]),
    "avg_pool3d": ("default", values(1, 1, 2, 2, 2), [2, 2, 2]),
    "_adaptive_avg_pool2d": ("default", values(1, 1, 4, 4), [3, 3]),
    "_adaptive_avg_pool3d": ("default", values(1, 1, 3, 3, 3), [2, 2, 2]),
    "upsample_nearest2d": ("default", values(1, 1, 2, 2), [3, 3]),
    "upsample_bilinear2d": ("default", values(1, 1, 2, 2), [3, 3], False),
    "div": ("Tensor", values(2, 3), values(3)),
    "mul": ("Tensor", values(2, 3), values(3)),
    "dot": ("default", values(3), values(3)),
    "mv": ("default", values(2, 3), values(3)),
    "mm": ("default", values(2, 3), values(3, 2)),
    "bmm": ("default", values(2, 2, 3), values(2, 3, 2)),
    "convolution": (
        "default",
        values(1, 2, 5),
        values(3, 2, 2),
        None,
        [1],
        [0],
        [1],
        False,
        [0],
        1,
    ),
    "cat": ("default", [values(2), values(3)]),
    "stack": ("default", [values(3), values(3)]),
    "where": ("self", MASK, values(2, 3), values(3)),
    "masked_scatter": ("default", values(2, 3), MASK, values(4)),
    "slice_scatter": ("default", values(4), values(2), 0, 1, 3),
    "select_scatter": ("default", values(2, 3), values(3), 0, 1),
    "diagonal_scatter": ("default", values(3, 3), values(3)),
    "index_put": ("default", values(3), [PICK[:2]], values(2)),
    "index_add": ("default", values(3), 0, PICK, values(3)),
    "index_copy": ("default", values(3), 0, PICK[:2], values(2)),
    "scatter": ("src", values(3), 0, PICK[:2], values(2)),
    "scatter_add": ("default", values(3), 0, PICK, values(3)),
    "add": ("Tensor", values(2, 3), values(3)),
    "sub": ("Tensor", values(2, 3), values(3)),
    "copy": ("default", values(3), values(3)),
}


def test_every_line_of_the_table_has_a_call() -> None:
    assert CALLS.keys() == FACTORS.keys()


def with_parts(args, factor, parts):
    new = list(args)
    for position, part in zip(factor, parts, strict=True):
        new[position] = part
    return new


@pytest.mark.parametrize("name", FACTORS)
def test_it_is_linear_in_every_factor(name: str) -> None:
    overload, *args = CALLS[name]
    target = getattr(getattr(aten, name), overload)
    for factor in FACTORS[name]:
        one = [args[position] for position in factor]
        other = [
            [item.flip(0) for item in part] if isinstance(part, list) else part.flip(0)
            for part in one
        ]
        mixed = [
            [2 * a - 3 * b for a, b in zip(p, q, strict=True)]
            if isinstance(p, list)
            else 2 * p - 3 * q
            for p, q in zip(one, other, strict=True)
        ]
        got, a, b = [target(*with_parts(args, factor, part)) for part in (mixed, one, other)]
        if isinstance(got, Tensor):
            got, a, b = [got], [a], [b]
        for x, y, z in zip(got, a, b, strict=True):
            torch.testing.assert_close(x, 2 * y - 3 * z, check_stride=False)


def test_what_is_no_product() -> None:
    assert factors_of(aten.div.Tensor, [1]) is None
    assert factors_of(aten.div.Tensor, [0, 1]) is None
    assert factors_of(aten.div.Tensor_mode, [0]) is None
    assert factors_of(aten.scatter.value, [0]) is None
    assert factors_of(aten.sin.default, [0]) is None
    assert factors_of(aten.mm.default, [0, 1]) == ((0,), (1,))


def pushed(func, x: Tensor) -> Tensor:
    run, captured = trace_laplacian(lambda _: lambda leaves: ((func(*leaves),), ()), [x], [])
    directions = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    (found,) = run([x], captured, [directions])
    return torch.zeros_like(func(x)) if found is None else found


def by_rows(func, x: Tensor) -> Tensor:
    """The trace of the Hessian of every output, by plain double backward."""
    x = x.clone().requires_grad_()
    traces = []
    for output in func(x).reshape(-1):
        gradient = None
        if output.requires_grad:
            (gradient,) = torch.autograd.grad(
                output, x, create_graph=True, retain_graph=True, materialize_grads=True
            )
        total = torch.zeros((), dtype=x.dtype)
        for i in range(x.numel() if gradient is not None and gradient.requires_grad else 0):
            (row,) = torch.autograd.grad(
                gradient.reshape(-1)[i], x, retain_graph=True, materialize_grads=True
            )
            total = total + row.reshape(-1)[i]
        traces.append(total)
    return torch.stack(traces).reshape(func(x).shape)


W34, W4, BIAS = values(3, 4), values(4), values(1)


def norm(x):
    return torch.nn.functional.layer_norm(x, (3,)).exp()


FUNCTIONS = {
    "mlp": lambda x: (x @ W34).tanh() @ W4,
    "gram": lambda x: (x @ x.T).sin(),
    "batched product": lambda x: torch.bmm(x[None], x.T[None]) * x[0, 0],
    "quotient": lambda x: x / (2 + x.square().sum()),
    "same factor twice": lambda x: x * x * x,
    "broadcast": lambda x: torch.atan2(x[0], x[1:] + 3),
    "power": lambda x: (x.square() + 1) ** x,
    "softmax": lambda x: x.softmax(-1),
    "log-softmax": lambda x: x.log_softmax(0),
    "logsumexp": lambda x: x.logsumexp(-1),
    "layer norm": norm,
    "deviation": lambda x: x.std(0) + x.var(),
    "norm": lambda x: x.norm(),
    "inverse": lambda x: torch.linalg.inv(x + 4 * torch.eye(3).double()),
    "log-determinant": lambda x: torch.linalg.slogdet(x)[1],
    "determinant": torch.linalg.det,
    "eigenvalues": lambda x: torch.linalg.eigvalsh(x + x.T),
    "product": lambda x: x.prod(),
    "scan": lambda x: x.cumprod(0),
    "pieces": lambda x: torch.cat([part.sin() for part in x.split(1)][::-1]),
    "where": lambda x: torch.where(x > 0, x**3, x.sin()),
    "in place": lambda x: x.clone().mul_(x).index_put_((PICK[:2],), x[:2].sin()),
    "one index twice": lambda x: torch.zeros(2, 3).double().index_add(0, PICK, x)[PICK].exp(),
    "a row set": lambda x: torch.zeros(2, 3).double().index_copy(0, PICK[:1], x[:1].exp()),
    "convolution": lambda x: torch.conv2d(x[None, None], x[None, None, :2, :2], BIAS),
    "sorted": lambda x: x.sort(-1).values.square(),
    "clamped": lambda x: x.clamp(min=0) ** 2,
    "constant": lambda x: torch.ones_like(x),
    "itself": lambda x: x,
    "rounded": lambda x: x.round() * x.square(),
    "inner gradient": lambda x: torch.func.grad(lambda y: y.sin().prod())(x).square().sum(),
    "fft": lambda x: torch.fft.fft(torch.fft.fft(x).real).imag,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_rules(name: str) -> None:
    func, x = FUNCTIONS[name], values(3, 3)
    torch.testing.assert_close(pushed(func, x), by_rows(func, x), rtol=1e-8, atol=1e-9)


def test_no_derivative_is_pushed_further_than_it_is_needed() -> None:
    """Behind the last operation that is not linear, only the Laplacian itself goes on."""
    weight = values(3, 3)
    run, _ = trace_laplacian(
        lambda _: lambda leaves: (((leaves[0] @ weight).tanh() @ weight.T + 1,), ()),
        [values(2, 3)],
        [],
    )
    wanted = [str(node.target) for node in run.nodes if node in run._wanted]
    assert wanted == ["aten.mm.default"], "what goes into tanh, and nothing behind it"


@pytest.mark.parametrize("hides", ["custom", "detach", "no_grad"])
def test_what_operations_do_not_show_is_noticed(hides: str) -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, g):
            return 3 * g * ctx.saved_tensors[0]

    def no_grad(x):
        with torch.no_grad():
            y = x.sin()
        return y * x

    funcs = {"custom": Square.apply, "detach": lambda x: x * x.detach(), "no_grad": no_grad}
    run, _ = trace_laplacian(
        lambda _: lambda leaves: ((funcs[hides](leaves[0]),), ()), [values(3)], []
    )
    assert not run.is_plain


def test_an_ordinary_function_is_plain() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.LayerNorm(4))
    run, captured = trace_laplacian(
        lambda _: lambda leaves: ((model(leaves[0]),), ()), [torch.ones(3)], []
    )
    assert run.is_plain
    assert {id(t) for t in captured} <= {id(p) for p in model.parameters()}, "the parameters live"
