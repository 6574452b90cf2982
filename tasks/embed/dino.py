"""DINO and DINOv2, self-supervised: the class token after the last norm, as torch.hub's models return it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from winnow.tasks.data.images import Images
from winnow.tasks.embed.encoder import NetworkEncoder
from winnow.tasks.embed.preprocess import imagenet_view
from winnow.tasks.embed.swav import resnet50
from winnow.tasks.embed.timm_models import HUB_FILES, build, bytes_of, fill, warn_random
from winnow.tasks.embed.weights import Checkpoint, obtain, read
from winnow.tasks.errors import BadInput

__all__ = [
    "dino_resnet50",
    "dino_vitb8",
    "dino_vitb16",
    "dino_vits8",
    "dino_vits16",
    "dinov2_vitb14",
    "dinov2_vitb14_reg",
    "dinov2_vitg14",
    "dinov2_vitg14_reg",
    "dinov2_vitl14",
    "dinov2_vitl14_reg",
    "dinov2_vits14",
    "dinov2_vits14_reg",
]

_SERVER = "https://dl.fbaipublicfiles.com"


def dino_vits16(images: Images, **options: Any) -> NetworkEncoder:
    """DINO ViT-S/16, 384 dimensions.

    Options and details: ``transformer``.

    References:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021;
        facebookresearch/dino, hubconf.py.
    """
    return _dino("dino_vits16", "vit_small_patch16_224.dino", "dino_deitsmall16_pretrain", images, options)


def dino_vits8(images: Images, **options: Any) -> NetworkEncoder:
    """DINO ViT-S/8, 384 dimensions; four times the cost of patches of 16.

    Options and details: ``transformer``.

    References:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021;
        facebookresearch/dino, hubconf.py.
    """
    return _dino("dino_vits8", "vit_small_patch8_224.dino", "dino_deitsmall8_pretrain", images, options)


def dino_vitb16(images: Images, **options: Any) -> NetworkEncoder:
    """DINO ViT-B/16, 768 dimensions: the encoder of TEMI's and ELFS's CIFAR results.

    Options and details: ``transformer``.

    References:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021;
        facebookresearch/dino, hubconf.py.
    """
    return _dino("dino_vitb16", "vit_base_patch16_224.dino", "dino_vitbase16_pretrain", images, options)


def dino_vitb8(images: Images, **options: Any) -> NetworkEncoder:
    """DINO ViT-B/8, 768 dimensions; four times the cost of patches of 16.

    Options and details: ``transformer``.

    References:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021;
        facebookresearch/dino, hubconf.py.
    """
    return _dino("dino_vitb8", "vit_base_patch8_224.dino", "dino_vitbase8_pretrain", images, options)


def dinov2_vits14(images: Images, **options: Any) -> NetworkEncoder:
    """DINOv2 ViT-S/14, 384 dimensions.

    Options and details: ``transformer``.

    References:
        Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024;
        facebookresearch/dinov2, hubconf.py.
    """
    return _dinov2("dinov2_vits14", "small", images, options)


def dinov2_vitb14(images: Images, **options: Any) -> NetworkEncoder:
    """DINOv2 ViT-B/14, 768 dimensions.

    Options and details: ``transformer``.

    References:
        Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024;
        facebookresearch/dinov2, hubconf.py.
    """
    return _dinov2("dinov2_vitb14", "base", images, options)


def dinov2_vitl14(images: Images, **options: Any) -> NetworkEncoder:
    """DINOv2 ViT-L/14, 1024 dimensions.

    Options and details: ``transformer``.

    References:
        Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024;
        facebookresearch/dinov2, hubconf.py.
    """
    return _dinov2("dinov2_vitl14", "large", images, options)


def dinov2_vitg14(images: Images, **options: Any) -> NetworkEncoder:
    """DINOv2 ViT-g/14, 1536 dimensions: 1.1 billion parameters.

    Options and details: ``transformer``.

    References:
        Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024;
        facebookresearch/dinov2, hubconf.py.
    """
    return _dinov2("dinov2_vitg14", "giant", images, options)


def dinov2_vits14_reg(images: Images, **options: Any) -> NetworkEncoder:
    """DINOv2 ViT-S/14 with 4 registers, 384 dimensions.

    Options and details: ``transformer``.

    References:
        Darcet et al., Vision Transformers Need Registers, ICLR 2024; facebookresearch/dinov2, hubconf.py.
    """
    return _dinov2("dinov2_vits14_reg", "small", images, options)


def dinov2_vitb14_reg(images: Images, **options: Any) -> NetworkEncoder:
    """DINOv2 ViT-B/14 with 4 registers, 768 dimensions.

    Options and details: ``transformer``.

    References:
        Darcet et al., Vision Transformers Need Registers, ICLR 2024; facebookresearch/dinov2, hubconf.py.
    """
    return _dinov2("dinov2_vitb14_reg", "base", images, options)


def dinov2_vitl14_reg(images: Images, **options: Any) -> NetworkEncoder:
    """DINOv2 ViT-L/14 with 4 registers, 1024 dimensions.

    Options and details: ``transformer``.

    References:
        Darcet et al., Vision Transformers Need Registers, ICLR 2024; facebookresearch/dinov2, hubconf.py.
    """
    return _dinov2("dinov2_vitl14_reg", "large", images, options)


def dinov2_vitg14_reg(images: Images, **options: Any) -> NetworkEncoder:
    """DINOv2 ViT-g/14 with 4 registers, 1536 dimensions: 1.1 billion parameters.

    Options and details: ``transformer``.

    References:
        Darcet et al., Vision Transformers Need Registers, ICLR 2024; facebookresearch/dinov2, hubconf.py.
    """
    return _dinov2("dinov2_vitg14_reg", "giant", images, options)


def _dino(name: str, model: str, file: str, images: Images, options: dict[str, Any]) -> NetworkEncoder:
    return transformer(name, model, f"{_SERVER}/dino/{file}/{file}.pth", images, **options)


def _dinov2(name: str, scale: str, images: Images, options: dict[str, Any]) -> NetworkEncoder:
    folder, reg, _ = name.partition("_reg")
    reg4 = "_reg4" if reg else ""
    url = f"{_SERVER}/dinov2/{folder}/{folder}{reg4}_pretrain.pth"
    return transformer(name, f"vit_{scale}_patch14{reg4}_dinov2.lvd142m", url, images, **options)


def transformer(
    name: str,
    model: str,
    published: str,
    images: Images,
    *,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    size: int = 224,
    crop: bool | None = None,
    random_weights: bool = False,
) -> NetworkEncoder:
    """A DINO or DINOv2 vision transformer: LayerNorm of the last block's output, class token.

    Position embeddings are resampled to other input sizes as the authors do: from M to g positions per side,
    bicubic with scale (g + 0.1)/M and without antialiasing; for models with registers, to size g with
    antialiasing.

    Args:
        name: of the embedder.
        model: timm's name for the architecture.
        published: address of the authors' weights; timm's fit, too.
        images: their sizes decide the default of ``crop``.
        device: where it runs.
        dtype: for matrix products.
        generator: for random weights.
        size: side of the input, a multiple of the patch size.
        crop: resize to 256/224 of the size (bilinear) and crop, as for ImageNet, instead of resizing to it
            (bicubic); default if images differ in size.
        random_weights: do not load weights, for tests.

    Raises:
        BadInput: the size is not a multiple of the patch size, or the file has other weights.
        MissingData: the weights are not available.

    Differences from upstream:
        None known for DINO. timm itself resamples position embeddings with antialiasing and without the 0.1.
    """
    view = imagenet_view(images, size, crop)
    patch = int(model.split("patch")[1].split("_")[0])
    if size % patch:
        raise BadInput(
            f"size = {size}: {name} needs a multiple of its patch size {patch}, for example "
            f"{max(1, round(size / patch)) * patch}."
        )
    network = build(model, size, generator)
    if random_weights:
        warn_random(name)
    else:
        checkpoint = Checkpoint((name,), published, f"timm/{model}", HUB_FILES)
        path = obtain(name, checkpoint, size=bytes_of(network))
        state = read(path)
        positions = state.get("pos_embed")
        if "reg4" not in model and positions is not None and positions.ndim == 3:
            state["pos_embed"] = resample_positions(positions, size // patch)
        fill(network, model, state, path, generator)
    return NetworkEncoder(name, network, view, device, dtype)


def resample_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embeddings (1, 1 + M², D), the class token's first, for another grid: (1, 1 + grid², D).

    >>> resample_positions(torch.arange(10.0).reshape(1, 10, 1), 2).flatten().tolist()[0]
    0.0
    """
    side = math.isqrt(positions.shape[1] - 1)
    if side == grid:
        return positions
    plane = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    scale = (grid + 0.1) / side  # the authors' guard against a size that rounding would make one too small
    plane = F.interpolate(plane, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1].float(), plane.flatten(2).transpose(1, 2)], dim=1)


def dino_resnet50(
    images: Images,
    *,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    size: int = 224,
    crop: bool | None = None,
    random_weights: bool = False,
) -> NetworkEncoder:
    """DINO ResNet-50: average-pooled features, 2048 dimensions.

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
    >>> dino_resnet50(images, size=32, random_weights=True, **where).dim
    2048

    References:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021;
        facebookresearch/dino, hubconf.py.
    """
    view = imagenet_view(images, size, crop)
    url = f"{_SERVER}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"
    network, _ = resnet50(Checkpoint(("dino_resnet50",), url), generator, random_weights)
    return NetworkEncoder("dino_resnet50", network, view, device, dtype)
