"""Raw pixels: the baseline that every other embedder must beat."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from winnow.tasks.data.images import Images
from winnow.tasks.embed.encoder import Encoder
from winnow.tasks.embed.preprocess import pixels_of
from winnow.tasks.errors import BadInput

__all__ = ["pixels"]


class _Pixels:
    def __init__(self, shape: tuple[int, int, int], size: int | None) -> None:
        self.shape, self.size = shape, size
        self.dim = shape[0] * shape[1] * shape[2]

    def __call__(self, images: np.ndarray | list[Image.Image]) -> np.ndarray:
        pixels = pixels_of(images, self.size, self.size, "bicubic", torch.device("cpu")).permute(0, 2, 3, 1)
        if tuple(pixels.shape[1:]) != self.shape:
            raise BadInput(
                f"images are {tuple(pixels.shape[1:])}, those that the embedder was made for {self.shape} "
                "(H, W, C)."
            )
        return pixels.reshape(len(pixels), self.dim).numpy().astype(np.float32) / np.float32(255)


def pixels(
    images: Images,
    *,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    size: int | None = None,
) -> Encoder:
    """Raw pixels in [0, 1]: no learning, no weights.

    Args:
        images: only their shape is used.
        device: unused.
        dtype: unused.
        generator: unused.
        size: resize the shorter side to this and cut out the central square; default the images' own size, or
            32 if they differ in size.

    Returns:
        the encoder; dim = H · W · C.
    """
    if images.shape is None:
        size = size or 32
    shape = images.shape or (0, 0, 3)
    return _Pixels(shape if size is None else (size, size, shape[2]), size)
