"""A plan shares its memory with nobody, is shared by threads, and leaves nothing when it is gone."""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchjac
from tests.sparse import DETECTS
from tests.transforms.curves import MATRIX, Net, X, curve
from torchjac.foundations.pytree import flatten

pytestmark = [
    pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1"),
    pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
@pytest.mark.parametrize(
    "func",
    [lambda x: MATRIX @ x, lambda x: x, lambda x: (x, x), lambda x: x[::2], lambda x: x / 2],
    ids=["matrix", "identity", "twice", "slice", "half"],
)
def test_a_result_is_written_into_and_the_next_is_right(
    func: Callable[..., Any], layout: Any
) -> None:
    before, expected = MATRIX.clone(), flatten(torch.func.jacrev(func)(X))[0]
    sparsity = "detect" if layout != torch.strided else None
    plan = torchjac.jac(func, sparsity=sparsity, layout=layout).plan(X)
    for leaf in flatten(plan(X))[0]:
        (leaf if layout == torch.strided else leaf._values()).fill_(7)
        if layout != torch.strided:
            leaf._indices().fill_(0)
    for leaf, other in zip(flatten(plan(X))[0], expected, strict=True):
        torch.testing.assert_close(leaf.to_dense(), other)
    assert torch.equal(MATRIX, before)


@pytest.mark.parametrize("options", [{}, {"sparsity": "detect"}, {"mode": "forward"}], ids=str)
def test_a_plan_that_is_gone_leaves_nothing(options: Any) -> None:
    net, x = Net(), X.clone()
    plan = torchjac.jac(net, **options).plan(x)
    plan(x.clone().requires_grad_())
    alive = [weakref.ref(held) for held in (net, net.weight, x, plan)]
    del net, x, plan
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_threads_share_a_plan() -> None:
    plan, wrong = torchjac.jac(curve).plan(X), []

    def work(scale: int) -> None:
        expected = torchjac.jac(curve, mode="reverse")(scale * X)
        wrong.extend(scale for _ in range(50) if not torch.allclose(plan(scale * X), expected))

    threads = [threading.Thread(target=work, args=(scale,)) for scale in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
