"""What stands around a small derivative, counted in calls of its Python functions: a time is no test.

Each is some 0.2 µs, where a small function takes 30 µs to evaluate and to differentiate. Whoever needs
more of them has to find others to leave out, or to say why not.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac

OWN = str(Path(torchjac.__file__).parent)
NET = nn.Linear(3, 40)
W = torch.ones(3)


def dot(x: Tensor, w: Tensor) -> Tensor:
    return torch.dot(x.sin(), w)


def vector(x: Tensor) -> Tensor:
    return x.sin() * W


CALLS: dict[str, tuple[Callable[[], Any], int]] = {
    "building": (lambda: torchjac.jac(dot), 6),
    "one output": (lambda: torchjac.jac(dot)(W, W), 35),
    "several outputs": (lambda: torchjac.jac(vector)(W), 35),
    "forward mode": (lambda: torchjac.jac(NET, mode="forward")(W), 79),
    "samples of a batch": (lambda: torchjac.batched_jac(vector, per_sample=False)(W[None]), 60),
}


@pytest.mark.skipif(
    not hasattr(torch.autograd, "_get_sequence_nr"), reason="older, and counted otherwise"
)
@pytest.mark.parametrize("name", CALLS)
def test_the_calls_of_a_call(name: str) -> None:
    call, most = CALLS[name]
    for _ in range(3):
        call()
    count = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(OWN)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    assert count <= most, count
