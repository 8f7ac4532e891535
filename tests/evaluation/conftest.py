import pytest
import torch

from tests.counted import Counted

functorch = torch._C._functorch


class Levels:
    """Every vmap level that was opened, and a memory that is too small for some of them."""

    def __init__(self):
        self.sizes = []
        self.limit = None
        """Passes with more seeds than this run out of memory, at their end."""
        self._open = []

    def patch(self, monkeypatch):
        enter, leave = functorch._vmap_increment_nesting, functorch._vmap_decrement_nesting

        def increment(size, randomness):
            self.sizes.append(size)
            self._open.append(size)
            return enter(size, randomness)

        def decrement():
            leave()
            if self._open.pop() > (self.limit or float("inf")):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory (simulated)")

        torch.func.vmap(torch.neg)(torch.zeros(1))  # loads what the first vmap of all loads
        monkeypatch.setattr(functorch, "_vmap_increment_nesting", increment)
        monkeypatch.setattr(functorch, "_vmap_decrement_nesting", decrement)


@pytest.fixture
def levels(monkeypatch):
    spy = Levels()
    spy.patch(monkeypatch)
    return spy


@pytest.fixture
def counted():
    return Counted
