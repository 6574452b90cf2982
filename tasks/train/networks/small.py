"""Small networks that a CPU trains in seconds."""

from __future__ import annotations

import math

from torch import nn

from winnow.tasks.errors import BadInput
from winnow.tasks.train.networks.base import Network, check

__all__ = ["convnet", "lenet", "mlp"]


def convnet(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """Plain convolutional network: blocks of 3x3 convolution, batch norm, ReLU, max-pooling; spatial mean.

    One block per halving until at most 4 pixels per side are left, at least two; the width starts at 16 for
    images below 16 pixels, else at 32, doubles with each block and stops at 256.

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
    check("convnet", classes, channels, size, pretrained)
    if size < 4:
        raise BadInput(
            f"size = {size}: convnet halves the image twice and needs 4 pixels.", remedy="use network mlp"
        )
    width = 16 if size < 16 else 32
    layers: list[nn.Module] = []
    for _ in range(max(2, math.ceil(math.log2(size)) - 2)):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
        channels, width = width, min(2 * width, 256)
    return Network(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), width=channels, classes=classes
    )


def lenet(*, classes: int, channels: int = 1, size: int = 28, pretrained: bool = False) -> Network:
    """LeNet-5 with ReLU and max-pooling (62,006 parameters at 32x32x3 with 10 classes).

    5x5 convolutions to 6 and 16 planes, each followed by 2x2 max-pooling, then 120 and 84 hidden units. Below
    32 pixels the image is padded by 2, so that 28 pixels become LeCun's 32; larger images have a larger first
    linear layer.

    Args:
        classes: outputs.
        channels: of the images.
        size: side of the images in pixels, 12 or more.
        pretrained: must be False.

    Returns:
        a network with ``features`` (n, 84).

    Raises:
        BadInput: images below 12 pixels, or ``pretrained``.

    >>> sum(p.numel() for p in lenet(classes=10, channels=3, size=32).parameters())
    62006

    References:
        LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 1998, section II.B;
        DeepCore deepcore/nets/lenet.py

    Differences from upstream:
        padding follows the size, not the channels: 32x32x1 is not padded to 36.
    """
    check("lenet", classes, channels, size, pretrained, least=12)
    pad = 2 if size < 32 else 0
    side = ((size + 2 * pad - 4) // 2 - 4) // 2
    layers = [nn.Conv2d(channels, 6, 5, padding=pad), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 16, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()]
    layers += [nn.Linear(16 * side * side, 120), nn.ReLU(inplace=True)]
    layers += [nn.Linear(120, 84), nn.ReLU(inplace=True)]
    return Network(nn.Sequential(*layers), width=84, classes=classes)


def mlp(*, classes: int, channels: int = 1, size: int = 8, pretrained: bool = False) -> Network:
    """Two hidden layers of 128 with ReLU on the flattened image (411,146 parameters at 32x32x3, 10 classes).

    Args:
        classes: outputs.
        channels: of the images.
        size: side of the images in pixels.
        pretrained: must be False.

    Returns:
        a network with ``features`` (n, 128).

    Raises:
        BadInput: ``pretrained``.

    >>> sum(p.numel() for p in mlp(classes=10, channels=3, size=32).parameters())
    411146

    References:
        DeepCore deepcore/nets/mlp.py
    """
    check("mlp", classes, channels, size, pretrained)
    hidden = 128
    layers = [
        nn.Flatten(),
        nn.Linear(channels * size * size, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
    ]
    return Network(nn.Sequential(*layers), width=hidden, classes=classes)
