"""SwAV as ELFS's published code uses it."""

from __future__ import annotations

import torch

from winnow.tasks.data.images import Images
from winnow.tasks.embed.encoder import NetworkEncoder
from winnow.tasks.embed.preprocess import imagenet_view
from winnow.tasks.embed.swav import CHECKPOINT, HEADS, resnet50

__all__ = ["swav"]


def swav(
    images: Images,
    *,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    size: int = 224,
    crop: bool | None = None,
    random_weights: bool = False,
) -> NetworkEncoder:
    """SwAV ResNet-50 behind a random linear map to 1000 dimensions.

    ELFS leaves torch.hub's classifier in place, which is randomly initialised.

    Args:
        images: their sizes decide the default of ``crop``.
        device: where it runs.
        dtype: for matrix products.
        generator: for the random map and random weights.
        size: side of the input.
        crop: resize to 256/224 of the size and crop, as for ImageNet; default if images differ in size.
        random_weights: do not load weights, for tests.

    Raises:
        MissingData: the weights are not available.

    References:
        eltsai/elfs, gen_embeds.py; facebookresearch/swav, hubconf.py (resnet50).

    Differences from upstream:
        The map is drawn from ``generator``, so that it can be drawn again.
    """
    network, classifier = resnet50(CHECKPOINT, generator, random_weights, *HEADS)
    network.fc = classifier
    return NetworkEncoder("swav", network, imagenet_view(images, size, crop), device, dtype)
