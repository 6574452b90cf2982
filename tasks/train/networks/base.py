"""What every network offers: a body that gives penultimate features and a linear head on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.errors import BadInput, MissingData
from tasks.hardware import data_root

__all__ = ["IMAGENET_STEM_SIZE", "Network", "check_shape", "pretrained_file"]

IMAGENET_STEM_SIZE = 128  # from this side on the 7x7/2 stem with max-pooling; CIFAR's 3x3 stem below


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


def check_shape(classes: int, channels: int, size: int) -> None:
    """Refuse a network for no classes, channels or pixels."""
    for name, value in (("classes", classes), ("channels", channels), ("size", size)):
        if not isinstance(value, int) or value < 1:
            raise BadInput(f"{name} = {value!r}: a network needs a positive whole number.")


def pretrained_file(filename: str, source: str) -> Path:
    """The weights file of that name on this machine; nothing is downloaded.

    Raises:
        MissingData: it is in neither of the two places looked at.
    """
    places = [data_root() / "weights" / filename, Path(torch.hub.get_dir()) / "checkpoints" / filename]
    for place in places:
        if place.is_file():
            return place
    raise MissingData(f"pretrained weights {filename} are not on this machine.", remedy=f"put {source} at {places[0]}")


def load_weights(file: Path) -> dict[str, Any]:
    """A checkpoint file's state dict, read without unpickling code."""
    return torch.load(file, map_location="cpu", weights_only=True)
