"""SwAV: self-supervised ResNet-50."""

from __future__ import annotations

import torch
from torchvision.models import get_model

from winnow.tasks.data.images import Images
from winnow.tasks.embed.encoder import NetworkEncoder, seeded
from winnow.tasks.embed.preprocess import imagenet_view
from winnow.tasks.embed.timm_models import bytes_of, warn_random
from winnow.tasks.embed.weights import Checkpoint, load, obtain, read

__all__ = ["resnet50", "swav"]

CHECKPOINT = Checkpoint(("swav",), "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar")
HEADS = ("projection_head.", "prototypes.")


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
    """SwAV ResNet-50: average-pooled features, 2048 dimensions.

    Args:
        images: their sizes decide the default of ``crop``.
        device: where it runs.
        dtype: for matrix products.
        generator: for random weights.
        size: side of the input.
        crop: resize to 256/224 of the size and crop, as for ImageNet; default if images differ in size.
        random_weights: do not load weights, for tests.

    Raises:
        MissingData: the weights are not available.

    >>> from winnow.tasks.data.images import ArrayImages
    >>> images = ArrayImages(torch.zeros(1, 32, 32, 3, dtype=torch.uint8).numpy())
    >>> where = {"device": torch.device("cpu"), "dtype": torch.float32, "generator": torch.Generator()}
    >>> swav(images, size=32, random_weights=True, **where).dim
    2048

    References:
        Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS
        2020; facebookresearch/swav, hubconf.py (resnet50, 800 epochs).

    Differences from upstream:
        ELFS leaves torch.hub's classifier in place, which is randomly initialised, and so embeds with a
        random linear map to 1000 dimensions; ``upstream=True`` replays that.
    """
    network, _ = resnet50(CHECKPOINT, generator, random_weights, *HEADS)
    return NetworkEncoder("swav", network, imagenet_view(images, size, crop), device, dtype)


def resnet50(
    checkpoint: Checkpoint, generator: torch.Generator, random_weights: bool, *heads: str
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A ResNet-50 without its classifier, and the classifier, which is random whatever the weights.

    ``heads`` are prefixes of tensors in the checkpoint that are left out, as its classifier is.
    """
    with seeded(generator):
        network = get_model("resnet50", weights=None)
    classifier, network.fc = network.fc, torch.nn.Identity()
    if random_weights:
        warn_random(checkpoint.names[0])
    else:
        path = obtain(checkpoint.names[0], checkpoint, size=bytes_of(network))
        load(network, read(path), path, without=("fc.", *heads))
    return network, classifier
