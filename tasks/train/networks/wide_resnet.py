"""Wide residual networks for small images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from winnow.tasks.train.networks.base import Network, check

__all__ = ["wideresnet16_8", "wideresnet28_10"]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class _PreActivation(nn.Module):
    """x + branch(relu(norm(x))); where the shape changes, a 1x1 convolution of relu(norm(x)) replaces x."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.branch = nn.Sequential(
            _conv(inputs, planes, 3, stride),
            nn.BatchNorm2d(planes),
            nn.ReLU(inplace=True),
            _conv(planes, planes, 3),
        )
        self.shortcut = None if stride == 1 and inputs == planes else _conv(inputs, planes, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.norm(x))
        return self.branch(active) + (x if self.shortcut is None else self.shortcut(active))


def _wide(
    name: str, depth: int, widen: int, classes: int, channels: int, size: int, pretrained: bool
) -> Network:
    check(name, classes, channels, size, pretrained)
    width = 16
    layers: list[nn.Module] = [_conv(channels, width, 3)]
    for stage, plane in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for index in range((depth - 4) // 6):
            layers.append(_PreActivation(width, plane, 2 if stage and not index else 1))
            width = plane
    layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = Network(nn.Sequential(*layers), width=width, classes=classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def wideresnet16_8(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """Wide ResNet-16-8 (10,961,370 parameters, 10 classes); one network for all sizes, made for small images.

    A 3x3 convolution to 16 planes, three stages of pre-activation blocks with 128, 256 and 512 planes, no
    dropout.

    Args:
        classes: outputs.
        channels: of the images.
        size: side of the images in pixels.
        pretrained: must be False.

    Returns:
        a network with ``features`` (n, 512) and ``head``.

    Raises:
        BadInput: ``pretrained``.

    >>> sum(p.numel() for p in wideresnet16_8(classes=10).parameters())
    10961370

    References:
        Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, table 1; DeepCore
        deepcore/nets/wideresnet.py (``WRN168``)

    Differences from upstream:
        none at 32 pixels; 28 are not padded to 32.
    """
    return _wide("wideresnet16_8", 16, 8, classes, channels, size, pretrained)


def wideresnet28_10(*, classes: int, channels: int = 3, size: int = 32, pretrained: bool = False) -> Network:
    """Wide ResNet-28-10 (36,479,194 parameters, 10 classes): 160, 320 and 640 planes, ``features`` (n, 640).

    Args, errors, references and differences as in :func:`wideresnet16_8`; DeepCore's ``WRN2810``.
    """
    return _wide("wideresnet28_10", 28, 10, classes, channels, size, pretrained)
