import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjac.foundations.store import Store


def test_the_oldest_is_forgotten_first() -> None:
    store: Store[int] = Store(most=2, heaviest=100)
    for key in "abc":
        store.put(key, ord(key))
    assert [store.get(key) for key in "abc"] == [None, ord("b"), ord("c")]
    store.put("b", 0)  # put again, it is the latest
    store.put("d", 1)
    assert [store.get(key) for key in "bcd"] == [0, None, 1]
    store.clear()
    assert store.get("b") is None


def test_what_is_heavy_is_forgotten_by_weight() -> None:
    store: Store[str] = Store(most=10, heaviest=100)
    store.put("a", "a", 60)
    store.put("b", "b", 40)
    assert store.get("a") == "a"
    store.put("c", "c", 1)
    assert store.get("a") is None
    assert store.get("b") == "b"
    store.put("d", "d", 1000)  # kept all the same, and alone
    assert [store.get(key) for key in "bcd"] == [None, None, "d"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50))))
def test_weights_add_up(puts: list[tuple[int, int]]) -> None:
    store: Store[int] = Store(most=4, heaviest=100)
    for key, weight in puts:
        store.put(key, weight, weight)
    kept = [value for key in range(6) if (value := store.get(key)) is not None]
    assert len(kept) <= 4
    assert len(kept) == 1 or sum(kept) <= 100
    assert not puts or store.get(puts[-1][0]) == puts[-1][1]


def test_any_value_will_do() -> None:
    store: Store[torch.Tensor] = Store(most=1, heaviest=0)
    store.put((), torch.ones(2))
    assert store.get(()) is not None
