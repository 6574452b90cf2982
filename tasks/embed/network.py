"""Any local checkpoint of a torchvision architecture, without its classifier, as an encoder."""

from __future__ import annotations

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, list_models

from winnow.tasks.data.images import Images
from winnow.tasks.embed.encoder import NetworkEncoder, seeded
from winnow.tasks.embed.preprocess import imagenet_view
from winnow.tasks.embed.timm_models import warn_random
from winnow.tasks.embed.weights import in_weights_folder, load, read
from winnow.tasks.errors import BadInput, UnknownName, did_you_mean

__all__ = ["network"]


def network(
    images: Images,
    *,
    variant: str,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    size: int = 224,
    crop: bool | None = None,
    random_weights: bool = False,
) -> NetworkEncoder:
    """Penultimate features of a checkpoint: ``network:resnet18@/path/to/file.pth``.

    The feature is the input of the last linear layer: pooled channels for most architectures, 4096
    activations for AlexNet and VGG; SqueezeNet, whose classifier is a convolution, gives its pooled channels.
    Images are normalised with ImageNet's mean and standard deviation.

    Args:
        images: their sizes decide the default of ``crop``.
        variant: architecture, ``@`` and file (.pth, .pt, .bin, .safetensors, .npz, in torchvision's layout,
            with any number of classes). Without ``@``, as in ``network:/path/to/resnet18_mine.npz``, the
            architecture is the one that the file's name starts with. A bare file name is also looked for in
            the weights folder.
        device: where it runs.
        dtype: for matrix products.
        generator: for random weights.
        size: side of the input.
        crop: resize to 256/224 of the size and crop, as for ImageNet; default if images differ in size.
        random_weights: do not read the file, for tests.

    Returns:
        the encoder.

    Raises:
        UnknownName: no such architecture.
        MissingData: no such file.
        BadInput: a file that does not fit the architecture.

    >>> from winnow.tasks.data.images import ArrayImages
    >>> images = ArrayImages(torch.zeros(1, 32, 32, 3, dtype=torch.uint8).numpy())
    >>> where = {"device": torch.device("cpu"), "dtype": torch.float32, "generator": torch.Generator()}
    >>> network(images, variant="squeezenet1_1@mine.pth", size=64, random_weights=True, **where).dim
    512

    References:
        torchvision.models (classification).
    """
    architecture, _, file = variant.rpartition("@")
    path = in_weights_folder(file)
    architecture = architecture or _prefix(path.name)
    view = imagenet_view(images, size, crop)
    with seeded(generator):
        model, classifier = _headless(architecture, size)
    if random_weights:
        warn_random(f"network:{variant}")
    else:
        load(model, read(path), path, without=classifier)
    return NetworkEncoder(f"network:{variant}", model, view, device, dtype)


# their checkpoints do not say whether the network rescales its input
_UNSURE = ("googlenet", "inception_v3")


def _architectures() -> list[str]:
    return [name for name in list_models(module=torchvision.models) if name not in _UNSURE]


def _prefix(file: str) -> str:
    """The longest architecture name that a file name starts with."""
    architecture = max((name for name in _architectures() if file.startswith(name)), key=len, default="")
    if not architecture:
        raise BadInput(
            f"{file!r} does not start with the name of a torchvision architecture.",
            remedy="name it: network:<architecture>@<file>, for example network:resnet18@/models/mine.pth",
        )
    return architecture


def _headless(architecture: str, size: int) -> tuple[nn.Module, tuple[str, ...]]:
    """A torchvision model whose classifier is the identity, and the prefixes of the classifier's tensors."""
    available = _architectures()
    if architecture not in available:
        hint = did_you_mean(architecture, available)
        raise UnknownName(
            f"{architecture!r} is not an architecture of torchvision that can be used here.{hint} Available: "
            f"{', '.join(available)}"
        )
    options = {"image_size": size} if architecture.startswith("vit_") else {}
    model = get_model(architecture, weights=None, **options)
    if architecture.startswith("squeezenet"):
        model.classifier = nn.AdaptiveAvgPool2d(1)  # the model flattens the output
        return model, ("classifier.",)
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    model.set_submodule(last, nn.Identity())
    return model, (f"{last}.",)
