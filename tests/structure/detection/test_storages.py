"""Reading and writing through views, against the same reads and writes of numbers."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjac.structure.detection.constants import Constant
from torchjac.structure.detection.index_sets import IndexSets
from torchjac.structure.detection.storages import Storages

SIZE = 12


@st.composite
def views(draw):
    """A way to look at a vector of `SIZE` elements."""
    steps = draw(
        st.lists(
            st.sampled_from(
                [
                    lambda v: v.reshape(-1, 2) if v.numel() % 2 == 0 and v.is_contiguous() else v,
                    lambda v: v[1:],
                    lambda v: v[::2],
                    lambda v: v.transpose(0, -1),
                    lambda v: v[..., -1:],
                    lambda v: v.unsqueeze(0),
                    lambda v: v.flatten() if v.is_contiguous() else v,
                ]
            ),
            max_size=4,
        )
    )

    def look(vector):
        for step in steps:
            if not vector.numel():
                break
            vector = step(vector)
        return vector

    return look


@given(st.lists(st.tuples(views(), st.booleans()), min_size=1, max_size=4), views())
def test_sets_follow_what_a_real_tensor_does(writes, read):
    numbers = torch.zeros(SIZE, dtype=torch.int64)  # 0 is the empty set
    storages = Storages(1000)
    vector = torch.zeros(SIZE)
    following = 1
    for look, depends in writes:
        real = look(numbers)
        count = real.numel()
        if depends:
            values = torch.arange(following, following + count)
            storages.write(look(vector), IndexSets.identity(count, following, 1000))
            following += count
        else:
            values = torch.zeros(count, dtype=torch.int64)
            storages.write(look(vector), None)
        real.copy_(values.reshape(real.shape))
    found = storages.sets(read(vector))
    expected = read(numbers).reshape(-1).numpy()
    got = np.zeros(len(expected), int)
    if found is not None:
        rows = np.repeat(np.arange(len(found)), np.diff(found.matrix.indptr))
        got[rows] = found.matrix.indices
    assert (got == expected).all()


@given(views(), views())
def test_known_values_follow_too(look, read):
    storages = Storages(1)
    vector, values = torch.zeros(SIZE), torch.arange(float(SIZE))
    storages.write(vector, None, Constant(values.clone))
    target = look(values)
    news = 100 + torch.arange(float(target.numel())).reshape(target.shape)
    storages.write(look(vector), None, Constant(news.clone))
    target.copy_(news)
    constant = storages.constant(read(vector))
    assert constant is not None
    assert torch.equal(constant.value(), read(values))


def test_a_view_of_another_dtype_sees_what_its_bytes_lie_in():
    storages = Storages(4)
    pairs = torch.zeros(2, dtype=torch.complex128)
    real = torch.view_as_real(pairs)
    storages.write(pairs, IndexSets.identity(2, 0, 4))
    assert storages.sets(real).matrix.indices.tolist() == [0, 0, 1, 1]
    storages.write(real[:, 0], IndexSets.identity(2, 2, 4))
    found = storages.sets(pairs).matrix
    assert found.indices.tolist() == [0, 2, 1, 3]


def test_what_nobody_holds_is_let_go(monkeypatch):
    monkeypatch.setattr("torchjac.structure.detection.storages._SWEEP_AFTER", 10)
    storages = Storages(4)
    kept = torch.zeros(4)
    storages.write(kept, IndexSets.identity(4, 0, 4))
    for _ in range(20):
        storages.write(torch.zeros(4), IndexSets.identity(4, 0, 4))
    assert len(storages._contents) < 5
    assert storages.sets(kept) is not None
