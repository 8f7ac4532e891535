import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds
from torchjac.testing import strategies

LEAVES = st.lists(strategies.shapes().map(torch.empty), min_size=1, max_size=3)


def rows(seeds, leaves, start, stop):
    """The chunk as a matrix: one row per seed, the leaves side by side."""
    chunk = seeds.chunk(start, stop)
    return torch.cat(
        [
            chunk[leaf].reshape(stop - start, -1)
            if leaf in chunk
            else torch.zeros(stop - start, like.numel())
            for leaf, like in enumerate(leaves)
        ],
        dim=1,
    )


@given(LEAVES, st.integers(1, 8))
def test_chunks_of_any_size_make_up_the_identity(leaves, size):
    seeds = IdentitySeeds(Layout(leaves))
    starts = range(0, seeds.total, size)
    pieces = [rows(seeds, leaves, start, min(start + size, seeds.total)) for start in starts]
    identity = torch.cat(pieces) if pieces else torch.zeros(0, 0)
    torch.testing.assert_close(identity, torch.eye(seeds.total))


@given(LEAVES, st.data())
def test_a_leaf_that_a_chunk_does_not_touch_is_absent(leaves, data):
    layout = Layout(leaves)
    start = data.draw(st.integers(0, layout.total))
    stop = data.draw(st.integers(start, layout.total))
    chunk = IdentitySeeds(layout).chunk(start, stop)
    assert list(chunk) == [section.leaf for section in layout.sections(start, stop)]
    for leaf, stack in chunk.items():
        assert stack.shape == (stop - start, *leaves[leaf].shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_seed_has_the_dtype_of_its_leaf(dtype):
    seeds = IdentitySeeds(
        Layout([torch.empty(2, dtype=dtype), torch.empty(2, dtype=torch.float64)])
    )
    chunk = seeds.chunk(0, 4)
    assert [stack.dtype for stack in chunk.values()] == [dtype, torch.float64]


def test_batched_seeds_are_repeated_over_the_samples():
    seeds = IdentitySeeds(Layout([torch.empty(3, 2, 2)], batched=True))
    assert seeds.total == 4
    (stack,) = seeds.chunk(1, 3).values()
    expected = torch.eye(4)[1:3].reshape(2, 1, 2, 2).expand(2, 3, 2, 2)
    torch.testing.assert_close(stack, expected)


def test_batched_seeds_hold_one_sample_only():
    (stack,) = IdentitySeeds(Layout([torch.empty(100, 4)], batched=True)).chunk(0, 4).values()
    assert stack.stride(1) == 0
