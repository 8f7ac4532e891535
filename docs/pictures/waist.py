"""A function with a waist, and its Jacobian as a product of two thin matrices."""

from __future__ import annotations

from drawing import COLOURS, Ink, main
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

WIDTHS = (1024, 512, 16, 512, 1024)
FULL = 2.0  # what 1024 is drawn as


def draw(figure: Figure, ink: Ink) -> None:
    """Above the widths of the layers, below the matrices, to one scale."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 8.4), ylim=(0, 6.4), aspect="equal")
    axes.axis("off")

    def block(left: float, bottom: float, width: float, height: float, colour: str) -> None:
        axes.add_patch(Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="none"))

    def say(x: float, y: float, text: str, size: float = 11) -> None:
        axes.text(x, y, text, ha="center", va="center", fontsize=size)

    for k, width in enumerate(WIDTHS):
        height, colour = FULL * width / 1024, COLOURS[1] if width == 16 else ink.grey
        at = 0.9 + 1.6 * k
        block(at, 5.0 - height / 2, 0.3, max(height, 0.08), colour)
        say(at + 0.15, 3.75, str(width))
        if k:
            say(at - 0.65, 5.0, "→", 14)

    block(0.3, 0.9, FULL, FULL, ink.grey)
    say(1.3, 0.5, "J", 12)
    say(2.8, 1.9, "=", 14)
    block(3.6, 0.9, 0.12, FULL, COLOURS[0])
    say(3.66, 0.5, "J₂, 16 passes", 10.5)
    say(4.35, 1.9, "·", 18)
    block(5.1, 1.84, FULL, 0.12, COLOURS[2])
    say(6.1, 1.45, "J₁, 16 passes", 10.5)
    say(1.3, 1.9, "1024 passes", 10)


if __name__ == "__main__":
    main(draw, 4.6, 3.5)
