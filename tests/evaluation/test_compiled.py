"""A traced graph through Inductor. Every compilation takes seconds, so that there are few of them."""

import shutil
import threading

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import torchjac
from torchjac.errors import UnsupportedError
from torchjac.evaluation.programs import compiled
from torchjac.evaluation.programs import straight_line as scalars
from torchjac.evaluation.programs.compiled import compile_graph
from torchjac.evaluation.programs.small_products import is_small
from torchjac.evaluation.programs.straight_line import UnfitError, straight_line
from torchjac.evaluation.programs.tracing import captured_tensors, trace

pytestmark = [
    pytest.mark.skipif(not compiled._supported(), reason="Inductor of PyTorch 2.4"),
    pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"),
    # PyTorch's compiler warns of its own parts.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


class Operations(TorchDispatchMode):
    """Counts what goes through PyTorch's dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Case:
    """A function that captured a parameter, compiled; two of its results are views of what it took."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.weight = torch.nn.Parameter(torch.randn(size, size) / size**0.5)
        self.bias = torch.randn(size)
        self.x = self.input()
        self.graph = trace(lambda x: self.func(x), [self.x])
        self.run = compile_graph(self.graph, [self.x])
        self.captured = tuple(captured_tensors(self.graph).values())

    def input(self) -> Tensor:
        """Neither contiguous nor at the start of its memory."""
        return torch.randn(5, 3 * self.size)[1:, 1::3]

    def func(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden = torch.tanh(x @ self.weight + self.bias)
        chain = torch.tanh(hidden @ self.weight) @ self.weight.T
        return chain, chain.sum(0), x[1:], self.weight.t()

    def __call__(self, x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(self.run(x, *self.captured))

    def expected(self, x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(self.func(x))


@pytest.fixture(scope="module", params=[3, 40], ids=["scalars", "Inductor"])
def case(request):
    return Case(request.param)


def test_the_values_and_strides_are_those_of_the_graph(case):
    results, expected = case(case.x), case.expected(case.x)
    torch.testing.assert_close(results, expected)
    assert results[0].stride() == expected[0].stride()
    assert not any(result.requires_grad for result in results)


def test_other_values_in_the_same_layout(case):
    x = case.input()
    torch.testing.assert_close(case(x), case.expected(x))


def test_parameters_are_live(case):
    before = case(case.x)
    with torch.no_grad():
        case.weight.mul_(-2)
        case.bias.add_(1)
    after = case(case.x)
    torch.testing.assert_close(after, case.expected(case.x))
    assert not torch.allclose(before[0], after[0])


def test_results_are_memory_of_their_own(case):
    memory = [case.x, *case.captured, *case(case.x), *case(case.x)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in memory}) == len(memory)


def test_nothing_is_left_to_the_dispatcher(case):
    with Operations() as operations:
        case(case.x)
    left = [name for name in operations.names if "empty" not in name and "as_strided" not in name]
    assert {name.split(".")[1] for name in left} <= ({"mm", "addmm"} if case.size > 3 else set())


def test_threads_may_run_it_at_once(case):
    inputs = [case.input() for _ in range(4)]
    wrong = []

    def work(x):
        expected = case.expected(x)
        results = [case(x)[0] for _ in range(100)]
        wrong.extend(r for r in results if not torch.allclose(r, expected[0], atol=1e-4))

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_draws_what_the_graph_draws():
    x = torch.ones(64)
    graph = trace(lambda x: (torch.dropout(x, 0.5, True) + torch.rand_like(x),), [x])
    run = compile_graph(graph, [x])
    with torch.no_grad():
        torch.manual_seed(0)
        (expected,) = graph(x)
        torch.manual_seed(0)
        (result,) = run(x)
    torch.testing.assert_close(result, expected)


UNARY = [
    *(torch.sin, torch.cos, torch.tanh, torch.exp, torch.expm1, torch.erf, torch.abs, torch.neg),
    *(torch.sigmoid, torch.relu, torch.reciprocal, torch.square, torch.sign, torch.floor),
]


def operations_on_scalars(x: Tensor, y: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """``(3, 4)``, ``(4, 3)`` positive, and a double."""
    pair = (x, y.T)
    elementwise = [
        *(x + y.T, x - y.T, x * y.T, x / y.T, torch.add(x, y.T, alpha=2), 1 - x, x * d, x.double()),
        *(torch.maximum(*pair), torch.minimum(*pair), torch.where(x > 0, *pair), x.clamp(-0.5, 1)),
        *(y.log(), y.sqrt(), y.rsqrt(), y**2, y**3, y**-1, y**2.5, 2**y, y**0, (x > y.T).float()),
        *(torch.atan2(*pair), torch.nn.functional.leaky_relu(x)),
    ]
    reductions = [
        *(x.sum(), x.sum(1, keepdim=True), x.mean(-1), x.amax(0), torch.softmax(x[:2, :2], 1)),
        x[:0].sum(0),
    ]
    moves = [
        *(torch.cat([x, y.T, torch.ones(1, 4)]), torch.stack([*pair], 1), x.flip(0), x.roll(1, 1)),
        *(x[::2], x[:, 1:3], torch.nn.functional.pad(x, (1, 2)), torch.diag_embed(x), x.tril()),
        *(x.repeat(2, 1), x.diagonal(), x.reshape(2, 6), x.view(3, 2, 2).permute(2, 0, 1)),
        *(x.expand(2, 3, 4), torch.eye(3), torch.arange(3.0)),
    ]
    products = [
        *(x @ y, x @ y[:, 0], torch.addmm(x[:, :3], x, y, beta=0.5, alpha=2)),
        torch.bmm(x.expand(2, 3, 4), y.expand(2, 4, 3)),
    ]
    return (*elementwise, *reductions, *moves, *products, *(one(x[0]) for one in UNARY))


def test_every_formula_is_right(monkeypatch):
    x, y, d = torch.randn(3, 4), torch.rand(4, 3) + 0.5, torch.randn((), dtype=torch.float64)
    graph = trace(lambda x, y, d: operations_on_scalars(x, y, d), [x, y, d])
    written = []

    def spy(graph, tensors):
        written.append(straight_line(graph, tensors))
        return written[-1]

    monkeypatch.setattr(scalars, "_MOST_STATEMENTS", 20_000)
    monkeypatch.setattr(compiled, "straight_line", spy)
    run = compile_graph(graph, [x, y, d])
    assert written, "it went to Inductor"
    captured = captured_tensors(graph).values()
    for _ in range(2):
        expected = operations_on_scalars(x, y, d)
        torch.testing.assert_close(list(run(x, y, d, *captured)), list(expected), equal_nan=True)
        x[0, 0], x[1, 1] = float("nan"), float("inf")


def scalar_code(func, *tensors):
    graph = trace(func, list(tensors))
    return straight_line(graph, list(tensors))


def test_what_is_not_needed_is_not_computed():
    def gradient_of_a_cube(x):
        seeds = torch.eye(3)
        return ((3 * x.square()) * seeds,)

    code = scalar_code(gradient_of_a_cube, torch.randn(3))
    computed = [line for line in code.source.splitlines() if " * " in line]
    # A square and a product for each entry of the diagonal.
    assert len(computed) == 6
    assert code.source.count("float(0.0);") == 6


@pytest.mark.parametrize(
    ("func", "x"),
    [
        (torch.sin, torch.randn(300)),
        (torch.sin, torch.randn(100_000)),
        (torch.rand_like, torch.randn(3)),
        (lambda x: x.long(), torch.randn(3)),
        (lambda x: x.cumsum(0), torch.randn(3)),
        (lambda x: x / 0, torch.randn(3)),
        (lambda x: x + 1, torch.arange(3)),
    ],
    ids=["calls", "elements", "random", "integers", "unknown", "zero", "integer arguments"],
)
def test_what_is_left_to_inductor(func, x):
    with pytest.raises(UnfitError):
        scalar_code(lambda x: (func(x),), x)


def test_large_matrices_are_left_to_blas():
    assert is_small(1, 4, 4, 4)
    assert is_small(3, 4, 4, 4)
    assert not is_small(1, 256, 256, 256)
    assert not is_small(1, 2, 64, 2)


def test_without_pytorchs_wrappers_is_only_possible_for_one_function():
    def outer(*tensors):
        return tensors

    assert compiled._innermost(outer, [], 1) is outer
    assert compiled._innermost(outer, [(2, object())], 2) is outer


def test_an_old_pytorch_is_refused(case, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.3.1+cpu")
    with pytest.raises(UnsupportedError, match=r"takes PyTorch 2\.4 or newer, and this is 2\.3\.1"):
        compile_graph(case.graph, [case.x])


def test_without_a_compiler_the_error_says_so():
    from torch._inductor import config

    x = torch.randn(3)
    graph = trace(lambda x: ((x * 0.123).sin(),), [x])
    nowhere = {"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}
    with config.patch(nowhere), pytest.raises(UnsupportedError, match="C\\+\\+ compiler") as caught:
        compile_graph(graph, [x])
    assert caught.value.__cause__ is not None


def test_a_failure_of_inductor_is_chained(monkeypatch):
    from torch._inductor import compile_fx

    def fail(*args, **kwargs):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(compile_fx, "compile_fx", fail)
    x = torch.randn(3)
    graph = trace(lambda x: (torch.rand_like(x),), [x])
    with pytest.raises(UnsupportedError, match="no such luck") as caught:
        compile_graph(graph, [x])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_entries_of_a_sparse_jacobian() -> None:
    """Of which the places are not checked in every call, and are right."""

    def diffusion(x: Tensor) -> Tensor:
        flux = (1 + x[1:] ** 2 + x[:-1] ** 2) * (x[1:] - x[:-1])
        return torch.cat([flux[:1], flux[1:] - flux[:-1], -flux[-1:], x[:5].roll(1) * x[5:10]])

    x = torch.rand(3000, dtype=torch.float64)
    transform = torchjac.jac(diffusion, sparsity="detect", layout=torch.sparse_coo)
    compiled_plan = transform.plan(x).compile()
    for at in (x, torch.randn_like(x)):
        torch.testing.assert_close(compiled_plan(at).to_dense(), transform(at).to_dense())
