"""AlexNet: torchvision's from 128 pixels on, a form for small images below."""

from __future__ import annotations

from torch import nn

from winnow.tasks.train.networks.base import IMAGENET_STEM_SIZE, Network, check
from winnow.tasks.train.networks.published import fitted, published

__all__ = ["alexnet"]


def alexnet(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """AlexNet, no batch norm (1,872,202 parameters at 32x32x3, 10 classes); torchvision's from 128 pixels on.

    Below 128 pixels: convolutions 5x5 to 128, 5x5 to 192, 3x3 to 256, 192 and 192 planes with ReLU, 2x2
    max-pooling after the first, second and last, averaged to 4x4, no hidden linear layer and no dropout.
    Without batch norm, a learning rate of 0.1 is too high.

    Args:
        classes: outputs.
        channels: of the images, 1 or 3.
        size: side of the images in pixels, 28 or more.
        pretrained: ImageNet weights from a file on this machine.

    Returns:
        a network with ``features`` (n, 3072), from 128 pixels on (n, 4096), and ``head``.

    Raises:
        BadInput: images below 28 pixels; ``pretrained`` for small or grey images.
        MissingData: the weights file is not on this machine.

    >>> sum(p.numel() for p in alexnet(classes=10).parameters())
    1872202

    References:
        Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012;
        DeepCore deepcore/nets/alexnet.py

    Differences from upstream:
        padding follows the size, not the channels; pretrained weights load (upstream's names do not match the
        file's).
    """
    check("alexnet", classes, channels, size, pretrained, least=28, published=True)
    if size >= IMAGENET_STEM_SIZE:
        return fitted(published("alexnet", pretrained=pretrained), classes=classes, channels=channels)
    layers: list[nn.Module] = []
    planes = channels
    padding = 4 if size < 32 else 2  # 28 pixels become 32
    for width, kernel, pool in (
        (128, 5, True),
        (192, 5, True),
        (256, 3, False),
        (192, 3, False),
        (192, 3, True),
    ):
        layers += [
            nn.Conv2d(planes, width, kernel, padding=kernel // 2 if layers else padding),
            nn.ReLU(inplace=True),
        ]
        layers += [nn.MaxPool2d(2)] if pool else []
        planes = width
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return Network(body, width=planes * 4 * 4, classes=classes)
