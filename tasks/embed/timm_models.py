"""Any model of timm, without its classifier."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from timm import create_model, get_pretrained_cfg, is_model, list_models
from timm.models import model_entrypoint

from winnow.tasks.data.images import Images
from winnow.tasks.embed.encoder import NetworkEncoder, seeded
from winnow.tasks.embed.preprocess import imagenet_view
from winnow.tasks.embed.weights import Checkpoint, load, obtain, read
from winnow.tasks.errors import BadInput, UnknownName, did_you_mean

__all__ = ["build", "fill", "timm", "warn_random"]

log = logging.getLogger("winnow.tasks.embed")

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def timm(
    images: Images,
    *,
    variant: str,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    size: int | None = None,
    crop: bool | None = None,
    random_weights: bool = False,
) -> NetworkEncoder:
    """Pooled features of any timm model, for example ``timm:vit_base_patch16_224.mae``.

    Weights are looked for as ``<model>.<tag>.safetensors`` (or .pth, .pt, .bin), then on Hugging Face. Images
    are normalised with the mean and standard deviation that the model was trained with.

    Args:
        images: their sizes decide the default of ``crop``.
        variant: timm's name for the model, with or without a tag.
        device: where it runs.
        dtype: for matrix products.
        generator: for random weights.
        size: side of the input; default the model's own.
        crop: resize to 256/224 of the size and crop, as for ImageNet; default if images differ in size.
        random_weights: do not load weights, for tests.

    Returns:
        the encoder.

    Raises:
        UnknownName: timm has no such model.
        MissingData: the weights are not available.

    >>> from winnow.tasks.data.images import ArrayImages
    >>> images = ArrayImages(torch.zeros(1, 32, 32, 3, dtype=torch.uint8).numpy())
    >>> where = {"device": torch.device("cpu"), "dtype": torch.float32, "generator": torch.Generator()}
    >>> timm(images, variant="resnet10t", size=32, random_weights=True, **where).dim
    512

    References:
        R. Wightman, PyTorch Image Models; create_model(…, num_classes=0), as in model_builders.py of
        HHU-MMBS/TEMI-official-BMVC2023.

    Differences from upstream:
        TEMI normalises every model's input with ImageNet's mean and standard deviation.
    """
    if not is_model(variant):
        hint = did_you_mean(variant, [*list_models(), *list_models(pretrained=True)])
        raise UnknownName(
            f"timm has no model {variant!r}.{hint}",
            remedy="`python -c 'import timm; print(*timm.list_models())'` lists them",
        )
    config = get_pretrained_cfg(variant)
    if config is None:
        raise BadInput(
            f"timm says nothing about the weights and the input of {variant!r}.",
            remedy="choose one of its tags",
        )
    side = config.input_size[-1] if size is None else size
    view = imagenet_view(images, side, crop, tuple(config.mean), tuple(config.std))
    network = build(variant, side, generator)
    if random_weights:
        warn_random(f"timm:{variant}")
    else:
        name = f"{config.architecture}.{config.tag}" if config.tag else variant
        checkpoint = Checkpoint(
            (name,),
            url="" if config.hf_hub_id else config.url or "",
            hub=_repository(config),
            hub_files=HUB_FILES,
        )
        path = obtain(f"timm:{variant}", checkpoint, size=bytes_of(network))
        fill(network, variant, read(path), path, generator)
    return NetworkEncoder(f"timm:{variant}", network, view, device, dtype)


def _repository(config) -> str:
    """The model's repository; if it is named like the model, timm's older entries say only ``timm/``."""
    hub = config.hf_hub_id or ""
    return f"{hub}{config.architecture}.{config.tag}" if hub.endswith("/") else hub


def build(name: str, size: int, generator: torch.Generator) -> torch.nn.Module:
    """A timm model without classifier for inputs of this size, randomly initialised from ``generator``."""
    config = get_pretrained_cfg(name)
    options = {"img_size": size} if config is not None and config.fixed_input_size else {}
    with seeded(generator):
        return create_model(name, pretrained=False, num_classes=0, **options)


def fill(
    network: torch.nn.Module,
    name: str,
    state: Mapping[str, torch.Tensor],
    path: Path,
    generator: torch.Generator,
) -> None:
    """Load a state dict in timm's layout, or in that of the model's authors where timm can convert it."""
    headless = network.state_dict()
    kept = _without_head(state, headless, name, generator)
    if {key: value.shape for key, value in kept.items()} != {
        key: value.shape for key, value in headless.items()
    }:
        module = sys.modules[model_entrypoint(name).__module__]
        convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
        if convert is not None:
            kept = _without_head(convert(dict(state), network), headless, name, generator)
    load(network, kept, path)


def _without_head(
    state: Mapping[str, torch.Tensor],
    headless: Mapping[str, torch.Tensor],
    name: str,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """A state dict without the classifier's tensors: those that only the model with its classifier has."""
    config = get_pretrained_cfg(name)
    if state.keys() <= headless.keys() or config is None or not config.num_classes:
        return dict(state)
    with seeded(generator):
        whole = create_model(name, pretrained=False, num_classes=config.num_classes).state_dict()
    return {key: value for key, value in state.items() if key in headless or key not in whole}


def bytes_of(network: torch.nn.Module) -> int:
    """Size of a network's float32 weights."""
    return sum(4 * parameter.numel() for parameter in network.parameters())


def warn_random(name: str) -> None:
    """Warn that weights are random, so that nobody publishes such features unawares."""
    log.warning("%s: random weights, as asked for (random_weights=True); the features mean nothing", name)
