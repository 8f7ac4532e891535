import gc

import pytest
import torch

from tests.sparse import DETECTS
from torchjac.foundations.collection import uncollected


@pytest.fixture(params=[True, False])
def enabled(request):
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_the_collector_is_left_as_it_was(enabled):
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled() == enabled


def test_an_error_leaves_it_as_it_was(enabled):
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / 0  # noqa: B018
    assert gc.isenabled() == enabled


@pytest.mark.skipif(not DETECTS, reason="a trace takes torch 2.1")
def test_nothing_is_collected_while_a_function_is_traced():
    from torchjac.evaluation.programs.tracing import trace

    seen = []

    def func(x):
        seen.append(gc.isenabled())
        return x.sin()

    trace(func, [torch.ones(2)])
    assert seen
    assert not any(seen)
