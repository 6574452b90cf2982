"""MobileNetV3: torchvision's, with a stem of stride 1 for small images."""

from __future__ import annotations

from torch import nn

from winnow.tasks.train.networks.base import IMAGENET_STEM_SIZE, Network, check
from winnow.tasks.train.networks.published import fitted, published

__all__ = ["mobilenet_v3_large", "mobilenet_v3_small"]


def _mobilenet(name: str, classes: int, channels: int, size: int, pretrained: bool) -> Network:
    check(name, classes, channels, size, pretrained, least=28, published=True)
    if size >= IMAGENET_STEM_SIZE:
        return fitted(published(name, pretrained=pretrained), classes=classes, channels=channels)
    # torchvision's batch norm remembers a hundred steps, for ImageNet; small coresets train for few more
    return fitted(published(name, norm_layer=nn.BatchNorm2d), classes=classes, channels=channels, stride=1)


def mobilenet_v3_small(
    *, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False
) -> Network:
    """MobileNetV3-Small (1,528,106 parameters with 10 classes); torchvision's from 128 pixels on.

    Below 128 pixels: the same network with a first convolution of stride 1, so that 32 pixels end as 2x2, and
    torch's default batch norm.

    Args:
        classes: outputs.
        channels: of the images, 1 or 3.
        size: side of the images in pixels, 28 or more.
        pretrained: ImageNet weights from a file on this machine.

    Returns:
        a network with ``features`` (n, 1024) and ``head``; dropout 0.2 on the features in train mode.

    Raises:
        BadInput: images below 28 pixels; ``pretrained`` for small or grey images.
        MissingData: the weights file is not on this machine.

    >>> sum(p.numel() for p in mobilenet_v3_small(classes=10).parameters())
    1528106

    References:
        Howard et al., Searching for MobileNetV3, ICCV 2019, table 2; DeepCore deepcore/nets/mobilenetv3.py

    Differences from upstream:
        upstream keeps stride 2 for small images: 32 pixels end as one, on which batch norm cannot train with
        one sample. Pretrained weights load (upstream's names do not match the file's).
    """
    return _mobilenet("mobilenet_v3_small", classes, channels, size, pretrained)


def mobilenet_v3_large(
    *, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False
) -> Network:
    """MobileNetV3-Large (4,214,842 parameters with 10 classes); torchvision's from 128 pixels on.

    Args, errors, references and differences as in :func:`mobilenet_v3_small`; ``features`` (n, 1280).
    """
    return _mobilenet("mobilenet_v3_large", classes, channels, size, pretrained)
