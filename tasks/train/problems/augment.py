"""Augmentation arithmetic: what an epoch draws depends on (seed, epoch, row) alone.

An epoch's offsets and flips come from one generator on the CPU, a number for each row. So a resumed run needs
no generator states, and resident and streamed sets see the same images, on all devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from winnow.tasks.hardware import torch_generator

__all__ = [
    "Augment",
    "Draws",
    "Normaliser",
    "View",
    "centre_box",
    "crop_flip",
    "draws_of",
    "random_resized_crop",
]

Draws = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # top, left, flip; each (n,)
Augment = Literal["none", "crop", "crop_flip", "imagenet"]


@dataclass(frozen=True)
class View:
    """How a network sees images.

    Attributes:
        mean, std: per channel, of pixels in [0, 1].
        augment: for training batches; see :class:`~winnow.tasks.train.recipe.Recipe`.
        pad: pixels of reflect padding for ``crop`` and ``crop_flip``.
        size: side of what the network sees; None keeps the images' own, or takes 224 if they differ.
        margin: without random resized crops, images are resized to ``size`` times this on the shorter side
            and their centre is taken.
        seed: for augmentation.
    """

    mean: Sequence[float]
    std: Sequence[float]
    augment: Augment = "none"
    pad: int = 0
    size: int | None = None
    margin: float = 1.0
    seed: int = 0

    @property
    def crops(self) -> bool:
        """Whether images are cropped on the device."""
        return self.augment in ("crop", "crop_flip")

    @property
    def resizes_at_random(self) -> bool:
        """Whether images are cropped as they are read."""
        return self.augment == "imagenet"

    def draws(self, n: int, epoch: int) -> Draws | None:
        """The epoch's crops of n rows, if there are any."""
        return draws_of(n, self.pad, self.augment == "crop_flip", self.seed, epoch) if self.crops else None


def draws_of(n: int, pad: int, flip: bool, seed: int, epoch: int) -> Draws:
    """Crop offsets in [0, 2 pad] and flips of one epoch, for each row, on the CPU."""
    generator = torch_generator(seed, "augment", str(epoch))
    offsets = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    flips = torch.zeros(n, dtype=torch.bool)
    if flip:
        flips = torch.randint(0, 2, (n,), generator=generator, dtype=torch.bool)
    return offsets[0], offsets[1], flips


def _reflected(size: int, pad: int, device: torch.device) -> torch.Tensor:
    position = (torch.arange(size + 2 * pad, device=device) - pad).abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def crop_flip(images: torch.Tensor, rows: torch.Tensor, draws: Draws, pad: int) -> torch.Tensor:
    """Random crops of reflect-padded images, flipped where drawn, in one gather.

    out[i, y, x] = padded(images[rows[i]])[top_i + y, left_i + x'] with x' = W − 1 − x where flipped, else x.
    The padded image is never made: padding is a table of reflected positions.

    Args:
        images: uint8 (N, H, W, C).
        rows: int64 (b,), rows of ``images``.
        draws: top, left int64 (b,) in [0, 2 pad], flip bool (b,).
        pad: pixels of padding, below H and W.

    Returns:
        uint8 (b, H, W, C).

    >>> image = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1).expand(1, 2, 4, 1).contiguous()
    >>> one = lambda left, flip: (torch.tensor([1]), torch.tensor([left]), torch.tensor([flip]))
    >>> crop_flip(image, torch.tensor([0]), one(0, False), pad=1)[0, 0, :, 0].tolist()
    [1, 0, 1, 2]
    >>> crop_flip(image, torch.tensor([0]), one(1, True), pad=1)[0, 0, :, 0].tolist()
    [3, 2, 1, 0]

    References:
        torchvision RandomCrop(size, pad, padding_mode="reflect"), RandomHorizontalFlip
    """
    count, height, width, channels = images.shape
    top, left, flip = draws
    across = torch.arange(width, device=images.device)
    mirrored = torch.where(flip[:, None], width - 1 - across, across)
    x = _reflected(width, pad, images.device)[left[:, None] + mirrored]
    y = _reflected(height, pad, images.device)[top[:, None] + torch.arange(height, device=images.device)]
    pixel = ((rows[:, None] * height + y) * width)[:, :, None] + x[:, None, :]
    pixels = images.view(count * height * width, channels).index_select(0, pixel.view(-1))
    return pixels.view(len(rows), height, width, channels)


class Normaliser:
    """(image / 255 − mean) / std as one multiply-add, channels last in memory, channels first in shape."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        scale = 1 / (255 * np.asarray(std, np.float64))
        shift = -np.asarray(mean, np.float64) / np.asarray(std, np.float64)
        self.scale = torch.tensor(scale, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.shift = torch.tensor(shift, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2).to(torch.float32).mul_(self.scale).add_(self.shift)


def random_resized_crop(
    height: int, width: int, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """Box (left, upper, right, lower) of a random resized crop: area 8 to 100 %, aspect 3/4 to 4/3.

    >>> random_resized_crop(100, 50, np.random.default_rng(0))
    (24, 12, 45, 40)

    References:
        Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6; torchvision RandomResizedCrop
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * generator.uniform(0.08, 1.0)
        aspect = math.exp(generator.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            upper = int(generator.integers(0, height - h + 1))
            left = int(generator.integers(0, width - w + 1))
            return left, upper, left + w, upper + h
    w = min(width, round(height * high))
    h = min(height, round(width / low))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def centre_box(height: int, width: int, size: int, shorter: int) -> tuple[float, float, float, float]:
    """Box that becomes the ``size`` centre of the image once its shorter side is ``shorter``."""
    side = min(height, width) * size / shorter
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side
