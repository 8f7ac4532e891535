"""What torch.compile leaves on what it makes, and when it works below a dispatch mode.

`torchjac.planning.captured.reach` knows a compiled function by an attribute; `torchjac.planning.look`
asks for a mode under which compiled functions stay compiled.
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.sparse import DETECTS

pytestmark = pytest.mark.skipif(not DETECTS, reason="torch.compile is refused by this PyTorch")

X = torch.linspace(-1, 1, 4)


class Under(TorchDispatchMode):
    """Changes nothing, and lets torch.compile work below."""

    @classmethod
    def ignore_compile_internals(cls):
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_what_is_compiled_is_marked_and_the_rest_is_not():
    def is_marked(func):
        return "_torchdynamo_orig_callable" in vars(func)

    def func(x):
        return x.sin()

    assert is_marked(torch.compile(func, backend="eager"))
    assert is_marked(torch.compile(nn.Linear(4, 3), backend="eager").forward)
    assert not is_marked(func)


def test_a_function_first_called_below_a_mode_is_compiled_by_its_leave():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def func(x):
        return x.sin() * x

    compiled = torch.compile(func, backend=backend, fullgraph=True)
    with Under():
        torch.testing.assert_close(compiled(X), func(X))
    torch.testing.assert_close(compiled(X), func(X))
    assert graphs
