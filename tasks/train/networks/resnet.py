"""Residual networks: CIFAR's 3x3 stem for small images, torchvision's networks from 128 pixels on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from winnow.tasks.train.networks.base import IMAGENET_STEM_SIZE, Network, check
from winnow.tasks.train.networks.published import fitted, published

__all__ = [
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wideresnet50_2",
]


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class _Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, branch: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def _basic(inputs: int, planes: int, stride: int) -> tuple[nn.Module, int]:
    branch = nn.Sequential(
        _conv_bn(inputs, planes, 3, stride), nn.ReLU(inplace=True), _conv_bn(planes, planes, 3)
    )
    return _Residual(branch, inputs, planes, stride), planes


def _bottleneck(inputs: int, planes: int, stride: int, *, widen: int = 1) -> tuple[nn.Module, int]:
    branch = nn.Sequential(
        _conv_bn(inputs, widen * planes, 1),
        nn.ReLU(inplace=True),
        _conv_bn(widen * planes, widen * planes, 3, stride),
        nn.ReLU(inplace=True),
        _conv_bn(widen * planes, 4 * planes, 1),
    )
    return _Residual(branch, inputs, 4 * planes, stride), 4 * planes


def _small(block, blocks: Sequence[int], planes: Sequence[int], *, classes: int, channels: int) -> Network:
    width = planes[0]
    layers: list[nn.Module] = [_conv_bn(channels, width, 3), nn.ReLU(inplace=True)]
    for stage, (count, plane) in enumerate(zip(blocks, planes, strict=True)):
        for index in range(count):
            layer, width = block(width, plane, 2 if stage and not index else 1)
            layers.append(layer)
    return Network(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), width=width, classes=classes
    )


def _resnet(
    name: str, block, blocks: Sequence[int], classes: int, channels: int, size: int, pretrained: bool
) -> Network:
    check(name, classes, channels, size, pretrained, published=True)
    if size >= IMAGENET_STEM_SIZE:
        return fitted(published(name, pretrained=pretrained), classes=classes, channels=channels)
    return _small(block, blocks, (64, 128, 256, 512), classes=classes, channels=channels)


def resnet18(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """ResNet-18; the network of the CIFAR tables of CCS, D2 and ELFS (11,173,962 parameters with 10 classes).

    Below 128 pixels: a 3x3 stem without max-pooling, planes 64-128-256-512, 1x1 convolution shortcuts,
    torch's default initialisation. From 128 pixels on: torchvision's ``resnet18``.

    Args:
        classes: outputs.
        channels: of the images, 1 or 3.
        size: side of the images in pixels.
        pretrained: ImageNet weights from a file on this machine.

    Returns:
        a network with ``features`` (n, 512) and ``head``.

    Raises:
        BadInput: ``pretrained`` for small or grey images.
        MissingData: the weights file is not on this machine.

    >>> sum(p.numel() for p in resnet18(classes=10).parameters())
    11173962

    References:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016; CIFAR stem as in
        Coverage-centric-coreset-selection core/model_generator/resnet.py

    Differences from upstream:
        none in the small network. Initialisation draws from the given seed; upstream sets none.
    """
    return _resnet("resnet18", _basic, (2, 2, 2, 2), classes, channels, size, pretrained)


def resnet34(*, classes: int, channels: int = 3, size: int = 224, pretrained: bool = False) -> Network:
    """ResNet-34; torchvision's from 128 pixels on (ELFS's and CCS's ImageNet tables), CIFAR stem below.

    Args and errors as in :func:`resnet18`.

    >>> resnet34(classes=2, size=32).head.in_features
    512

    References:
        He et al., CVPR 2016; elfs train_imagenet.py
    """
    return _resnet("resnet34", _basic, (3, 4, 6, 3), classes, channels, size, pretrained)


def resnet50(*, classes: int, channels: int = 3, size: int = 224, pretrained: bool = False) -> Network:
    """ResNet-50 (bottleneck blocks); torchvision's from 128 pixels on, CIFAR stem below.

    Args and errors as in :func:`resnet18`.

    >>> resnet50(classes=2, size=32).head.in_features
    2048

    References:
        He et al., CVPR 2016
    """
    return _resnet("resnet50", _bottleneck, (3, 4, 6, 3), classes, channels, size, pretrained)


def resnet101(*, classes: int, channels: int = 3, size: int = 224, pretrained: bool = False) -> Network:
    """ResNet-101 (bottleneck blocks); torchvision's from 128 pixels on, CIFAR stem below.

    Args and errors as in :func:`resnet18`; ``features`` (n, 2048).

    References:
        He et al., CVPR 2016; DeepCore deepcore/nets/resnet.py
    """
    return _resnet("resnet101", _bottleneck, (3, 4, 23, 3), classes, channels, size, pretrained)


def resnet152(*, classes: int, channels: int = 3, size: int = 224, pretrained: bool = False) -> Network:
    """ResNet-152 (bottleneck blocks); torchvision's from 128 pixels on, CIFAR stem below.

    Args and errors as in :func:`resnet18`; ``features`` (n, 2048).

    References:
        He et al., CVPR 2016; DeepCore deepcore/nets/resnet.py
    """
    return _resnet("resnet152", _bottleneck, (3, 8, 36, 3), classes, channels, size, pretrained)


def wideresnet50_2(*, classes: int, channels: int = 3, size: int = 224, pretrained: bool = False) -> Network:
    """Wide ResNet-50-2, 3x3 convolutions twice as wide; torchvision's from 128 pixels on, CIFAR stem below.

    Args and errors as in :func:`resnet18`; ``features`` (n, 2048).

    References:
        Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, section 3.4; DeepCore
        deepcore/nets/wideresnet.py (``WRN502``)

    Differences from upstream:
        upstream takes 224 pixels only.
    """
    wide = partial(_bottleneck, widen=2)
    return _resnet("wide_resnet50_2", wide, (3, 4, 6, 3), classes, channels, size, pretrained)


def resnet20(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """ResNet-20 for small images: planes 16-32-64, three blocks each; a proxy that one CPU can train.

    Args and errors as in :func:`resnet18`; there are no pretrained weights.

    >>> resnet20(classes=10).head.in_features
    64

    References:
        He et al., CVPR 2016, section 4.2

    Differences from upstream:
        1x1 convolution shortcuts (option B) instead of zero padding.
    """
    check("resnet20", classes, channels, size, pretrained)
    return _small(_basic, (3, 3, 3), (16, 32, 64), classes=classes, channels=channels)


def resnet8(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """ResNet-8 for small images: planes 16-32-64, one block each.

    Args and errors as in :func:`resnet20`.

    >>> sum(p.numel() for p in resnet8(classes=10).parameters())
    78042

    References:
        He et al., CVPR 2016, section 4.2 with n = 1
    """
    check("resnet8", classes, channels, size, pretrained)
    return _small(_basic, (1, 1, 1), (16, 32, 64), classes=classes, channels=channels)
