"""What pretrained networks see: images resized exactly as by Pillow, then cropped and normalised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from winnow.tasks.data.images import Images
from winnow.tasks.data.index import threaded
from winnow.tasks.errors import BadInput

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Preprocess",
    "imagenet_view",
    "pixels_of",
    "resize",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Batch = np.ndarray | list[Image.Image]

_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
_BITS = 22  # fraction bits of Pillow's fixed-point filter weights


@dataclass(frozen=True)
class Preprocess:
    """Resize, cut out the central square, scale to [0, 1], subtract mean, divide by std; grey becomes RGB.

    Attributes:
        size: side of the square.
        short: what the shorter side is resized to first; None resizes both sides to ``size`` and ignores the
            aspect ratio.
        filter: ``bicubic`` or ``bilinear``; Pillow's, with antialiasing.
        mean: per channel, of pixels in [0, 1].
        std: per channel.

    >>> half_grey = np.full((2, 8, 8, 1), 128, np.uint8)
    >>> Preprocess(size=4, short=4)(half_grey, torch.device("cpu")).shape
    torch.Size([2, 3, 4, 4])
    """

    size: int
    short: int | None
    filter: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, images: Batch, device: torch.device) -> torch.Tensor:
        """float32 (n, 3, size, size) on the device."""
        pixels = pixels_of(images, self.size, self.short, self.filter, device).expand(-1, 3, -1, -1).float()
        mean, std = (_channels(values, pixels.device) for values in (self.mean, self.std))
        return pixels.div_(255).sub_(mean).div_(std)


@lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """One number per channel, kept on the device."""
    return torch.tensor(values, device=device).view(3, 1, 1)


def imagenet_view(
    images: Images,
    size: int,
    crop: bool | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Preprocess:
    """The preprocessing of TEMI and ELFS.

    With ``crop``, as for ImageNet: shorter side to ⌊256 size / 224⌋ (bilinear), then the central square.
    Without, as for CIFAR and STL: shorter side to ``size`` (bicubic).

    Args:
        images: if ``crop`` is None, their ``shape`` decides: photographs of different sizes are cropped.
        size: side of the network's input.
        crop: True or False overrides that.
        mean: per channel.
        std: per channel.

    Raises:
        BadInput: an invalid size.

    References:
        gen_embeds.py of HHU-MMBS/TEMI-official-BMVC2023 and of eltsai/elfs.

    Differences from upstream:
        Images that are not square lose their margins even without ``crop``; upstream cannot batch them.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise BadInput(
            f"size = {size!r}: the side of the network's input must be a positive whole number of pixels."
        )
    if images.shape is None if crop is None else crop:
        return Preprocess(size, int(256 * size / 224), "bilinear", mean, std)
    return Preprocess(size, size, "bicubic", mean, std)


def pixels_of(
    images: Batch, size: int | None, short: int | None, filter: str, device: torch.device
) -> torch.Tensor:
    """Resized and cropped pixels, not yet scaled.

    Args:
        images: uint8 (n, H, W, C) with C = 1 or 3, or a list of PIL images (read as RGB).
        size: side of the central square; None leaves the images as they are.
        short: see ``Preprocess``.
        filter: ``bicubic`` or ``bilinear``.
        device: where the result goes.

    Returns:
        uint8 (n, C, H, W), channels first.

    Raises:
        BadInput: images of another type or shape.
    """
    if isinstance(images, list):
        if size is None:
            raise BadInput(
                "images of different sizes need a size to be resized to.",
                remedy="pass size=<pixels> to the embedder",
            )
        return on_device(_by_pillow(images, size, short, filter), device)
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] not in (1, 3)
    ):
        what = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise BadInput(
            f"images must be uint8 (n, H, W, C) with 1 or 3 channels, or a list of PIL images, not {what}."
        )
    if size is None:
        return on_device(images, device)
    before = (images.shape[1], images.shape[2])
    after = _resized(*before, size, short)
    if after == before:
        return _cropped(on_device(images, device), size)
    both_ways = (after[0] >= before[0]) != (after[1] >= before[1])  # there Pillow orders its passes by cost
    if device.type == "cpu" or both_ways:
        grey = images.shape[3] == 1
        pillow = [Image.fromarray(image[..., 0] if grey else image) for image in images]
        pixels = _by_pillow(pillow, size, short, filter, "L" if grey else "RGB")
        return on_device(pixels.reshape(len(images), size, size, -1), device)
    return _cropped(resize(on_device(images, device), *after, filter), size)


def on_device(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """(n, H, W, C) pixels as a tensor (n, C, H, W) on the device.

    They go to a GPU through pinned memory, so that the host need not wait for the copy; torch's allocator
    keeps the pinned block until the copy is complete.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    if device.type == "cuda":
        with torch.cuda.device(device):
            tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2)


def _by_pillow(
    images: list[Image.Image], size: int, short: int | None, filter: str, mode: str = "RGB"
) -> np.ndarray:
    """Resized and cropped by Pillow, uint8 (n, size, size, 3), without the last axis in mode ``L``."""

    def view(image: Image.Image) -> np.ndarray:
        return _viewed(image if image.mode == mode else image.convert(mode), size, short, filter)

    return np.stack(threaded(view, images, fewest=4))


def _resized(height: int, width: int, size: int, short: int | None) -> tuple[int, int]:
    if short is None:
        return size, size
    least = min(height, width)
    return int(short * height / least), int(short * width / least)


def _viewed(image: Image.Image, size: int, short: int | None, filter: str) -> np.ndarray:
    height, width = _resized(image.height, image.width, size, short)
    if (width, height) != image.size:
        image = image.resize((width, height), _PILLOW[filter])
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _cropped(pixels: torch.Tensor, size: int) -> torch.Tensor:
    top, left = (round((side - size) / 2) for side in pixels.shape[2:])
    return pixels[:, :, top : top + size, left : left + size]


def resize(pixels: torch.Tensor, height: int, width: int, filter: str = "bicubic") -> torch.Tensor:
    """Pillow's antialiased resize as two matrix products, for GPUs.

    There, a copy per image would cost more than the network. All sums are of whole numbers below 2⁵³, so
    float64 is exact and the result equals Pillow's on any device, in any batch. The order is Pillow's where
    both sides grow or both shrink: rows first, rounded to 8 bits in between.

    Args:
        pixels: (n, C, H, W) uint8.
        height: of the result.
        width: of the result.
        filter: ``bicubic`` or ``bilinear``.

    Returns:
        (n, C, height, width) uint8.

    >>> resize(torch.tensor([[[[0, 100, 200]]]], dtype=torch.uint8), 1, 6, "bilinear").flatten().tolist()
    [0, 25, 75, 125, 175, 200]

    References:
        Pillow, src/libImaging/Resample.c (8 bits per channel).
    """
    if pixels.shape[3] != width:
        pixels = _rounded(pixels.double() @ _weights(pixels.shape[3], width, filter, pixels.device).T)
    if pixels.shape[2] != height:
        pixels = _rounded(_weights(pixels.shape[2], height, filter, pixels.device) @ pixels.double())
    return pixels


def _rounded(sums: torch.Tensor) -> torch.Tensor:
    return sums.add_(1 << (_BITS - 1)).div_(1 << _BITS).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _weights(inputs: int, outputs: int, filter: str, device: torch.device) -> torch.Tensor:
    """Fixed-point filter weights, (outputs, inputs) float64 of whole numbers, kept on the device."""
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    reach = _SUPPORT[filter] * stretch
    weights = np.zeros((outputs, inputs))
    for output in range(outputs):
        centre = (output + 0.5) * scale
        first, end = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), inputs)
        taps = _kernel(filter, np.abs(np.arange(first, end) - centre + 0.5) / stretch)
        fixed = taps / taps.sum() * (1 << _BITS)
        weights[output, first:end] = np.trunc(fixed + np.copysign(0.5, fixed))
    return torch.from_numpy(weights).to(device)


def _kernel(filter: str, x: np.ndarray) -> np.ndarray:
    if filter == "bilinear":
        return np.maximum(1 - x, 0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
