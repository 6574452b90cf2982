"""What every network has: a body that gives penultimate features and a linear head on them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from winnow.tasks.errors import BadInput, MissingData
from winnow.tasks.hardware import data_root

__all__ = ["IMAGENET_STEM_SIZE", "Network", "check", "pretrained_file"]

IMAGENET_STEM_SIZE = 128  # from this side on the published ImageNet network; below, its form for small images


class Network(nn.Module):
    """A body and a linear head: ``logits = head(features(images))``.

    >>> net = Network(nn.Flatten(), width=12, classes=3)
    >>> net(torch.zeros(2, 3, 2, 2)).shape, net.features(torch.zeros(2, 3, 2, 2)).shape
    (torch.Size([2, 3]), torch.Size([2, 12]))
    """

    def __init__(self, body: nn.Module, *, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate features (n, D) of images (n, C, H, W)."""
        return self.body(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def check(
    name: str,
    classes: int,
    channels: int,
    size: int,
    pretrained: bool = False,
    *,
    least: int = 1,
    published: bool = False,
) -> None:
    """Refuse what a network is not made for.

    Args:
        name: of the network.
        classes, channels, size: positive whole numbers.
        pretrained: whether weights are asked for.
        least: side in pixels below which the network would halve images to nothing.
        published: whether there are ImageNet weights, for images that the ImageNet network is made for.

    >>> check("vgg16", 10, 3, 8, least=28)
    Traceback (most recent call last):
    winnow.BadInput: size = 8: vgg16 needs 28 pixels.
      next: enlarge the images by the recipe's size, or use network convnet
    """
    for what, value in (("classes", classes), ("channels", channels), ("size", size)):
        if not isinstance(value, int) or value < 1:
            raise BadInput(f"{what} = {value!r}: a network needs a positive whole number.")
    if size < least:
        raise BadInput(
            f"size = {size}: {name} needs {least} pixels.",
            remedy="enlarge the images by the recipe's size, or use network convnet",
        )
    if pretrained and not published:
        raise BadInput(f"{name} has no pretrained weights.", remedy="set pretrained=False")
    if pretrained and (size < IMAGENET_STEM_SIZE or channels != 3):
        raise BadInput(
            f"pretrained {name} is for colour images of {IMAGENET_STEM_SIZE} pixels and more, these have "
            f"{channels} channels of {size}.",
            remedy="set pretrained=False, or enlarge the images by the recipe's size",
        )


def pretrained_file(filename: str, source: str) -> Path:
    """The weights file of that name on this machine; nothing is downloaded.

    Raises:
        MissingData: it is in neither of the two places searched.
    """
    places = [data_root() / "weights" / filename, Path(torch.hub.get_dir()) / "checkpoints" / filename]
    for path in places:
        if path.is_file():
            return path
    raise MissingData(
        f"pretrained weights {filename} are not on this machine.", remedy=f"put {source} at {places[0]}"
    )
