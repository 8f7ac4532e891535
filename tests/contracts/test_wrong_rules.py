"""Derivative rules that PyTorch has wrong, and that are why torchjac checks and chooses as it does.

A test that fails here is good news: the rule was mended, and what torchjac does about it may go.
"""

import pytest
import torch
from torch.func import jacfwd, jacrev

# Where these were seen. Elsewhere nothing is claimed.
SEEN = ("2.0", "2.4", "2.13")
pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(tuple(version + "." for version in SEEN)),
    reason="seen in PyTorch " + ", ".join(SEEN),
)

ORDERS = {
    "forward-over-reverse": lambda f: jacfwd(jacrev(f)),
    "reverse-over-reverse": lambda f: jacrev(jacrev(f)),
    "reverse-over-forward": lambda f: jacrev(jacfwd(f)),
    "forward-over-forward": lambda f: jacfwd(jacfwd(f)),
}
SCALARS = {
    "det": torch.det,
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (3,)).pow(3).sum(),
}


def error(jacobian, trusted):
    return float((jacobian - trusted).abs().max())


# torchjac/planning/verify.py: why "first" compares with a pass that uses no batching rule


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_the_batched_backward_of_cdist_is_wrong(p):
    x, y = torch.randn(3, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    trusted = torch.autograd.functional.jacobian(lambda x: torch.cdist(x, y, p=p), x)
    assert error(jacrev(lambda x: torch.cdist(x, y, p=p))(x), trusted) > 0.1
    assert error(jacrev(lambda x: torch.cdist(x, y, p=p), chunk_size=1)(x), trusted) < 1e-12


# torchjac/planning/modes.py: why no Hessian has forward mode inside by itself


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("order", ["reverse-over-forward", "forward-over-forward"])
def test_hessians_are_wrong_with_forward_mode_inside(name, order):
    x = torch.randn(3, 3, dtype=torch.float64)
    trusted = torch.autograd.functional.hessian(SCALARS[name], x)
    assert error(ORDERS[order](SCALARS[name])(x), trusted) > 0.1


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("order", ["forward-over-reverse", "reverse-over-reverse"])
def test_hessians_are_right_with_reverse_mode_inside(name, order):
    x = torch.randn(3, 3, dtype=torch.float64)
    trusted = torch.autograd.functional.hessian(SCALARS[name], x)
    assert error(ORDERS[order](SCALARS[name])(x), trusted) < 1e-9
