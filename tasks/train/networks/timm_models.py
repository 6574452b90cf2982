"""Any network of the timm library."""

from __future__ import annotations

import timm
import torch

from winnow.tasks.errors import BadInput, UnknownName, did_you_mean
from winnow.tasks.train.networks.base import Network, check, pretrained_file

__all__ = ["timm_network"]


def timm_network(
    *, variant: str, classes: int, channels: int = 3, size: int = 224, pretrained: bool = False
) -> Network:
    """Any network of the timm library, by timm's name, for example ``timm:vit_tiny_patch16_224``.

    Networks with a fixed image size (transformers) are built for ``size``.

    Args:
        variant: timm's name for the architecture.
        classes: outputs.
        channels: of the images.
        size: side of the images in pixels.
        pretrained: weights from the file ``weights/timm/<variant>.safetensors`` in the data folder.

    Returns:
        a network with ``features`` (n, D), the pooled features before timm's classifier.

    Raises:
        UnknownName: timm has no such network.
        BadInput: timm cannot build it for these images.
        MissingData: the weights file is not on this machine.

    >>> timm_network(variant="resnet10t", classes=10, size=64).head.out_features
    10

    References:
        Wightman, PyTorch Image Models

    Differences from upstream:
        dropout and stochastic depth keep timm's defaults (none for most networks); where a network has them,
        they draw from torch's global generator, and a resumed run is not bit-identical.
    """
    check(variant, classes, channels, size)
    if not timm.is_model(variant):
        raise UnknownName(
            f"{variant!r} is not a network of timm {timm.__version__}."
            f"{did_you_mean(variant, timm.list_models())}",
            remedy="timm.list_models() has them all",
        )
    options: dict = {"in_chans": channels, "num_classes": 0}
    if pretrained:
        file = pretrained_file(
            f"timm/{variant}.safetensors", f"timm's weights of {variant} (model.safetensors)"
        )
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    if timm.get_pretrained_cfg_value(variant, "fixed_input_size"):
        options["img_size"] = size
    try:
        body = timm.create_model(variant, **options)
        # timm builds some networks that then fail on such small images, and names their width in several ways
        with torch.no_grad():
            width = body.eval()(torch.zeros(1, channels, size, size)).shape[1]
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise BadInput(
            f"timm cannot build {variant} for {channels} channels of {size} pixels: {error}"
        ) from error
    return Network(body.train(), width=width, classes=classes)
