"""Inception-v3: torchvision's blocks behind a stem that fits the images."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

from winnow.tasks.train.networks.base import IMAGENET_STEM_SIZE, Network, check
from winnow.tasks.train.networks.published import fitted, published, refitted

__all__ = ["inception_v3"]


def inception_v3(*, classes: int, channels: int = 3, size: int = 299, pretrained: bool = False) -> Network:
    """Inception-v3 (21,806,058 parameters at 32x32x3, 10 classes); made for 299 pixels, trains from 28 on.

    From 128 pixels on: torchvision's ``inception_v3`` without the auxiliary classifier, whose loss is not
    used here and which would fit 299 pixels only. Below: the same blocks, a first convolution of stride 1 and
    no pooling before them.

    Args:
        classes: outputs.
        channels: of the images, 1 or 3.
        size: side of the images in pixels, 28 or more.
        pretrained: ImageNet weights from a file on this machine.

    Returns:
        a network with ``features`` (n, 2048) and ``head``; dropout 0.5 on the features in train mode.

    Raises:
        BadInput: images below 28 pixels; ``pretrained`` for small or grey images.
        MissingData: the weights file is not on this machine.

    References:
        Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016; small stem as in
        DeepCore deepcore/nets/inceptionv3.py

    Differences from upstream:
        the pooling branch of the first three blocks ends in a 1x1 convolution, as published (upstream's small
        network: 3x3); upstream's network for large images cannot be built. Pretrained weights expect channels
        in [−1, 1]: the change from ImageNet's mean and standard deviation, which torchvision does in the
        forward pass, is folded into the first layer.
    """
    check("inception_v3", classes, channels, size, pretrained, least=28, published=True)
    body = published("inception_v3", pretrained=pretrained, aux_logits=False, init_weights=not pretrained)
    assert isinstance(body, torchvision.models.Inception3)
    if pretrained:
        _fold_normalisation(body.Conv2d_1a_3x3.conv, body.Conv2d_1a_3x3.bn)
    if size >= IMAGENET_STEM_SIZE:
        return fitted(body, classes=classes, channels=channels)
    body.Conv2d_2a_3x3.conv = refitted(body.Conv2d_2a_3x3.conv, channels=32, padding=1)
    body.maxpool1 = body.maxpool2 = nn.Identity()
    padding = 3 if size < 32 else 1  # 28 pixels become 32
    return fitted(body, classes=classes, channels=channels, stride=1, padding=padding)


@torch.no_grad()
def _fold_normalisation(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Let a first layer without padding take (x − mean)/std of ImageNet in place of 2x − 1, exactly.

    With a = 2 std and b = 2 mean − 1, w · (a z + b) = (a w) · z + Σ b w, and batch norm subtracts its running
    mean from the latter.
    """
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    assert norm.running_mean is not None
    norm.running_mean -= (conv.weight * (2 * mean - 1)).sum((1, 2, 3))
    conv.weight *= 2 * std
