"""VGG with batch norm: torchvision's from 128 pixels on, its convolutions and one linear layer below."""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from winnow.tasks.train.networks.base import IMAGENET_STEM_SIZE, Network, check
from winnow.tasks.train.networks.published import fitted, published, refitted

__all__ = ["vgg11", "vgg13", "vgg16", "vgg19"]


def _vgg(name: str, layers: str, classes: int, channels: int, size: int, pretrained: bool) -> Network:
    check(name, classes, channels, size, pretrained, least=28, published=True)
    if size >= IMAGENET_STEM_SIZE:
        return fitted(published(f"{name}_bn", pretrained=pretrained), classes=classes, channels=channels)
    convolutions = make_layers(cfgs[layers], batch_norm=True)
    padding = 3 if size < 32 else 1  # 28 pixels become 32, which five halvings bring to one
    convolutions[0] = refitted(convolutions[0], channels=channels, padding=padding)
    return Network(
        nn.Sequential(convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten()), width=512, classes=classes
    )


def vgg11(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """VGG-11 with batch norm (9,231,114 parameters at 32x32x3, 10 classes); ``vgg11_bn`` from 128 pixels on.

    Below 128 pixels: the same convolutions, the mean over space, one linear layer, no dropout.

    Args:
        classes: outputs.
        channels: of the images, 1 or 3.
        size: side of the images in pixels, 28 or more.
        pretrained: ImageNet weights from a file on this machine.

    Returns:
        a network with ``features`` (n, 512), from 128 pixels on (n, 4096), and ``head``.

    Raises:
        BadInput: images below 28 pixels; ``pretrained`` for small or grey images.
        MissingData: the weights file is not on this machine.

    >>> sum(p.numel() for p in vgg11(classes=10).parameters())
    9231114

    References:
        Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
        table 1; DeepCore deepcore/nets/vgg.py

    Differences from upstream:
        padding follows the size, not the channels; pretrained weights load (upstream's names do not match the
        file's).
    """
    return _vgg("vgg11", "A", classes, channels, size, pretrained)


def vgg13(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """VGG-13 with batch norm; torchvision's ``vgg13_bn`` from 128 pixels on.

    Args, errors and references as in :func:`vgg11`.
    """
    return _vgg("vgg13", "B", classes, channels, size, pretrained)


def vgg16(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """VGG-16 with batch norm; torchvision's ``vgg16_bn`` from 128 pixels on.

    Args, errors and references as in :func:`vgg11`.
    """
    return _vgg("vgg16", "D", classes, channels, size, pretrained)


def vgg19(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """VGG-19 with batch norm; torchvision's ``vgg19_bn`` from 128 pixels on.

    Args, errors and references as in :func:`vgg11`.
    """
    return _vgg("vgg19", "E", classes, channels, size, pretrained)
