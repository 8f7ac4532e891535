"""Counting evaluations and passes."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from torchjac.evaluation import engines


class Spy:
    """Counts evaluations of a function, and the passes of the autograd engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.evaluations = self.passes = 0
        run = engines._run_backward

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            return run(*args, **kwargs)

        monkeypatch.setattr(engines, "_run_backward", counted)

    def watch(self, func: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def watched(x: Tensor) -> Tensor:
            self.evaluations += 1
            return func(x)

        return watched

    def since(self) -> tuple[int, int]:
        """Evaluations and passes since this was asked last."""
        counts = self.evaluations, self.passes
        self.evaluations = self.passes = 0
        return counts
