"""A traced graph through Inductor. Every compilation takes seconds, so that there are few of them."""

import shutil
import threading

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchjac.errors import UnsupportedError
from torchjac.evaluation.programs import compiled
from torchjac.evaluation.programs.compiled import compile_graph
from torchjac.evaluation.programs.small_products import is_small
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

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.randn(3, 3))
        self.bias = torch.randn(3)
        # Neither contiguous nor at the start of its memory.
        self.x = torch.randn(5, 9)[1:, 1::3]
        self.graph = trace(lambda x: self.func(x), [self.x])
        self.run = compile_graph(self.graph, [self.x])
        self.captured = tuple(captured_tensors(self.graph).values())

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


@pytest.fixture(scope="module")
def case():
    return Case()


def test_the_values_and_strides_are_those_of_the_graph(case):
    results, expected = case(case.x), case.expected(case.x)
    torch.testing.assert_close(results, expected)
    assert results[0].stride() == expected[0].stride()
    assert not any(result.requires_grad for result in results)


def test_other_values_in_the_same_layout(case):
    x = torch.randn(5, 9)[1:, 1::3]
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
    assert not [name for name in operations.names if "mm" in name or "mul" in name]


def test_threads_may_run_it_at_once(case):
    inputs = [torch.randn(5, 9)[1:, 1::3] for _ in range(4)]
    wrong = []

    def work(x):
        expected = case.expected(x)
        results = [case(x)[0] for _ in range(100)]
        wrong.extend(r for r in results if not torch.allclose(r, expected[0], atol=1e-6))

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


def test_without_a_compiler_the_error_says_so(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/no/such/compiler",))
    monkeypatch.setattr(config, "fx_graph_cache", False)
    x = torch.randn(3)
    graph = trace(lambda x: ((x * 0.123).sin(),), [x])
    with pytest.raises(UnsupportedError, match="C\\+\\+ compiler") as caught:
        compile_graph(graph, [x])
    assert caught.value.__cause__ is not None


def test_a_failure_of_inductor_is_chained(case, monkeypatch):
    from torch._inductor import compile_fx

    def fail(*args, **kwargs):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(compile_fx, "compile_fx", fail)
    with pytest.raises(UnsupportedError, match="no such luck") as caught:
        compile_graph(case.graph, [case.x])
    assert isinstance(caught.value.__cause__, RuntimeError)
