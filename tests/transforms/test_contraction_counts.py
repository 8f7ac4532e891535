"""What diagonals and traces cost: passes, evaluations, traces, and what is remembered of them."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

import torchjac
from tests.sparse import rosenbrock, tridiagonal
from tests.transforms.contracted import NEW, close, model, point, trace_of_hessian

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


class Counted:
    """Counts evaluations, and the directions that are pushed or pulled through an identity in front."""

    def __init__(self, func: Any) -> None:
        self.func, self.evaluations = func, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.evaluations += 1
        return self.func(x)


@NEW
@pytest.mark.parametrize(
    ("name", "func", "passes"),
    [
        ("jac_diag", torch.sin, 1),
        ("jac_diag", tridiagonal, 2),
        ("divergence", tridiagonal, 2),
        ("divergence", lambda x: x.roll(1), 1),
        ("hessian_diag", lambda x: x.sin().sum(), 1),
        ("hessian_diag", rosenbrock, 2),
        ("laplacian", rosenbrock, 2),
        ("laplacian", torch.sin, 1),
        ("jac_diag", lambda x: x * x.sum(), 30),
    ],
)
def test_as_many_passes_as_the_diagonal_needs(
    name: str, func: Any, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = point(30)
    found = getattr(torchjac, name)(func)(x)
    chunks: list[int] = []
    from torchjac.planning.contractions import contract

    plain = contract.contracted
    monkeypatch.setattr(
        contract,
        "contracted",
        lambda form, seeds, *rest, **how: (
            chunks.append(seeds.total) or plain(form, seeds, *rest, **how)
        ),
    )
    again = getattr(torchjac, name)(func)(x)
    assert chunks == [passes]
    torch.testing.assert_close(again, found)
    if name in ("jac_diag", "divergence"):
        diagonal = torch.func.jacrev(func)(x).diagonal()
        torch.testing.assert_close(found, diagonal if name == "jac_diag" else diagonal.sum())


@NEW
def test_a_function_of_the_whole_batch_takes_the_directions_of_one_sample() -> None:
    net, xs = model(3, 2), point(8, 3)
    found = torchjac.laplacian(net)(xs)
    torch.testing.assert_close(found, vmap(trace_of_hessian(net))(xs))


def test_a_later_call_evaluates_once_or_not_at_all() -> None:
    x = point(5)
    counted = Counted(lambda x: x * x.sum())
    diagonal = torchjac.jac_diag(counted)
    diagonal(x)
    counted.evaluations = 0
    diagonal(x)
    assert counted.evaluations == 1
    counted = Counted(lambda x: (x * x.sum()).sum())
    laplacian = torchjac.laplacian(counted)
    counted.evaluations = 0
    diagonal = torchjac.hessian_diag(counted)
    diagonal(x)
    counted.evaluations = 0
    diagonal(x)
    assert counted.evaluations == 1
    laplacian(x)


@NEW
def test_a_function_written_anew_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchjac.evaluation.programs import laplacian_trace

    traces: list[int] = []
    plain = laplacian_trace.trace
    monkeypatch.setattr(laplacian_trace, "trace", lambda *a: traces.append(1) or plain(*a))
    net, x = model(), point(5)

    def compare() -> None:
        func = lambda x: net(x).sin()  # noqa: E731
        torch.testing.assert_close(torchjac.laplacian(func)(x), trace_of_hessian(func)(x))

    for _ in range(3):
        compare()
    assert len(traces) == 1
    with torch.no_grad():
        net[0].weight.mul_(2)
    compare()  # seen, for the trace is run on the parameters themselves
    assert len(traces) == 1
    net[0].weight = torch.nn.Parameter(net[0].weight * 2)
    compare()
    assert len(traces) == 2, "another parameter, another trace"


@NEW
def test_what_is_remembered_keeps_nothing_alive() -> None:
    def first_call() -> list[Any]:
        net = model()
        func = lambda x: net(x).sin()  # noqa: E731
        torchjac.laplacian(func)(point(5))
        return [weakref.ref(net[0].weight), weakref.ref(net), weakref.ref(func)]

    refs = first_call()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def captured_tensor(t: float) -> Any:
    scale = torch.tensor(t).double()
    return lambda x: tridiagonal(x) * scale


def captured_number(t: float) -> Any:
    return lambda x: tridiagonal(x) * t


def captured_by_default(t: float) -> Any:
    return lambda x, t=t: tridiagonal(x) * t


class Counter(torch.nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return tridiagonal(x)


COUNTER = Counter()
TRANSFORMS = {
    "jac_diag": lambda f: torch.func.jacrev(f)(point(12)).diagonal(),
    "divergence": lambda f: torch.func.jacrev(f)(point(12)).trace(),
    "hessian_diag": lambda f: torch.func.hessian(lambda x: f(x).sum())(point(12)).diagonal(),
    "laplacian": lambda f: trace_of_hessian(f)(point(12)),
}


@NEW
@pytest.mark.parametrize(
    "written",
    [captured_tensor, captured_number, captured_by_default, lambda t: lambda x: COUNTER(x) * t],
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_value_that_changes_with_every_call_is_looked_at_ever_more_rarely(
    name: str, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchjac.evaluation.programs import laplacian_trace
    from torchjac.planning import memory
    from torchjac.planning.contractions import colors

    looks = {"traces": 0, "patterns": 0}
    trace, find = laplacian_trace.trace, colors.find_pattern

    def traced(*args: Any) -> Any:
        looks["traces"] += 1
        return trace(*args)

    def found(*args: Any, **how: Any) -> Any:
        looks["patterns"] += 1
        return find(*args, **how)

    monkeypatch.setattr(laplacian_trace, "trace", traced)
    monkeypatch.setattr(colors, "find_pattern", found)
    memory.forget_everything()
    transform = getattr(torchjac, name)
    for call in range(60):
        func = written(1.0 + call)
        target = (lambda x, f=func: f(x).sum()) if name == "hessian_diag" else func
        close(transform(target)(point(12)), TRANSFORMS[name](func))
    assert looks["traces"] <= 3
    assert 1 <= looks["patterns"] <= 3
    assert len(memory._records) == 1
    (record,) = (kept for kept, _ in memory._records._values.values())
    assert len(record.findings) <= 4


@NEW
def test_where_colours_may_not_fit_every_input_has_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchjac.planning.contractions import contract, witness

    seeds: list[int] = []
    plain = contract.contracted

    def counted(form: Any, given: Any, *rest: Any, **how: Any) -> Any:
        seeds.append(given.total)
        return plain(form, given, *rest, **how)

    for module in (contract, witness):
        monkeypatch.setattr(module, "contracted", counted)
    x = point(12)
    for call in range(5):
        seeds.clear()
        func = lambda x, t=1.0 + call: tridiagonal(x) * t  # noqa: E731
        close(torchjac.jac_diag(func)(x), torch.func.jacrev(func)(x).diagonal())
    assert seeds == [12]
    for call in range(20):
        func = lambda x, t=call, k=1 + call % 5: x * x.roll(k) * t  # noqa: E731
        close(torchjac.jac_diag(func)(x), torch.func.jacrev(func)(x).diagonal())


@NEW
def test_what_a_number_decides_is_seen_at_the_call() -> None:
    x = point(4)
    for outputs in (2, 3, 1, 4, 5, 2, 1):
        func = lambda x, k=outputs: [(x**3).sum() * (i + 1) for i in range(k)]  # noqa: E731
        found = torchjac.laplacian(func)(x)
        close(found, [6 * x.sum() * (i + 1) for i in range(outputs)])
    for length in (4, 3, 2, 4):
        func = lambda x, k=length: x[:k] ** 3  # noqa: E731
        close(torchjac.laplacian(func)(x), 6 * x[:length])
        if length == 4:
            close(torchjac.jac_diag(func)(x), 3 * x**2)
            continue
        with pytest.raises(torchjac.errors.OutputTypeError, match="like its input"):
            torchjac.jac_diag(func)(x)
    for outputs in (1, 2, 1, 3):
        func = lambda x, k=outputs: (x**3).sum() * torch.ones(k).double()  # noqa: E731
        if outputs == 1:
            close(torchjac.hessian_diag(func)(x), 6 * x)
            continue
        with pytest.raises(torchjac.errors.OutputTypeError, match="single number"):
            torchjac.hessian_diag(func)(x)


def test_a_number_that_changes_is_seen() -> None:
    x = point(12)
    for shift in (1, 2, 3):
        func = lambda x, k=shift: (x * x.roll(k)).sum() + k * x.square().sum()  # noqa: E731
        torch.testing.assert_close(torchjac.laplacian(func)(x), torch.tensor(24.0 * shift).double())
        func = lambda x: x * x.roll(shift) + shift * x  # noqa: E731, B023
        close(torchjac.jac_diag(func)(x), x.roll(shift) + shift)


def of_lists(which: int) -> Any:
    a, b = [1.0], [5.0]
    c = b if which else a
    return lambda x: (x**2 * c[0] * (len(a) + len(b))).sum()


def of_functions(which: int) -> Any:
    def scaled(factor: float) -> Any:
        return lambda x: factor * x

    a, b = scaled(1.0), scaled(5.0)
    c = b if which else a
    return lambda x: (c(x) * (a(x) + b(x))).sum()


def of_items(which: int) -> Any:
    a, b = [1.0], [5.0]
    rows = [a, b, b if which else a]
    return lambda x: (x**2 * rows[2][0] * (rows[0][0] + rows[1][0])).sum()


def of_keys(which: int) -> Any:
    factors = {"1": 2.0} if which else {1: 2.0}
    return lambda x: (x**2 * factors.get("1", 1.0)).sum()


@pytest.mark.parametrize("written", [of_lists, of_functions, of_items, of_keys])
def test_what_is_held_twice_is_told_from_what_is_alike(written: Any) -> None:
    x = point(6)
    for which in (0, 1, 0):
        func = written(which)
        close(torchjac.laplacian(func)(x), trace_of_hessian(func)(x))


@NEW
@pytest.mark.parametrize("name", ["jac_diag", "divergence", "laplacian"])
def test_colors_that_rely_on_a_constant_are_compared_once_and_where_it_has_changed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write through ``.data`` is no change that PyTorch counts, but it shows in a checksum."""
    from torchjac.planning.contractions import contract

    compared: list[int] = []
    agree = contract.colors_agree
    monkeypatch.setattr(contract, "colors_agree", lambda *a: compared.append(1) or agree(*a))
    matrix, x = torch.eye(12, dtype=torch.float64), point(12)

    def func(x: Tensor) -> Tensor:
        return x.flip(0) * (matrix @ x).sin()

    found = getattr(torchjac, name)(func)
    plain: dict[str, Any] = {
        "jac_diag": lambda x: torch.func.jacrev(func)(x).diagonal(),
        "divergence": lambda x: torch.func.jacrev(func)(x).trace(),
        "laplacian": trace_of_hessian(func),
    }
    for _ in range(3):
        torch.testing.assert_close(found(x), plain[name](x))
    assert len(compared) == 1
    matrix.data[3, 9] = 2.0
    matrix.data[:, 2] = 1.0
    torch.testing.assert_close(found(x), plain[name](x))
    assert len(compared) == 2


@NEW
def test_colors_that_rely_on_a_constant_where_there_are_no_values_to_compare() -> None:
    matrix, xs = torch.eye(12, dtype=torch.float64), point(2, 12)

    def func(x: Tensor) -> Tensor:
        return x.flip(0) * (matrix @ x).sin()

    found = vmap(torchjac.jac_diag(func))
    for place in ((0, 0), (3, 9), (2, slice(None)), (slice(None), 5)):
        matrix.data[place] = 2.0
        expected = vmap(torch.func.jacrev(func))(xs).diagonal(dim1=-2, dim2=-1)
        for _ in range(2):
            torch.testing.assert_close(found(xs), expected)
