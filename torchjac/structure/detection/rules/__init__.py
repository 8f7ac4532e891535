"""The rules, one file for each family of ops; importing this package registers them."""

from torchjac.structure.detection.rules import (
    convolution,
    elementwise,
    indexing,
    linalg,
    losses,
    movement,
    products,
    reductions,
    windows,
)

__all__ = [
    "convolution",
    "elementwise",
    "indexing",
    "linalg",
    "losses",
    "movement",
    "products",
    "reductions",
    "windows",
]
