"""What sparsity saves, pinned as counts: passes, chunks, evaluations, detections, colourings."""

from typing import Any

import pytest
import torch

import torchjac
from tests.sparse import DETECTS, arrow, band, point, rosenbrock, tridiagonal
from torchjac.planning import compressed

N = 1000


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_a_tridiagonal_jacobian_takes_three_passes(levels: Any, mode: Any) -> None:
    sparse = torchjac.jac(tridiagonal, mode=mode, sparsity=band(N), layout=torch.sparse_coo)
    sparse(point(N))
    levels.sizes.clear()
    sparse(point(N))
    assert levels.sizes == [3]


def test_a_tridiagonal_hessian_takes_three_passes(levels: Any) -> None:
    sparse = torchjac.hessian(rosenbrock, sparsity=band(N), layout=torch.sparse_coo)
    sparse(point(N))
    levels.sizes.clear()
    sparse(point(N))
    assert levels.sizes == [3]


def test_an_arrow_head_takes_a_few_passes_of_each_mode(levels: Any) -> None:
    pattern = torch.eye(N, dtype=torch.bool)
    pattern[0] = pattern[:, 0] = True
    sparse = torchjac.jac(arrow, sparsity=pattern, layout=torch.sparse_coo)
    sparse(point(N))
    levels.sizes.clear()
    sparse(point(N))
    assert sum(levels.sizes) <= 3  # a single pass needs no vmap


def test_a_diagonal_takes_one_plain_pass(levels: Any, counted: Any) -> None:
    func = counted(torch.sin)
    sparse = torchjac.jac(func, mode="reverse", sparsity=torch.eye(N, dtype=torch.bool))
    sparse(point(N))
    levels.sizes.clear()
    func.reset()
    sparse(point(N))
    assert (levels.sizes, func.evaluations, func.passes) == ([], 1, 1)


def test_chunks_of_colours(levels: Any) -> None:
    sparse = torchjac.jac(tridiagonal, chunk_size=2, sparsity=band(N), layout=torch.sparse_coo)
    sparse(point(N))
    levels.sizes.clear()
    sparse(point(N))
    assert levels.sizes == [2]  # and one by itself


def test_out_of_memory_halves_the_chunk_and_changes_nothing(levels: Any) -> None:
    x, pattern = point(40), band(40, 3)
    expected = torchjac.jac(tridiagonal)(x)
    levels.limit = 2
    got = torchjac.jac(tridiagonal, mode="reverse", sparsity=pattern)(x)
    torch.testing.assert_close(got, expected)


def test_a_pattern_is_coloured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    color = compressed.color
    monkeypatch.setattr(
        compressed, "color", lambda *a, **k: (calls.append(a[1]), color(*a, **k))[1]
    )
    pattern = torchjac.SparsityPattern.from_dense(band(37))
    for _ in range(3):
        torchjac.jac(lambda x: 2 * tridiagonal(x), sparsity=pattern)(point(37))
        torchjac.jac(lambda x: 3 * tridiagonal(x), sparsity=pattern)(point(37))
        torch.func.vmap(torchjac.jac(tridiagonal, sparsity=pattern))(point(37)[None])
    assert calls == ["auto"]


@pytest.mark.skipif(not DETECTS, reason="needs torch 2.1")
def test_later_calls_evaluate_once(counted: Any) -> None:
    func = counted(tridiagonal)
    sparse = torchjac.jac(func, mode="reverse", sparsity="detect", layout=torch.sparse_csr)
    sparse(point(N))
    func.reset()
    sparse(point(N))
    assert func.evaluations == 1
