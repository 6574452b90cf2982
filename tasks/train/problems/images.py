"""Images: on the device as uint8 and augmented there where they fit, else streamed from workers."""

from __future__ import annotations

import math
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.hardware import by_device, cpu_count, free_bytes
from winnow.tasks.train.problems import Batch, Loader
from winnow.tasks.train.problems.augment import Normaliser, View, crop_flip
from winnow.tasks.train.problems.classification import Classification, checked_targets
from winnow.tasks.train.problems.streamed import Read, StreamedImages
from winnow.tasks.train.recipe import Recipe

__all__ = ["ImageProblem", "ResidentImages", "open_images"]

CHUNK_VALUES = {
    "cpu": 1 << 19,
    "cuda": 1 << 26,
}  # pixels that are cropped at once: many small batches cost one call
READ_ROWS = 1024
DEFAULT_SIZE = 224  # where images differ in size and no size is given
IMAGENET_MARGIN = 256 / 224


class ImageProblem(Classification):
    """Images and a class for each.

    Args:
        images: uint8 (N, H, W, C), or an object with ``shape``, ``len`` and ``read(rows)``
            (winnow.tasks.data).
        targets: int (n,), each in [0, classes), in the order of ``rows``.
        classes: how many there are.
        mean, std: per channel, of pixels in [0, 1].
        rows: int (n,), rows of ``images`` that make up the set; None takes all.
        workers: processes that read images too large for the device's memory; None chooses.

    Raises:
        BadInput: a target that is not a class.

    >>> images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1])
    >>> problem = ImageProblem(images, labels, classes=2, mean=(0.5,), std=(0.5,))
    >>> problem.shape(Recipe(epochs=1))
    {'classes': 2, 'channels': 1, 'size': 8}
    """

    def __init__(
        self,
        images: Any,
        targets: NDArray[np.integer],
        *,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        rows: NDArray[np.integer] | None = None,
        workers: int | None = None,
    ) -> None:
        self.images, self.rows, self.classes, self.workers = images, rows, classes, workers
        self.targets = checked_targets(targets, classes)
        self.mean, self.std = mean, std
        self.n = len(self.targets)

    def _side(self, recipe: Recipe) -> int:
        return recipe.size or _form(self.images)[1]

    def shape(self, recipe: Recipe) -> dict[str, Any]:
        return {"classes": self.classes, "channels": _form(self.images)[2], "size": self._side(recipe)}

    def open(self, recipe: Recipe, device: torch.device, *, seed: int, training: bool) -> Loader:
        pad = recipe.padding(self._side(recipe))
        if training:
            view = View(self.mean, self.std, augment=recipe.augment, pad=pad, size=recipe.size, seed=seed)
        else:
            margin = IMAGENET_MARGIN if recipe.augment == "imagenet" else 1.0
            view = View(self.mean, self.std, size=self._side(recipe), margin=margin)
        return open_images(self.images, self.targets, view, device, rows=self.rows, workers=self.workers)

    def identity(self) -> str:
        arrays = (self.targets, self.rows)
        sums = ["-" if a is None else f"{zlib.crc32(np.ascontiguousarray(a).tobytes()):08x}" for a in arrays]
        return f"{self.n} rows, {self.classes} classes, {' '.join(sums)}"


def _form(images: Any) -> tuple[tuple[int, int] | None, int, int]:
    """Height and width, if all images have the same; the side to take if no size is given; channels."""
    shape = images.shape[1:] if isinstance(images, np.ndarray) else images.shape
    if shape is None:
        return None, DEFAULT_SIZE, 3
    height, width, channels = map(int, shape)
    return (height, width), min(height, width), channels


class ResidentImages:
    """Images that live on the device as uint8; cropped, flipped and normalised there.

    Args:
        images: uint8 (n, H, W, C) on the device.
        targets: int64 (n,) on the device.
        view: how the network sees them.

    >>> images = torch.zeros(10, 8, 8, 1, dtype=torch.uint8)
    >>> loader = ResidentImages(images, torch.arange(10), View((0.5,), (0.5,)))
    >>> [(len(batch.rows), tuple(batch.inputs.shape)) for batch in loader.training(torch.arange(10), 0, 4)]
    [(4, (4, 1, 8, 8)), (4, (4, 1, 8, 8)), (2, (2, 1, 8, 8))]
    """

    def __init__(self, images: torch.Tensor, targets: torch.Tensor, view: View) -> None:
        self.images, self.targets = images, targets
        self.n, (height, width, channels) = len(images), images.shape[1:]
        self.sites, self.values = height * width, height * width * channels
        self._view = view
        self._normalise = Normaliser(view.mean, view.std, images.device)

    def training(self, rows: torch.Tensor, epoch: int, batch_size: int) -> Iterator[Batch]:
        device = self.images.device
        draws = self._view.draws(self.n, epoch)
        if draws is not None:
            top, left, flip = (draw.to(device, non_blocking=True) for draw in draws)
        most = by_device(CHUNK_VALUES, device)
        chunk = max(1, most // (self.values * batch_size)) * batch_size
        for some in rows.to(device, non_blocking=True).split(chunk):
            if draws is None:
                pixels = self.images.index_select(0, some)
            else:
                pixels = crop_flip(self.images, some, (top[some], left[some], flip[some]), self._view.pad)
            parts = (some, self._normalise(pixels), self.targets[some])
            yield from map(Batch, *(part.split(batch_size) for part in parts))

    def plain(self, batch_size: int) -> Iterator[Batch]:
        everything = torch.arange(self.n, device=self.images.device)
        parts = (part.split(batch_size) for part in (everything, self.images, self.targets))
        for rows, images, targets in zip(*parts, strict=True):
            yield Batch(rows, self._normalise(images), targets)

    def close(self) -> None:
        pass


_decoded: weakref.WeakKeyDictionary[Any, dict[Any, torch.Tensor]] = weakref.WeakKeyDictionary()
_decoding = threading.Lock()


def _resident(read: Read, n: int, shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    """All images as uint8 (n, H, W, C) on the device.

    Encoded images are decoded once per process: a test set is the same for fifty trainings.
    """
    images = read.images
    if isinstance(images, np.ndarray) and read.size is None and read.rows is None:
        array = images if images.flags.writeable and images.flags.c_contiguous else np.array(images)
        return torch.from_numpy(array).to(device)
    if isinstance(images, np.ndarray) or read.rows is not None:
        return _read_all(read, n, shape).to(device)
    with _decoding:
        copies = _decoded.setdefault(images, {})
        key = (read.size, read.margin)
        if key not in copies:
            copies[key] = _read_all(read, n, shape)
        return copies[key].to(device)


def _read_all(read: Read, n: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Read in chunks by threads: decoders release the interpreter's lock."""
    out = torch.empty((n, *shape), dtype=torch.uint8)
    chunks = np.array_split(np.arange(n), math.ceil(n / READ_ROWS))
    with ThreadPoolExecutor(cpu_count()) as pool:
        for chunk, pixels in zip(chunks, pool.map(lambda rows: read(rows, None), chunks), strict=True):
            out[chunk[0] : chunk[-1] + 1] = torch.from_numpy(np.ascontiguousarray(pixels))
    return out


def open_images(
    images: Any,
    targets: NDArray[np.integer],
    view: View,
    device: torch.device,
    *,
    rows: NDArray[np.integer] | None = None,
    workers: int | None = None,
    resident: bool | None = None,
) -> Loader:
    """The loader that suits the images and the device's free memory.

    Args:
        images: uint8 (N, H, W, C) array, or an object with ``shape``, ``len`` and ``read(rows)``
            (winnow.tasks.data).
        targets: int64 (n,).
        view: how the network sees them.
        device: where batches are wanted.
        rows: int64 (n,), rows of ``images``; None takes all.
        workers: processes that read a streamed set; None chooses.
        resident: hold the images on the device; None decides by free memory.

    Raises:
        BadInput: images, rows, targets and view do not match.
    """
    if rows is not None:
        rows = np.asarray(rows, np.int64)
    n = len(images) if rows is None else len(rows)
    _check(images, targets, rows, n, view)
    shape, side, channels = _form(images)
    resized = view.size is not None and shape != (view.size, view.size)
    if shape is None or view.resizes_at_random or resized:
        side = view.size or side
        read = Read(images, rows, side, 1.0 if view.resizes_at_random else view.margin, view.seed)
    else:
        read = Read(images, rows, None, 1.0, view.seed)
        if shape[0] != shape[1]:
            raise BadInput(
                f"images of {shape[0]} x {shape[1]} pixels are not square.",
                remedy="set the recipe's size: the centre is cropped",
            )
    seen = (side, side, channels)
    if view.crops and view.pad >= side:
        raise BadInput(
            f"pad = {view.pad} does not reflect in images of {side} x {side} pixels.",
            remedy="lower the recipe's pad, or pad='scaled'",
        )
    if resident is None:
        resident = not view.resizes_at_random and n * math.prod(seen) <= free_bytes(device) // 2
    elif resident and view.resizes_at_random:
        raise BadInput("resident=True does not go with augment='imagenet', which resizes from the originals.")
    labels = torch.from_numpy(np.array(targets, np.int64)).to(device)
    if resident:
        return ResidentImages(_resident(read, n, seen, device), labels, view)
    if workers is None:
        workers = 0 if isinstance(images, np.ndarray) and read.size is None else cpu_count()
    return StreamedImages(read, labels, view, shape=seen, workers=workers)


def _check(images: Any, targets: Any, rows: NDArray[np.integer] | None, n: int, view: View) -> None:
    if n == 0:
        raise BadInput("no images: there is nothing to train on or to predict.")
    if len(targets) != n:
        raise BadInput(
            f"{len(targets)} targets of {n} images.", remedy="give one target an image, in the order of rows"
        )
    if rows is not None:
        wrong = np.flatnonzero((rows < 0) | (rows >= len(images)))
        if len(wrong):
            raise BadInput(f"rows[{wrong[0]}] = {rows[wrong[0]]} is outside the {len(images)} images.")
    if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.ndim != 4):
        raise BadInput(f"images are {images.dtype} {images.shape}, not uint8 (N, H, W, C).")
    channels = _form(images)[2]
    if len(view.mean) != channels or len(view.std) != channels or not all(s > 0 for s in view.std):
        raise BadInput(
            f"mean {tuple(view.mean)} and std {tuple(view.std)} do not fit images of {channels} channels."
        )
