"""What functions capture: numbers, modules, objects with attributes, slots and methods."""

import dataclasses
import types

import torch
from torch import nn

alpha = 2.0
settings = types.ModuleType("settings")
settings.alpha, settings.other = 2.0, 2.0


def closing_over(value):
    return lambda x: value


def mlp():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))


@dataclasses.dataclass
class Config:
    scale: float = 2.0
    offset: torch.Tensor = None


class Slotted:
    __slots__ = ("__hidden", "scale")

    def __init__(self):
        self.scale, self.__hidden = 2.0, [1.0]

    def hide(self):
        self.__hidden[0] = 2.0


class Scaled:
    factor = 2.0

    def __init__(self):
        self.calls, self.inner = 0, Config()

    def __call__(self, x):
        return self.scale(x) * self.half

    def scale(self, x):
        return x * self.factor * alpha * self.inner.scale

    @property
    def half(self):
        return settings.alpha / 2


class Net(nn.Module):
    gain = 1.0

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.register_buffer("shift", torch.zeros(2))
        self.rate = 0.5

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) * self.rate * self.gain
        return x + self.shift
