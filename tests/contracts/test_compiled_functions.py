"""What torch.compile leaves on what it makes, and what it does below a dispatch mode.

`torchjac.planning.captured.reach` knows a compiled function by an attribute;
`torchjac.foundations.compiler` has compiled functions run as they were written.
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.sparse import DETECTS
from torchjac.foundations.compiler import uncompiled

pytestmark = pytest.mark.skipif(not DETECTS, reason="torch.compile is refused by this PyTorch")

X = torch.linspace(-1, 1, 4)


needs_stances = pytest.mark.skipif(
    not hasattr(getattr(torch, "compiler", None), "set_stance"),
    reason="this PyTorch has no stances",
)


class Nothing(TorchDispatchMode):
    """Changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def counted(fullgraph):
    """A compiled function, and the graphs that were made of it so far."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    return torch.compile(lambda x: x.sin(), fullgraph=fullgraph, backend=backend), graphs


def test_what_is_compiled_is_marked_and_the_rest_is_not():
    def is_marked(func):
        return "_torchdynamo_orig_callable" in vars(func)

    def func(x):
        return x.sin()

    assert is_marked(torch.compile(func, backend="eager"))
    assert is_marked(torch.compile(nn.Linear(4, 3), backend="eager").forward)
    assert not is_marked(func)


@needs_stances
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_function_that_runs_as_written_below_a_mode_is_compiled_later(fullgraph):
    """`torchjac.foundations.compiler` does what `torch.compiler.set_stance` does, without its refusals."""
    from torch._dynamo import eval_frame

    compiled, graphs = counted(fullgraph)
    with uncompiled(), Nothing():
        assert eval_frame._stance == eval_frame.DynamoStance("force_eager")
        torch.testing.assert_close(compiled(X), X.sin())
    assert eval_frame._stance == eval_frame.DynamoStance("default")
    assert not graphs
    torch.testing.assert_close(compiled(X), X.sin())
    assert graphs


@needs_stances
@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14),
    reason="since PyTorch 2.14 only the transforms of torch.func have it given up",
)
def test_one_that_is_met_below_a_mode_is_given_up():
    """If this fails, `torchjac.foundations.compiler` is not needed any more."""
    compiled, graphs = counted(fullgraph=False)
    with Nothing():
        compiled(X)
    torch.testing.assert_close(compiled(X), X.sin())
    assert not graphs
