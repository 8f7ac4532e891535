"""A description that is used again is the one that would be made: whatever it depends on is read again."""

from __future__ import annotations

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
from torch import Tensor

import torchjac
from tests.planning.changing import CHANGES, MATRIX
from tests.sparse import DETECTS
from torchjac.planning import signature, trail
from torchjac.planning.search import Search
from torchjac.planning.signature import Description, of_function

needs_detection = pytest.mark.skipif(not DETECTS, reason="detection needs torch 2.1")
DETECTED = pytest.param("detect", marks=needs_detection)
VALUES = pytest.mark.parametrize("values", [True, False])
SCALE = 2.0


def assert_up_to_date(described: Description, func: Any, values: bool) -> None:
    """What is handed out is what a new description says."""
    search, fresh = Search(values=values), Search(values=values)
    assert described.by(func, search) == of_function(func, fresh)
    assert search.connects == fresh.connects
    assert search.is_sure == fresh.is_sure


def kept(func: Any, values: bool) -> Description:
    """A description that has been asked for often enough to be used again."""
    described = Description()
    for _ in range(3):
        assert_up_to_date(described, func, values)
    return described


def is_used_again(described: Description, func: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
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
    Description().by(functions(), Search())


# --- What changes ----------------------------------------------------------------------------------


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


def closing_over(held: Any) -> Callable[..., Any]:
    return lambda x: held


# --- What it costs ---------------------------------------------------------------------------------


def test_what_changes_all_the_time_is_not_taken_down_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, taken = 0, []

    def make(func: Any) -> trail.Trail:
        taken.append(count)
        return trail.Trail(func)

    monkeypatch.setattr(signature, "Trail", make)
    described, func = Description(), lambda x: x * count
    for count in range(20):  # noqa: B007 - func reads it
        described.by(func, Search(values=True))
    assert len(taken) == signature._MOST_IN_VAIN


def test_what_changes_now_and_then_is_taken_down_again() -> None:
    step, made = 0.0, 0
    described, func = Description(), lambda x: x * step
    for step in map(float, range(20)):  # noqa: B007 - func reads it
        for _ in range(5):
            before = described._known
            described.by(func, Search(values=True))
            made += described._known is not before
    assert made == 20


def test_a_tensor_that_was_replaced_is_free() -> None:
    held = torch.ones(2)
    items, inner = [held], closing_over(held)
    func = lambda x: (held, items, inner)  # noqa: E731
    described = kept(func, True)
    ref = weakref.ref(held)
    held = items[0] = torch.zeros(2)
    inner = closing_over(held)
    gc.collect()
    assert ref() is None
    assert_up_to_date(described, func, True)


class Long(list[Any]):
    reads = 0

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            Long.reads += 1
            yield item


def test_a_long_list_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail, "_ROWS", frozenset({Long}))
    monkeypatch.setattr(trail, "_SIZED", frozenset({Long}))
    items = Long([torch.sin] * 1000)
    taken = trail.Trail(lambda x: items)
    taken.note(lambda x: items, ())  # type: ignore[arg-type]
    assert taken.is_broken
    assert Long.reads == 0


@pytest.mark.skipif(not hasattr(torch.nested, "nested_tensor"), reason="PyTorch has none")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_a_shape() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for held in (nested, nested.clone().requires_grad_(), torch.eye(2).to_sparse()):
        kept(closing_over(held), True)


# --- Through the transforms ------------------------------------------------------------------------


def test_an_argument_that_is_captured_too() -> None:
    shared = [torch.ones(2), 3]
    derivative = torchjac.jac(lambda x, more: x * more[0] * shared[1])
    for _ in range(4):
        assert torch.equal(derivative(torch.ones(2), shared), 3 * torch.eye(2))
    shared[1] = 4
    assert torch.equal(derivative(torch.ones(2), shared), 4 * torch.eye(2))


@pytest.mark.parametrize("sparsity", [None, DETECTED])
def test_a_pattern_that_depends_on_what_changes(sparsity: Any) -> None:
    shift, x = 1, torch.arange(1.0, 6.0)
    derivative = torchjac.jac(lambda x: x * torch.roll(x, shift), sparsity=sparsity)
    for shift in (1, 1, 1, 1, 2, 2, 2, 2, 1, 3, 1):
        expected = torch.func.jacrev(lambda x, s=shift: x * torch.roll(x, s))(x)
        assert torch.equal(derivative(x), expected)


def in_a_partial() -> Any:
    func = functools.partial(lambda x, s: x * torch.roll(x, s), s=1)
    return func, lambda shift: func.keywords.update(s=shift)


def in_a_python_module() -> Any:
    module = types.ModuleType("constants")
    module.shift = 1  # type: ignore[attr-defined]
    return lambda x: x * torch.roll(x, module.shift), functools.partial(setattr, module, "shift")


@pytest.mark.parametrize("sparsity", [None, DETECTED])
@pytest.mark.parametrize("make", [in_a_partial, in_a_python_module])
def test_a_pattern_that_depends_on_what_changes_elsewhere(make: Any, sparsity: Any) -> None:
    x, (func, change) = torch.arange(1.0, 6.0), make()
    derivative = torchjac.jac(func, sparsity=sparsity)
    for shift in (1, 1, 1, 1, 2, 2, 2, 2, 1, 3, 1):
        change(shift)
        assert torch.equal(derivative(x), torch.func.jacrev(func)(x))


def test_gradients_of_what_requires_grad_by_now() -> None:
    factor = torch.ones(3)
    derivative = torchjac.jac(factor.mul)
    for _ in range(4):
        assert not derivative(torch.ones(3)).requires_grad
    factor.requires_grad_()
    assert derivative(torch.ones(3)).requires_grad
