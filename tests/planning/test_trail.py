"""A description that is used again is the one that would be made: whatever it depends on is read again."""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import torchjac
from torchjac.planning import signature
from torchjac.planning.search import Search
from torchjac.planning.signature import Described, of_function

VALUES = pytest.mark.parametrize("values", [True, False])
SCALE = 2.0
MATRIX = torch.eye(3)
FRESH: Any = None


def assert_up_to_date(described: Described, func: Any, values: bool) -> None:
    """What is handed out is what a new description says."""
    search, fresh = Search(values=values), Search(values=values)
    assert described.by(func, search) == of_function(func, fresh)
    assert search.connects == fresh.connects
    assert search.is_sure == fresh.is_sure


def kept(func: Any, values: bool) -> Described:
    """A description that has been asked for often enough to be used again."""
    described = Described()
    for _ in range(3):
        assert_up_to_date(described, func, values)
    return described


def is_used_again(described: Described, func: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the next description is none."""
    made = []
    monkeypatch.setattr(signature, "_describe", lambda *args: made.append(args))
    described.by(func, Search(values=True))
    monkeypatch.undo()
    return not made


# --- What is used again ----------------------------------------------------------------------------


def numbers() -> Any:
    n, t, word, kind = 3, 0.5, "max", torch.float64
    return lambda x: (x * n + t).to(kind) if word else x


def tensors() -> Any:
    kernels, pair, weight = [torch.ones(2), torch.ones(3)], (torch.ones(2), 1), torch.ones(2)
    weight.requires_grad_()
    return lambda x: x * kernels[0] * pair[0] * weight


def functions() -> Any:
    def inner(x: Tensor, scale: float = 2.0) -> Tensor:
        return math.sin(scale) * torch.sin(x) + MATRIX @ x * SCALE

    roll = torch.roll
    return lambda x: roll(inner(x), 1)


def recursive() -> Any:
    def power(x: Tensor, n: int) -> Tensor:
        return x * power(x, n - 1) if n else x

    return lambda x: power(x, 2)


@VALUES
@pytest.mark.parametrize("make", [numbers, tensors, functions, recursive])
def test_what_is_used_again(make: Any, values: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    func = make()
    assert is_used_again(kept(func, values), func, monkeypatch)


@pytest.mark.parametrize("sparsity", [None, torch.ones(3, 3).bool()], ids=["dense", "sparse"])
def test_a_transform_that_is_kept_describes_its_function_twice(
    sparsity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    derivative = torchjac.jac(functions(), sparsity=sparsity)
    first = derivative(torch.ones(3))
    derivative(torch.ones(3))
    monkeypatch.setattr(signature, "_describe", None)
    assert torch.equal(derivative(torch.ones(3)), first)


def test_a_first_call_takes_nothing_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "Trail", None)
    Described().by(functions(), Search())


# --- What changes ----------------------------------------------------------------------------------


def of_cell() -> Iterator[Any]:
    held: Any = torch.ones(2)

    def func(x: Tensor) -> Any:
        return x, held

    yield func
    things = torch.zeros(2), 1, 2, 1.0, True, None, "a", [MATRIX], (MATRIX,), nn.Linear(1, 1)
    for held in things:
        yield held
    del held
    yield
    held = 1
    yield


def of_list() -> Iterator[Any]:
    items: list[Any] = [torch.ones(2), [1, torch.ones(3)]]
    yield lambda x: items
    items[1][1] = torch.ones(3)
    yield
    items.append(2)
    yield
    items[1].insert(0, None)
    yield
    items.reverse()
    yield
    items.append(items)
    yield
    items.clear()
    yield


def of_one_list_for_another() -> Iterator[Any]:
    one, other = [MATRIX, 1], [MATRIX, 1]
    yield lambda x: (one, other)
    other = one
    yield other
    one = [MATRIX, 2]
    yield one


def of_tensor() -> Iterator[Any]:
    weight, bias = torch.ones(2), torch.ones(2, requires_grad=True)
    yield lambda x: (weight, bias)
    weight.requires_grad_()
    yield
    bias.requires_grad_(False)
    yield
    weight.data = torch.ones(5)
    yield


def of_parameter() -> Iterator[Any]:
    parameter = nn.Parameter(torch.ones(3))
    yield lambda x: parameter
    parameter.data = torch.ones(4)
    yield


def of_globals() -> Iterator[Any]:
    space: dict[str, Any] = {"torch": torch, "helper": lambda x: x, "n": 1}
    yield types.FunctionType(
        compile("lambda x: abs(helper(x)) + n", "", "eval").co_consts[0], space
    )
    space["n"] = 2
    yield
    space["abs"] = lambda x: x
    yield
    space["helper"] = torch.sin
    yield
    del space["n"]
    yield
    space["n"] = torch.ones(2)
    yield


def of_python_module() -> Iterator[Any]:
    module = types.ModuleType("constants")
    space: dict[str, Any] = {"constants": module}
    yield types.FunctionType(compile("lambda x: constants.n", "", "eval").co_consts[0], space)
    module.n = 1
    yield
    module.n = MATRIX
    yield
    module.n = torch.sin
    yield
    space["constants"] = math
    yield


def of_defaults() -> Iterator[Any]:
    def func(x: Tensor, n: int = 1, weight: Tensor = MATRIX) -> Any:
        return x

    yield func
    func.__defaults__ = (2, MATRIX)
    yield
    func.__defaults__ = (2, torch.eye(3))
    yield
    func.__kwdefaults__ = {"n": 3}
    yield
    func.__kwdefaults__ = {"n": 4}
    yield
    func.mark = True  # type: ignore[attr-defined]
    yield


def of_code() -> Iterator[Any]:
    def helper(x: Tensor) -> Tensor:
        return x.sin()

    yield lambda x: helper(x)
    helper.__code__ = (lambda x: x.cos()).__code__
    yield


def of_library() -> Iterator[Any]:
    def stack(x: Tensor) -> Tensor:
        return x

    library = types.FunctionType(stack.__code__, {"__name__": "torch"}, "stack")
    space: dict[str, Any] = {"stack": library}
    yield types.FunctionType(compile("lambda x: stack(x)", "", "eval").co_consts[0], space)
    library.__code__ = (lambda x: -x).__code__
    yield


def of_library_closure() -> Iterator[Any]:
    n: Any = 1

    def stack(x: Tensor) -> Any:
        return n

    library = types.FunctionType(
        stack.__code__, {"__name__": "torch"}, "stack", None, stack.__closure__
    )
    space: dict[str, Any] = {"stack": library}
    yield types.FunctionType(compile("lambda x: stack(x)", "", "eval").co_consts[0], space)
    for n in (2, MATRIX):
        yield n


@dataclasses.dataclass(frozen=True)
class Numbers:
    n: int


def of_what_may_change_otherwise() -> Iterator[Any]:
    words, record = {"n": 1}, Numbers(1)
    partial, method = functools.partial(torch.roll, shifts=1), MATRIX.mul
    yield lambda x: (words, record, partial, method)
    words["n"] = 2
    yield
    object.__setattr__(record, "n", 2)
    yield
    partial.__setstate__((torch.roll, (), {"shifts": 2}, {}))
    yield
    method = torch.eye(3).mul
    yield method


CHANGES = [
    *(of_cell, of_list, of_one_list_for_another, of_tensor, of_parameter, of_globals),
    *(of_python_module, of_defaults, of_code, of_library, of_library_closure),
    of_what_may_change_otherwise,
]


@VALUES
@pytest.mark.parametrize("make", CHANGES)
def test_changes_are_seen(make: Any, values: bool) -> None:
    """One after another, each by a description that was used until then, and by one that goes on."""
    changes: Any = make()
    func = next(changes)
    lasting = kept(func, values)
    again = kept(func, values)
    for _ in changes:
        assert_up_to_date(lasting, func, values)
        assert_up_to_date(again, func, values)
        again = kept(func, values)


class Shelf:
    """Things in places that a function looks at, to be changed one by one."""

    def __init__(self) -> None:
        self.lists: list[Any] = [[0, MATRIX], [(1, 2)], []]
        first, second, third = self.lists
        self.space: dict[str, Any] = {"a": first, "b": second, "c": third, "helper": lambda x: x}
        code = compile("lambda x: helper(a, b, c, d, max)", "", "eval").co_consts[0]
        self.func = types.FunctionType(code, self.space)


THINGS: list[Callable[[Shelf], Any]] = [
    *(lambda shelf: 1, lambda shelf: 1.0, lambda shelf: True, lambda shelf: None),
    *(lambda shelf: MATRIX, lambda shelf: torch.ones(2), lambda shelf: torch.sin),
    *(lambda shelf: shelf.lists[0], lambda shelf: [1], lambda shelf: (MATRIX, [2])),
    *(lambda shelf: lambda x: x, lambda shelf: {"a": 1}, lambda shelf: math),
]


def put(shelf: Shelf, place: int, thing: Any) -> None:
    """Into a list, or under a name."""
    if place < 3:
        shelf.lists[place].append(thing)
    elif place < 6 and shelf.lists[place - 3]:
        shelf.lists[place - 3][0] = thing
    elif place >= 6:
        shelf.space[["a", "b", "c", "d", "helper", "max"][place - 6]] = thing


@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from(THINGS))), st.booleans())
@example([(0, THINGS[7])], True)
def test_any_changes_are_seen(steps: Any, values: bool) -> None:
    shelf = Shelf()
    described = kept(shelf.func, values)
    for place, make in steps:
        put(shelf, place, make(shelf))
        assert_up_to_date(described, shelf.func, values)
        assert_up_to_date(kept(shelf.func, values), shelf.func, values)


# --- What it costs ---------------------------------------------------------------------------------


def test_what_changes_all_the_time_is_not_taken_down_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, taken = 0, []
    trail = signature.Trail
    monkeypatch.setattr(signature, "Trail", lambda: taken.append(count) or trail())
    described, func = Described(), lambda x: x * count
    for count in range(20):  # noqa: B007 - func reads it
        described.by(func, Search(values=True))
    assert len(taken) == signature._MOST_IN_VAIN


def test_what_changes_now_and_then_is_taken_down_again() -> None:
    step, made = 0.0, 0
    described, func = Described(), lambda x: x * step
    for step in map(float, range(20)):  # noqa: B007 - func reads it
        for _ in range(5):
            before = described._known
            described.by(func, Search(values=True))
            made += described._known is not before
    assert made == 20


def test_a_tensor_that_was_replaced_is_free() -> None:
    held = torch.ones(2)
    items, func = [held], lambda x: (held, items)
    kept(func, True)
    described = kept(func, True)
    ref = weakref.ref(held)
    held = items[0] = torch.zeros(2)
    gc.collect()
    assert ref() is None
    assert_up_to_date(described, func, True)


def test_a_long_list_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [torch.sin] * 1000
    func = lambda x: items  # noqa: E731
    assert not is_used_again(kept(func, True), func, monkeypatch)


# --- Through the transforms ------------------------------------------------------------------------


def test_an_argument_that_is_captured_too() -> None:
    shared = [torch.ones(2), 3]
    derivative = torchjac.jac(lambda x, more: x * more[0] * shared[1])
    for _ in range(4):
        assert torch.equal(derivative(torch.ones(2), shared), 3 * torch.eye(2))
    shared[1] = 4
    assert torch.equal(derivative(torch.ones(2), shared), 4 * torch.eye(2))


@pytest.mark.parametrize("sparsity", [None, "detect"])
def test_a_pattern_that_depends_on_what_changes(sparsity: Any) -> None:
    shift, x = 1, torch.arange(1.0, 6.0)
    derivative = torchjac.jac(lambda x: x * torch.roll(x, shift), sparsity=sparsity)
    for shift in (1, 1, 1, 1, 2, 2, 2, 2, 1, 3, 1):
        expected = torch.func.jacrev(lambda x, s=shift: x * torch.roll(x, s))(x)
        assert torch.equal(derivative(x), expected)
