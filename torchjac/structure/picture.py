"""A sparsity pattern as a picture: braille dots for a terminal, Matplotlib for paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["braille", "draw"]

# A braille character is a field of 4 by 2 dots; Unicode counts the dots in this order.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_BLANK = 0x2800
_MOST_DOTS = 80  # along either side: 40 characters, or 20 lines


def braille(
    rows: npt.NDArray[np.int64],
    cols: npt.NDArray[np.int64],
    shape: tuple[int, int],
    most: int = _MOST_DOTS,
) -> str:
    """Draw the entries as dots; a matrix that is too large is shrunk, and keeps its proportions."""
    m, n = shape
    if not m or not n:
        return ""
    shrink = max(m, n, most) / most
    height, width = max(1, round(m / shrink)), max(1, round(n / shrink))
    y, x = rows * height // m, cols * width // n
    cells = np.full((-(-height // 4), -(-width // 2)), _BLANK)
    np.bitwise_or.at(cells, (y // 4, x // 2), _DOTS[y % 4, x % 2])
    return "\n".join("".join(map(chr, line)) for line in cells.tolist())


def draw(
    rows: npt.NDArray[np.int64],
    cols: npt.NDArray[np.int64],
    shape: tuple[int, int],
    ax: Any,
    groups: npt.NDArray[np.int64] | None,
) -> Any:
    """Draw the entries as squares on Matplotlib axes, coloured by ``groups``; return the axes."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    m, n = shape
    # The side of a square in points, for axes some 250 points wide.
    side = max(0.5, 0.8 * 250 / max(m, n, 1))
    color: dict[str, Any] = {"color": "black"}
    if groups is not None:
        color = {"c": groups, "cmap": "turbo"}
    ax.scatter(cols, rows, s=side**2, marker="s", linewidths=0, **color)
    ax.set(xlim=(-0.5, max(n, 1) - 0.5), ylim=(max(m, 1) - 0.5, -0.5), aspect="equal")
    ax.set_title(f"{m}×{n}, {len(rows)} nonzeros")
    return ax
