"""Lazy copies, with which `torchjac.structure.blocks` hands out the indices of sparse results."""

import pytest
import torch

if not hasattr(torch, "_lazy_clone"):
    pytest.skip("older than lazy copies: plain ones are made", allow_module_level=True)


def test_a_lazy_copy_is_one_as_soon_as_it_is_written_into():
    kept = torch.arange(6).reshape(2, 3)
    lent = torch._lazy_clone(kept)
    assert torch._C._is_cow_tensor(lent)
    lent[0, 0] = 9
    assert kept[0, 0] == 0
    assert lent[0, 0] == 9


def test_the_indices_of_a_sparse_tensor_can_be_lent():
    kept = torch.tensor([[0, 1], [1, 0]])
    lent = torch._lazy_clone(kept)
    made = torch.sparse_coo_tensor(
        lent, torch.ones(2), (2, 2), is_coalesced=True, check_invariants=False
    )
    assert torch._C._is_cow_tensor(made._indices())
    made._indices().zero_()
    assert kept.tolist() == [[0, 1], [1, 0]]
