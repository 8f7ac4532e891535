"""What the tests of plans differentiate: a curve and a network at a point, in every layout."""

import torch
from torch import Tensor, nn

X = torch.tensor([0.3, -0.8, 1.2], dtype=torch.float64)
MATRIX = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
LAYOUTS = [torch.strided, torch.sparse_coo, torch.sparse_csr]


def curve(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1], x.sin().sum(), (x[1] / (2 + x[0] ** 2)).tanh()])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(MATRIX.clone())
        self.register_buffer("shift", torch.linspace(0, 1, 5, dtype=torch.float64))
        self.rate = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x * self.rate + self.shift).sin()
