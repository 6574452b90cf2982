"""Images read, decoded and resized by worker processes while the device trains."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from winnow.tasks.hardware import seed_sequence
from winnow.tasks.train.problems import Batch
from winnow.tasks.train.problems.augment import (
    Draws,
    Normaliser,
    View,
    centre_box,
    crop_flip,
    random_resized_crop,
)

__all__ = ["Read", "StreamedImages"]


class Read:
    """Rows of images as uint8 (b, H, W, C) of one size, resized if need be. Picklable."""

    def __init__(
        self, images: Any, rows: np.ndarray | None, size: int | None, margin: float, seed: int
    ) -> None:
        self.images, self.rows, self.size, self.margin, self.seed = images, rows, size, margin, seed

    def __call__(self, positions: np.ndarray, epoch: int | None) -> np.ndarray:
        """Images at ``positions`` of the training set; with ``epoch`` its random resized crops and flips."""
        rows = positions if self.rows is None else self.rows[positions]
        read = self.images[rows] if isinstance(self.images, np.ndarray) else self.images.read(rows)
        if self.size is None:
            return np.asarray(read)
        return np.stack(
            [self._one(image, int(position), epoch) for image, position in zip(read, positions, strict=True)]
        )

    def _one(self, image: np.ndarray | Image.Image, position: int, epoch: int | None) -> np.ndarray:
        assert self.size is not None
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        flip = False
        if epoch is None:
            box = centre_box(image.height, image.width, self.size, round(self.size * self.margin))
        else:
            generator = np.random.default_rng([*seed_sequence(self.seed, "augment"), epoch, position])
            box = random_resized_crop(image.height, image.width, generator)
            flip = generator.random() < 0.5
        out = np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))
        out = out[:, ::-1] if flip else out
        return out[..., None] if out.ndim == 2 else out


class _Requests(torch.utils.data.Dataset):
    def __init__(self, read: Read, random_crop: bool) -> None:
        self.read, self.random_crop = read, random_crop

    def __getitem__(self, request: tuple[int | None, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, positions = request
        pixels = self.read(positions, epoch if self.random_crop else None)
        return torch.from_numpy(positions), torch.from_numpy(np.ascontiguousarray(pixels))


class StreamedImages:
    """Images from worker processes; cropped, flipped and normalised on the device.

    Args:
        read: gives uint8 images at rows of the set.
        targets: int64 (n,) on the device.
        view: how the network sees them.
        shape: (H, W, C) of what ``read`` gives.
        workers: processes; 0 reads in this one.
    """

    def __init__(
        self, read: Read, targets: torch.Tensor, view: View, *, shape: tuple[int, int, int], workers: int
    ) -> None:
        self.targets, self.n = targets, len(targets)
        self.sites, self.values = shape[0] * shape[1], math.prod(shape)
        self._device, self._view = targets.device, view
        self._normalise = Normaliser(view.mean, view.std, self._device)
        self._requests: list[tuple[int | None, np.ndarray]] = []  # of the pass: which epoch, which rows
        # never plain fork: a forked worker inherits CUDA and held locks
        start_method = "forkserver" if hasattr(os, "fork") else "spawn"
        self._source: torch.utils.data.DataLoader | None = torch.utils.data.DataLoader(
            _Requests(read, view.resizes_at_random),
            sampler=self._requests,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=start_method if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws its workers' base seed from the global one
        )

    def _pass(self, requests: list[tuple[int | None, np.ndarray]], draws: Draws | None) -> Iterator[Batch]:
        assert self._source is not None, "the loader is closed"
        self._requests[:] = requests
        for rows, pixels in self._source:
            pixels = pixels.to(self._device, non_blocking=True)
            if draws is not None:
                local = torch.arange(len(rows), device=self._device)
                top, left, flip = (draw[rows].to(self._device, non_blocking=True) for draw in draws)
                pixels = crop_flip(pixels, local, (top, left, flip), self._view.pad)
            rows = rows.to(self._device, non_blocking=True)
            yield Batch(rows, self._normalise(pixels), self.targets[rows])

    def training(self, rows: torch.Tensor, epoch: int, batch_size: int) -> Iterator[Batch]:
        draws = self._view.draws(self.n, epoch)
        yield from self._pass([(epoch, some.numpy()) for some in rows.split(batch_size)], draws)

    def plain(self, batch_size: int) -> Iterator[Batch]:
        yield from self._pass([(None, some.numpy()) for some in torch.arange(self.n).split(batch_size)], None)

    def close(self) -> None:
        self._source = None
