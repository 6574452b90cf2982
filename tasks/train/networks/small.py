"""Small networks that a CPU trains in seconds."""

from __future__ import annotations

import math

from torch import nn

from tasks.errors import BadInput
from tasks.train.networks.base import Network, check_shape

__all__ = ["convnet", "mlp"]


def convnet(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """Plain convolutional network: blocks of 3x3 convolution, batch norm, ReLU, 2x2 max-pooling, then the mean over space.

    One block a halving until at most 4 pixels a side are left, two at least; the width starts at 16 below 16 pixels and at 32
    from there on, doubles each block and stops at 256.

    Args:
        classes: outputs.
        channels: of the images.
        size: side of the images in pixels, 4 or more.
        pretrained: must be False.

    Returns:
        a network with ``features`` (n, D), D the last width.

    Raises:
        BadInput: images below 4 pixels, or ``pretrained``.

    >>> convnet(classes=10, channels=1, size=8).head.in_features
    32
    >>> convnet(classes=10, size=96).head.in_features
    256
    """
    check_shape(classes, channels, size)
    if pretrained:
        raise BadInput("convnet has no pretrained weights.", remedy="set pretrained=False")
    if size < 4:
        raise BadInput(f"size = {size}: convnet halves the image twice and needs 4 pixels.", remedy="use network mlp")
    width = 16 if size < 16 else 32
    layers: list[nn.Module] = []
    for _ in range(max(2, math.ceil(math.log2(size)) - 2)):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels, width = width, min(2 * width, 256)
    return Network(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), width=channels, classes=classes)


def mlp(*, classes: int, channels: int = 1, size: int = 8, pretrained: bool = False) -> Network:
    """Two hidden layers of 256 with layer norm and ReLU on the flattened image.

    Args:
        classes: outputs.
        channels: of the images.
        size: side of the images in pixels.
        pretrained: must be False.

    Returns:
        a network with ``features`` (n, 256).

    Raises:
        BadInput: ``pretrained``.

    >>> mlp(classes=10, channels=1, size=8).head.in_features
    256
    """
    check_shape(classes, channels, size)
    if pretrained:
        raise BadInput("mlp has no pretrained weights.", remedy="set pretrained=False")
    hidden = 256
    layers = [nn.Flatten(), nn.Linear(channels * size * size, hidden), nn.LayerNorm(hidden), nn.ReLU()]
    return Network(nn.Sequential(*layers, nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU()), width=hidden, classes=classes)
