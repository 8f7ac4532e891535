"""Whether tensors share elements: never missed, and slices of one tensor told apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchjac.foundations.overlap import overlapping, shares_elements

SHAPE = (4, 3, 5)


def marked(*tensors: Tensor) -> Tensor:
    """How often each element of the memory that tensors are views of is theirs."""
    memory = torch.zeros(tensors[0].untyped_storage().nbytes() // tensors[0].element_size())
    for tensor in tensors:
        indices = torch.arange(len(memory)).as_strided(
            tensor.shape, tensor.stride(), tensor.storage_offset()
        )
        memory.index_add_(0, indices.reshape(-1), torch.ones(tensor.numel()))
    return memory


@st.composite
def boxes(draw: st.DrawFn, steps: int) -> tuple[slice, ...]:
    box = []
    for size in SHAPE:
        start = draw(st.integers(0, size - 1))
        box.append(slice(start, draw(st.integers(start, size)), draw(st.integers(1, steps))))
    return tuple(box)


@given(boxes(steps=1), boxes(steps=1), st.permutations(range(3)))
def test_boxes_of_one_tensor(one: tuple[slice, ...], other: tuple[slice, ...], order: list[int]):
    whole = torch.zeros(SHAPE)
    views = whole[one], whole[other].permute(order)
    assert overlapping(views) == bool((marked(*views) > 1).any())
    assert overlapping(views[:1], views[1:]) == overlapping(views)
    assert not any(map(shares_elements, views))


@given(boxes(steps=3), boxes(steps=3))
def test_no_shared_element_is_missed(one: tuple[slice, ...], other: tuple[slice, ...]):
    whole = torch.zeros(SHAPE)
    views = whole[one], whole[other]
    if (marked(*views) > 1).any():
        assert overlapping(views)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), max_size=3), st.integers(0, 3))
def test_no_element_that_is_shared_within_is_missed(dims: list[tuple[int, int]], offset: int):
    shape, stride = [size for size, _ in dims], [step for _, step in dims]
    view = torch.zeros(100).as_strided(shape, stride, offset)
    if (marked(view) > 1).any():
        assert shares_elements(view)


def test_by_name():
    whole = torch.zeros(4, 12)
    assert not overlapping([whole[:, :6], whole[:, 6:]])
    assert not overlapping([whole[:, ::2], whole[:, 1::2]])
    assert overlapping([whole[:3], whole[2:]])
    assert overlapping([whole, whole])
    assert overlapping([whole[0]], [whole[:, 3]])
    assert not overlapping([], [whole, whole])
    assert not overlapping([whole[0, :0], whole[0, 0], whole[0, 1:1]])
    assert not overlapping([whole[:, :6].view(torch.int32), whole[:, 6:]])
    assert overlapping([whole[0].view(torch.float64), whole[0, 3]])
    assert not overlapping([torch.zeros(3, device="meta"), torch.zeros(3, device="meta")])


@pytest.mark.parametrize(
    ("tensor", "shares"),
    [
        (torch.zeros(()), False),
        (torch.zeros(3, 4).T, False),
        (torch.zeros(1, 1).expand(3, 4), True),
        (torch.zeros(1, 4).expand(1, 4), False),
        (torch.zeros(8).unfold(0, 4, 1), True),
        (torch.zeros(8).unfold(0, 4, 4), False),
        (torch.zeros(1).expand(0), False),
    ],
)
def test_shared_within(tensor: Tensor, shares: bool):
    assert shares_elements(tensor) == shares
