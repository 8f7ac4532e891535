"""What a convolutional network looks at: pictures of its Jacobian.

    python examples/conv_jacobian.py [picture.png]

A small network learns to tell crosses, rings and frames apart, in noise and anywhere in the image. Two
Jacobians are then drawn. That of the class scores by the pixels, an image for each class, is the saliency
(Simonyan, Vedaldi & Zisserman, *Deep inside convolutional networks*, 2014): it lies where the shape is. That
of one unit in the middle of the feature map is its receptive field: nothing outside of what kernels and
strides allow, and inside a blob that fades towards the edges (Luo et al., *Understanding the effective
receptive field in deep convolutional neural networks*, 2016). `batched_jac` of the whole batch takes one
backward pass for each class, not for each class and image.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, max_pool2d

import torchjac

SIZE, RADIUS, NOISE = 32, 6, 0.3
REACH = 5 + (5 - 1) + 2 * (3 - 1)  # pixels that the last feature sees, by kernels and strides
CLASSES = ("cross", "ring", "frame")


def shapes(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (count, 1, SIZE, SIZE) with one shape each, its mask, and its class."""
    labels = torch.arange(count) % len(CLASSES)
    at = torch.arange(SIZE)
    centres = torch.randint(RADIUS, SIZE - RADIUS, (count, 2, 1, 1))
    # Distances of all pixels from the centre down, (count, SIZE, 1), and across, (count, 1, SIZE).
    y, x = (at[:, None] - centres[:, 0]).abs(), (at[None, :] - centres[:, 1]).abs()
    near, far = torch.minimum(x, y), torch.maximum(x, y)
    distance = (x**2 + y**2).sqrt()
    # All about 70 pixels large, so that it is the shape that tells them apart.
    drawn = torch.stack(
        [
            (near <= 1) & (far <= RADIUS),
            (distance - RADIUS + 1).abs() <= 1,
            (far - RADIUS + 1.5).abs() < 1,
        ]
    )
    masks = drawn[labels, torch.arange(count)]
    return (masks + NOISE * torch.randn(count, SIZE, SIZE))[:, None], masks, labels


def network() -> torch.nn.Sequential:
    """Features by three convolutions, then their mean over the image, then a score for each class."""
    features = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 12, 5, stride=2, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(12, 24, 3, padding=1),
        torch.nn.ReLU(),
    )
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return torch.nn.Sequential(features, pool, torch.nn.Linear(24, len(CLASSES)))


def train(net: torch.nn.Module, steps: int) -> None:
    """Fit to new images at every step."""
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        images, _, labels = shapes(60)
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()


def saliency(net: torch.nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The scores (B, C), and how each changes with every pixel, (B, C, SIZE, SIZE)."""
    with torch.no_grad():
        scores, J = torchjac.batched_jac(net, per_sample=False, return_value=True)(images)
    # Only differences of scores say anything of a class, so their mean is taken off.
    return scores, (J - J.mean(dim=1, keepdim=True))[:, :, 0]


def receptive_field(features: torch.nn.Module, images: Tensor) -> Tensor:
    """How much the pixels (SIZE, SIZE) matter to the unit in the middle, over channels and images."""

    def middle(images: Tensor) -> Tensor:
        maps = features(images)
        return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]

    with torch.no_grad():
        J = torchjac.batched_jac(middle, per_sample=False)(images)  # (B, channels, 1, SIZE, SIZE)
    return J.square().mean(dim=(0, 1, 2)).sqrt()


def main(picture: str | None = None, steps: int = 300, tests: int = 300) -> None:
    """Train, look, and measure what is seen."""
    torch.manual_seed(0)
    net, began = network(), time.perf_counter()
    train(net, steps)
    seconds = time.perf_counter() - began
    images, masks, labels = shapes(tests)
    scores, J = saliency(net, images)
    right = float((scores.argmax(1) == labels).double().mean())
    print(
        f"{steps} steps: {right:.0%} of {tests} new images classified rightly; {seconds:.0f} seconds"
    )
    assert right > 0.8, right

    energy = J[torch.arange(tests), labels].square()
    # The shape and two pixels round it: the first kernel reaches as far.
    near = max_pool2d(masks.float()[:, None], 5, stride=1, padding=2)[:, 0]
    share, area = float((energy * near).sum() / energy.sum()), float(near.mean())
    print(f"saliency: {share:.0%} of it on the shape and its edge, {area:.0%} of the image")
    assert share > 2 * area, (share, area)

    field = receptive_field(net[0], images)
    reach = int((field > 0).any(0).sum())
    print(
        f"receptive field: {reach} pixels wide, {REACH} by kernels and strides; half of it in ",
        end="",
    )
    # Half of the energy is in the largest so many pixels.
    shares = field.square().flatten().sort(descending=True).values.cumsum(0) / field.square().sum()
    half = int((shares < 0.5).sum()) + 1
    print(f"{half} of {REACH**2} pixels")
    assert reach == REACH, reach
    assert half < REACH**2 / 4, half
    if picture is not None:
        draw(images, J, field, picture)


def draw(images: Tensor, J: Tensor, field: Tensor, picture: str) -> None:
    """An image of every class, its saliencies, and the receptive field."""
    import matplotlib.pyplot as plt

    # No background and grey letters, for light pages and for dark ones.
    with plt.rc_context({"text.color": "0.5", "font.size": 9}):
        figure, axes = plt.subplots(len(CLASSES), 5, figsize=(8, 5), layout="constrained")
        for row, name in enumerate(CLASSES):
            panels, most = axes[row], float(J[row].abs().max())
            panels[0].imshow(images[row, 0].numpy(), cmap="gray")
            panels[0].set_title(f"a {name}")
            for column, score in enumerate(CLASSES):
                value = J[row, column].abs().numpy()
                panels[1 + column].imshow(value, cmap="magma", vmin=0, vmax=most)
                panels[1 + column].set_title(f"|∂ {score} / ∂ pixels|")
        axes[1, 4].imshow(field.numpy(), cmap="magma")
        axes[1, 4].set_title("receptive field")
        for panel in axes.flat:
            panel.set_axis_off()
        figure.savefig(picture, dpi=110, transparent=True)
        plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:2])
