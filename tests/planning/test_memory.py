import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchjac
from tests.sparse import DETECTS
from torchjac.foundations.store import Store
from torchjac.planning import memory, solve
from torchjac.planning.memory import Memory, Record, forget_everything
from torchjac.planning.signature import of_function

detecting = pytest.mark.skipif(not DETECTS, reason="detection needs torch 2.1")
RECORD = Record((1,), 1, ())


def jacobian(func, x):
    """Row by row, by plain backward passes."""
    x = x.detach().requires_grad_()
    rows = [torch.autograd.grad(y, x, retain_graph=True)[0] for y in func(x).reshape(-1)]
    return torch.stack(rows)


def test_what_was_remembered_is_recalled_until_everything_is_forgotten():
    Memory().remember("key", RECORD)
    assert Memory().recall("key") is RECORD
    forget_everything()
    assert Memory().recall("key") is None


def test_the_oldest_is_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(memory, "_records", Store(3, 0))
    for key in range(5):
        Memory().remember(key, RECORD)
    assert [Memory().recall(key) for key in range(5)] == [None, None, RECORD, RECORD, RECORD]


def test_signatures_of_what_is_gone_are_forgotten_like_any_other(monkeypatch):
    monkeypatch.setattr(memory, "_records", Store(3, 0))
    for _ in range(10):
        Memory().remember(of_function(torch.nn.Linear(2, 2)), RECORD)
    assert len(memory._records) == 3


def test_threads_may_remember_at_once(monkeypatch):
    monkeypatch.setattr(memory, "_records", Store(8, 0))
    errors = []

    def work(first):
        try:
            for key in range(first, first + 500):
                Memory().remember(key, RECORD)
                Memory().recall(key)
        except Exception as error:  # noqa: BLE001 (it must reach the main thread)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(memory._records) == 8


def test_a_lambda_in_a_loop_is_remembered_once():
    for _ in range(5):
        torchjac.jac(lambda x: x.sin())(torch.ones(3))
    assert len(memory._records) == 1


# A transform that is kept holds on to what it remembers


def record():
    return Record((1,), 1, ())


@pytest.fixture
def forgetful(monkeypatch):
    """What transforms share forgets all but the latest signature."""
    monkeypatch.setattr(memory, "_records", Store(1, 0))


def keys(number):
    """Equal ones that are never the same object."""
    return [(-1, key) for key in range(number)]


@pytest.mark.usefixtures("forgetful")
def test_what_one_transform_remembers_another_does_not_push_out():
    one, other, records = Memory(), Memory(), [record() for _ in range(3)]
    for key, known in zip(keys(2), records[:2], strict=True):
        one.remember(key, known)
    other.remember(keys(3)[2], records[2])
    for _ in range(3):
        assert list(map(one.recall, keys(3))) == records
        assert other.recall(keys(3)[2]) is records[2]
    assert other.recall(keys(1)[0]) is None


@pytest.fixture(params=["shared", "forgetful"])
def shared_or_not(request):
    if request.param == "forgetful":
        request.getfixturevalue("forgetful")


@pytest.mark.usefixtures("shared_or_not")
def test_what_was_replaced_is_recalled_by_nobody():
    one, other, records = Memory(), Memory(), [record() for _ in range(3)]
    for key in (0, 1):
        one.remember(keys(2)[key], records[0])
        assert other.recall(keys(2)[key]) is records[0]
        other.remember(keys(2)[key], records[1])
        assert one.recall(keys(2)[key]) is other.recall(keys(2)[key]) is records[1]
        one.remember(keys(2)[key], records[2])
        Memory().remember("something else", record())
        for _ in range(3):
            assert one.recall(keys(2)[key]) is records[2]
            assert other.recall(keys(2)[key]) in (records[2], None)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans())))
def test_what_is_recalled_is_what_was_remembered_last(steps):
    """Of a key, by whoever it was; or nothing, where the shared memory has forgotten it."""
    forget_everything()
    memories, last = [Memory() for _ in range(3)], {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_records", Store(2, 0))
        for who, key, remembers in steps:
            if remembers:
                last[key] = record()
                memories[who].remember(keys(4)[key], last[key])
            assert memories[who].recall(keys(4)[key]) in (last.get(key), None)
            if remembers:
                assert memories[who].recall(keys(4)[key]) is last[key]


def test_to_forget_everything_is_for_transforms_that_are_kept_too():
    kept = Memory()
    for key in ("key", "another"):
        kept.remember(key, record())
    forget_everything()
    assert kept.recall("key") is kept.recall("another") is None


@pytest.mark.usefixtures("forgetful")
def test_it_holds_few_signatures():
    kept = Memory()
    for key in range(100):
        kept.remember(key, record())
    assert sum(kept.recall(key) is not None for key in range(99, -1, -1)) <= 20


@pytest.mark.usefixtures("forgetful")
def test_it_holds_few_bytes():
    class Heavy(Record):
        nbytes = memory._HEAVIEST_HELD // 2 + 1

    kept, records = Memory(), [Heavy((1,), 1, ()) for _ in range(10)]
    refs = [weakref.ref(record) for record in records]
    for key in range(10):
        kept.remember(key, records.pop(0))
    gc.collect()
    assert [ref() is not None for ref in refs] == [False] * 8 + [True] * 2
    for _ in range(3):
        assert [kept.recall(key) for key in (8, 9)] == [ref() for ref in refs[8:]]


@pytest.mark.usefixtures("forgetful")
def test_its_memory_goes_with_a_transform(monkeypatch):
    seen, first_look = [], solve.first_look

    def look(*args):
        found = first_look(*args)
        seen.append(weakref.ref(found))
        return found

    monkeypatch.setattr(solve, "first_look", look)
    derivative = torchjac.jac(lambda x: x.sin())
    derivative(torch.ones(3))
    (ref,) = seen
    torchjac.jac(lambda x: x.cos())(torch.ones(3))
    gc.collect()
    assert ref() is not None
    del derivative
    gc.collect()
    assert ref() is None


class Unsure(torch.nn.Module):
    def forward(self, x):
        return x * x.roll(1)


@detecting
@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("sizes", [(4,), (4, 6)], ids=["one size", "two sizes"])
@pytest.mark.parametrize("func", [lambda x: x * x.roll(1), Unsure()], ids=["function", "module"])
def test_transforms_in_turn_look_once_each(func, sizes, monkeypatch):
    looks = []
    first_look = solve.first_look
    monkeypatch.setattr(solve, "first_look", lambda *args: looks.append(1) or first_look(*args))
    made = [torchjac.jac(func, sparsity="detect", mode=mode) for mode in ("forward", "reverse")]
    made += [torchjac.jac(func), torchjac.batched_jac(func)]
    for _ in range(5):
        for derivative in made:
            for size in sizes:
                derivative(torch.ones([size] * (2 if derivative is made[-1] else 1)))
    assert len(looks) == len(sizes) * len(made)


class Shifted(torch.nn.Module):
    shift = 1

    def forward(self, x):
        return x * x.roll(self.shift)


def is_right(derivative, module):
    x = torch.arange(1.0, 6.0)
    return torch.equal(derivative(x), torch.func.jacrev(lambda x: x * x.roll(module.shift))(x))


@detecting
@pytest.mark.usefixtures("shared_or_not")
def test_patterns_that_change_in_turn():
    module = Shifted()
    derivative = torchjac.jac(module, sparsity="detect")
    for module.shift in (1, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1):
        torchjac.jac(lambda x: x.cos())(torch.ones(3))
        assert is_right(derivative, module)


@detecting
def test_what_one_transform_watched_says_nothing_of_what_another_found():
    module = Shifted()
    one, other = (torchjac.jac(module, sparsity="detect") for _ in range(2))
    for derivative, shift in [(one, 1), (other, 2), (one, 1), (other, 1), (one, 2)]:
        module.shift = shift
        for _ in range(3):
            assert is_right(derivative, module)


@detecting
def test_plans_and_their_transform_remember_apart(monkeypatch):
    derivative = torchjac.jac(lambda x: x.sin() * x)
    x = torch.ones(3)
    plans = [derivative.plan(x) for _ in range(20)]
    monkeypatch.setattr(memory, "_records", Store(1, 0))
    torchjac.jac(lambda x: x.cos())(x)
    monkeypatch.setattr(solve, "first_look", None)
    for plan in plans:  # within another transform, none of them runs its program
        torch.func.vmap(plan)(torch.ones(2, 3))


def test_threads_may_share_a_transform():
    shift, stop = torch.ones(3), threading.Event()
    derivative = torchjac.jac(lambda x: x * shift, sparsity=torch.eye(3).bool())
    errors = []

    def work():
        while not stop.is_set():
            try:
                for size in (1, 2):
                    torch.testing.assert_close(derivative(torch.ones(3) * size), torch.eye(3))
            except Exception as error:  # noqa: BLE001 (it must reach the main thread)
                errors.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        shift = torch.ones(3)
        forget_everything()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_call_like_the_one_before_compares_no_signatures(monkeypatch):
    shift = torch.ones(3)
    derivative = torchjac.jac(lambda x: x * shift, sparsity=torch.eye(3).bool())
    for _ in range(3):
        derivative(torch.ones(3))
    monkeypatch.setattr(torchjac.SparsityPattern, "__hash__", None)
    assert torch.equal(derivative(torch.ones(3)), torch.eye(3))


# A memory that is stale costs time, never correctness


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("chunk_size", ["auto", None, 1, 2])
def test_a_function_may_change_the_size_of_its_output_between_calls(mode, chunk_size):
    size, x = [1], torch.randn(3, dtype=torch.float64)

    def func(x):
        return torch.outer(torch.arange(1.0, size[0] + 1, dtype=x.dtype), x.sin()).reshape(-1)[
            : size[0]
        ]

    for size[0] in (1, 5, 2, 0, 7):
        expected = jacobian(func, x) if size[0] else torch.zeros(0, 3, dtype=x.dtype)
        got = torchjac.jac(func, mode=mode, chunk_size=chunk_size)(x)
        torch.testing.assert_close(got, expected)


def test_a_hessian_may_get_more_outputs_between_calls():
    power, x = [1], torch.randn(3, dtype=torch.float64)
    for power[0] in (1, 2, 1):
        got = torchjac.hessian(lambda x: (x**3).sum().expand(power[0]))(x)
        torch.testing.assert_close(got, (6 * x).diag().expand(power[0], 3, 3))


def test_a_function_may_change_the_tree_of_its_output_between_calls():
    pair, x = [False], torch.randn(3, dtype=torch.float64)

    def func(x):
        return (x.sin(), {"twice": 2 * x}) if pair[0] else x.cos()

    torch.testing.assert_close(torchjac.jac(func)(x), (-x.sin()).diag())
    pair[0] = True
    first, second = torchjac.jac(func)(x)
    torch.testing.assert_close(first, x.cos().diag())
    torch.testing.assert_close(second["twice"], 2 * torch.eye(3, dtype=x.dtype))


def test_a_function_may_change_what_it_computes_between_calls():
    ops, x = [torch.sin], torch.randn(3, dtype=torch.float64)
    for ops[0] in (torch.sin, torch.exp, torch.tanh):
        torch.testing.assert_close(torchjac.jac(lambda x: ops[0](x))(x), jacobian(ops[0], x))


def test_a_module_may_go_from_evaluation_to_training():
    x = torch.randn(4, 3, dtype=torch.float64)
    net = torch.nn.BatchNorm1d(3, affine=False).double().eval()
    per_sample = torchjac.batched_jac(net, per_sample=False)
    torch.testing.assert_close(
        per_sample(x), torch.func.vmap(torch.func.jacrev(net))(x[:, None])[:, 0, :, 0]
    )
    net.train()
    with pytest.raises(torchjac.errors.BatchCouplingError):
        per_sample(x)
    expected = jacobian(net, x).reshape(4, 3, 4, 3)
    torch.testing.assert_close(torchjac.jac(net)(x), expected)


def test_an_op_may_become_one_that_vmap_refuses():
    class Loop(torch.autograd.Function):
        """An old-style function: no vmap, no forward mode."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, u):
            (x,) = ctx.saved_tensors
            return 2 * x * float(1) * u

    old, x = [False], torch.randn(3, dtype=torch.float64)
    func = torchjac.jac(lambda x: Loop.apply(x) if old[0] else x**2)
    torch.testing.assert_close(func(x), (2 * x).diag())
    old[0] = True
    torch.testing.assert_close(func(x), (2 * x).diag())


def test_the_memory_is_of_the_signature_and_not_of_the_transform():
    calls = []

    def func(x):
        calls.append(1)
        return x.sin()

    x = torch.ones(4)
    torchjac.jac(func)(x)
    calls.clear()
    torchjac.jac(func)(x)
    assert len(calls) == 1
