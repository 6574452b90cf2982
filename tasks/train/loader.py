"""Batches of images: whole on the device as uint8 and augmented there where they fit, streamed from workers where they do not.

What an epoch draws depends on (seed, epoch, row) alone: the order from one generator, the crops and flips
from another, both on the CPU. So a resumed run needs no generator states, and the two loaders and all devices
see the same images in the same order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image

from winnow.tasks.errors import BadInput
from winnow.tasks.hardware import cpu_count, seed_sequence, torch_generator

__all__ = [
    "Batch",
    "DeviceLoader",
    "Loader",
    "StreamLoader",
    "crop_flip",
    "open_loader",
    "random_resized_crop",
]

Batch = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor
]  # rows int64 (b,), images float32 (b, C, H, W), targets int64 (b,)
Draws = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # top, left, flip; each (n,)

CHUNK_VALUES = {
    "cpu": 1 << 19,
    "cuda": 1 << 26,
}  # pixels gathered and normalised at once: many small batches cost one call
READ_ROWS = 1024
DEFAULT_SIZE = 224  # where images differ in size and nobody says what the network sees


class Loader(Protocol):
    """What the training loop asks of a loader; ``shape`` is (H, W, C) of what the network sees."""

    n: int
    shape: tuple[int, int, int]
    batch_size: int
    drop_last: bool

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented batches of one epoch."""

    def sequential(self, batch_size: int) -> Iterator[Batch]:
        """All samples in row order, not augmented."""

    def close(self) -> None:
        """End worker processes."""


# -- the arithmetic ------------------------------------------------------------------------------------------


def order_of(n: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of one epoch, int64 (n,) on the CPU."""
    return torch.randperm(n, generator=torch_generator(seed, "order", str(epoch)))


def draws_of(n: int, pad: int, flip: bool, seed: int, epoch: int) -> Draws:
    """Crop offsets in [0, 2 pad] and flips of one epoch, for each row, on the CPU."""
    generator = torch_generator(seed, "augment", str(epoch))
    offsets = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    flips = (
        torch.randint(0, 2, (n,), generator=generator, dtype=torch.bool)
        if flip
        else torch.zeros(n, dtype=torch.bool)
    )
    return offsets[0], offsets[1], flips


def _reflected(size: int, pad: int, device: torch.device) -> torch.Tensor:
    position = (torch.arange(size + 2 * pad, device=device) - pad).abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def crop_flip(images: torch.Tensor, rows: torch.Tensor, draws: Draws, pad: int) -> torch.Tensor:
    """Random crops of reflect-padded images, flipped where drawn, in one gather.

    out[i, y, x] = padded(images[rows[i]])[top_i + y, left_i + x'] with x' = W − 1 − x where flipped, else x.
    The padded image is never made: padding is a table of reflected positions.

    Args:
        images: uint8 (N, H, W, C).
        rows: int64 (b,), rows of ``images``.
        draws: top, left int64 (b,) in [0, 2 pad], flip bool (b,).
        pad: pixels of padding, below H and W.

    Returns:
        uint8 (b, H, W, C).

    >>> image = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1).expand(1, 2, 4, 1).contiguous()
    >>> one = lambda left, flip: (torch.tensor([1]), torch.tensor([left]), torch.tensor([flip]))
    >>> crop_flip(image, torch.tensor([0]), one(0, False), pad=1)[0, 0, :, 0].tolist()
    [1, 0, 1, 2]
    >>> crop_flip(image, torch.tensor([0]), one(1, True), pad=1)[0, 0, :, 0].tolist()
    [3, 2, 1, 0]

    References:
        torchvision RandomCrop(size, pad, padding_mode="reflect"), RandomHorizontalFlip
    """
    count, height, width, channels = images.shape
    top, left, flip = draws
    across = torch.arange(width, device=images.device)
    x = _reflected(width, pad, images.device)[
        left[:, None] + torch.where(flip[:, None], width - 1 - across, across)
    ]
    y = _reflected(height, pad, images.device)[top[:, None] + torch.arange(height, device=images.device)]
    pixel = ((rows[:, None] * height + y) * width)[:, :, None] + x[:, None, :]
    return (
        images.view(count * height * width, channels)
        .index_select(0, pixel.view(-1))
        .view(len(rows), height, width, channels)
    )


class _Normaliser:
    """(image / 255 − mean) / std as one multiply and one add, channels last in memory, channels first in shape."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        scale = 1 / (255 * np.asarray(std, np.float64))
        shift = -np.asarray(mean, np.float64) / np.asarray(std, np.float64)
        self.scale = torch.tensor(scale, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.shift = torch.tensor(shift, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2).to(torch.float32).mul_(self.scale).add_(self.shift)


def random_resized_crop(
    height: int, width: int, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """Box (left, upper, right, lower) of a random resized crop: area 8 to 100 %, aspect 3/4 to 4/3, ten tries, then the centre.

    >>> random_resized_crop(100, 50, np.random.default_rng(0))
    (24, 12, 45, 40)

    References:
        Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6; torchvision RandomResizedCrop
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * generator.uniform(0.08, 1.0)
        aspect = math.exp(generator.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            upper, left = (
                int(generator.integers(0, height - h + 1)),
                int(generator.integers(0, width - w + 1)),
            )
            return left, upper, left + w, upper + h
    w = min(width, round(height * high))
    h = min(height, round(width / low))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _centre_box(height: int, width: int, size: int, shorter: int) -> tuple[float, float, float, float]:
    """Box that becomes the ``size`` centre of the image once its shorter side is ``shorter``."""
    side = min(height, width) * size / shorter
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


class _Read:
    """Rows of images as uint8 (b, H, W, C) of one size: read, then resized where they differ or a size is asked for. Picklable."""

    def __init__(
        self, images: Any, rows: np.ndarray | None, size: int | None, margin: float, seed: int
    ) -> None:
        self.images, self.rows, self.size, self.margin, self.seed = images, rows, size, margin, seed

    def __call__(self, positions: np.ndarray, epoch: int | None) -> np.ndarray:
        """Images at ``positions`` of the training set; ``epoch`` given: random resized crops and flips of that epoch."""
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
            box = _centre_box(image.height, image.width, self.size, round(self.size * self.margin))
        else:
            generator = np.random.default_rng([*seed_sequence(self.seed, "augment"), epoch, position])
            box = random_resized_crop(image.height, image.width, generator)
            flip = generator.random() < 0.5
        out = np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))
        out = out[:, ::-1] if flip else out
        return out[..., None] if out.ndim == 2 else out


# -- loaders -------------------------------------------------------------------------------------------------


class DeviceLoader:
    """Images that live on the device as uint8; cropped, flipped and normalised there.

    Args:
        images: uint8 (n, H, W, C) on the device.
        targets: int64 (n,) on the device.
        mean, std: of the channels, in units of [0, 1].
        batch_size: samples a batch.
        crop: random crops (and ``flip``: random flips) in :meth:`epoch`.
        pad: pixels of reflect padding.
        seed: of order and augmentation.
        drop_last: leave out the last, smaller batch.

    >>> images = torch.zeros(10, 8, 8, 1, dtype=torch.uint8)
    >>> loader = DeviceLoader(images, torch.arange(10), mean=(0.5,), std=(0.5,), batch_size=4, seed=0)
    >>> [(len(rows), tuple(x.shape)) for rows, x, _ in loader.epoch(0)]
    [(4, (4, 1, 8, 8)), (4, (4, 1, 8, 8)), (2, (2, 1, 8, 8))]
    """

    def __init__(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        crop: bool = False,
        flip: bool = False,
        pad: int = 0,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.images, self.targets = images, targets
        self.n, self.shape = len(images), (images.shape[1], images.shape[2], images.shape[3])
        self.batch_size, self.drop_last = batch_size, drop_last
        self._crop, self._flip, self._pad, self._seed = crop, flip, pad, seed
        self._normalise = _Normaliser(mean, std, images.device)

    def _chunk(self, batch_size: int) -> int:
        most = CHUNK_VALUES.get(self.images.device.type, CHUNK_VALUES["cuda"])
        return max(1, most // (math.prod(self.shape) * batch_size)) * batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        device, size = self.images.device, self.batch_size
        order = order_of(self.n, self._seed, epoch)
        order = (order[: self.n - self.n % size] if self.drop_last else order).to(device, non_blocking=True)
        draws = None
        if self._crop:
            draws = tuple(
                draw.to(device, non_blocking=True)
                for draw in draws_of(self.n, self._pad, self._flip, self._seed, epoch)
            )
        for rows in order.split(self._chunk(size)):
            if draws is None:
                pixels = self.images.index_select(0, rows)
            else:
                pixels = crop_flip(
                    self.images, rows, (draws[0][rows], draws[1][rows], draws[2][rows]), self._pad
                )
            yield from zip(
                rows.split(size),
                self._normalise(pixels).split(size),
                self.targets[rows].split(size),
                strict=True,
            )

    def sequential(self, batch_size: int) -> Iterator[Batch]:
        everything = torch.arange(self.n, device=self.images.device)
        batches = zip(
            everything.split(batch_size),
            self.images.split(batch_size),
            self.targets.split(batch_size),
            strict=True,
        )
        for rows, images, targets in batches:
            yield rows, self._normalise(images), targets

    def close(self) -> None:
        pass


class _Order(torch.utils.data.Sampler):
    """The requests of the current pass; workers outlive epochs, so the list is exchanged under them."""

    def __init__(self) -> None:
        self.requests: list[tuple[int | None, np.ndarray]] = []

    def __iter__(self) -> Iterator[tuple[int | None, np.ndarray]]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class _Requests(torch.utils.data.Dataset):
    def __init__(self, read: _Read, random_crop: bool) -> None:
        self.read, self.random_crop = read, random_crop

    def __getitem__(self, request: tuple[int | None, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, positions = request
        pixels = self.read(positions, epoch if self.random_crop else None)
        return torch.from_numpy(positions), torch.from_numpy(np.ascontiguousarray(pixels))


class StreamLoader:
    """Images read, decoded and resized by worker processes while the device trains; cropped, flipped and normalised on the device.

    Args:
        read: gives uint8 images at positions of the training set.
        targets: int64 (n,) on the device.
        shape: (H, W, C) of what it gives.
        workers: processes; 0 reads in this one.
        random_crop: random resized crops and flips in :meth:`epoch`.
        mean, std, batch_size, crop, flip, pad, seed, drop_last: as in :class:`DeviceLoader`.
    """

    def __init__(
        self,
        read: _Read,
        targets: torch.Tensor,
        *,
        shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        workers: int,
        random_crop: bool = False,
        crop: bool = False,
        flip: bool = False,
        pad: int = 0,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.targets, self.n, self.shape = targets, len(targets), shape
        self.batch_size, self.drop_last = batch_size, drop_last
        self._device = targets.device
        self._crop, self._flip, self._pad, self._seed = crop, flip, pad, seed
        self._normalise = _Normaliser(mean, std, self._device)
        self._order = _Order()
        self._source: torch.utils.data.DataLoader | None = torch.utils.data.DataLoader(
            _Requests(read, random_crop),
            sampler=self._order,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=_start_method() if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws its workers' base seed from the global one
        )

    def _pass(self, requests: list[tuple[int | None, np.ndarray]], draws: Draws | None) -> Iterator[Batch]:
        assert self._source is not None, "the loader is closed"
        self._order.requests = requests
        for rows, pixels in self._source:
            pixels = pixels.to(self._device, non_blocking=True)
            if draws is not None:
                local = torch.arange(len(rows), device=self._device)
                top, left, flip = (draw[rows].to(self._device, non_blocking=True) for draw in draws)
                pixels = crop_flip(pixels, local, (top, left, flip), self._pad)
            rows = rows.to(self._device, non_blocking=True)
            yield rows, self._normalise(pixels), self.targets[rows]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        order = order_of(self.n, self._seed, epoch)
        order = order[: self.n - self.n % self.batch_size] if self.drop_last else order
        draws = draws_of(self.n, self._pad, self._flip, self._seed, epoch) if self._crop else None
        yield from self._pass([(epoch, rows.numpy()) for rows in order.split(self.batch_size)], draws)

    def sequential(self, batch_size: int) -> Iterator[Batch]:
        yield from self._pass([(None, rows.numpy()) for rows in torch.arange(self.n).split(batch_size)], None)

    def close(self) -> None:
        self._source = None


def _start_method() -> Literal["forkserver", "spawn"]:
    """Never plain fork: a forked worker inherits CUDA and held locks."""
    return "forkserver" if hasattr(os, "fork") else "spawn"


def _free_bytes(device: torch.device) -> int:
    """Memory that may be taken on the device; half of what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024 // 2
    except OSError:
        pass
    return 4 << 30


def _resident(read: _Read, n: int, shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    """All images as uint8 (n, H, W, C) on the device, read in chunks by threads (decoders release the interpreter's lock)."""
    images = read.images
    if isinstance(images, np.ndarray) and read.size is None and read.rows is None:
        array = images if images.flags.writeable and images.flags.c_contiguous else np.array(images)
        return torch.from_numpy(array).to(device)
    out = torch.empty((n, *shape), dtype=torch.uint8, device=device)
    chunks = np.array_split(np.arange(n), math.ceil(n / READ_ROWS))
    with ThreadPoolExecutor(cpu_count()) as pool:
        for chunk, pixels in zip(
            chunks, pool.map(lambda positions: read(positions, None), chunks), strict=True
        ):
            out[chunk[0] : chunk[-1] + 1] = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return out


def open_loader(
    images: Any,
    targets: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    rows: np.ndarray | None = None,
    batch_size: int = 256,
    augment: Literal["none", "crop", "crop_flip", "imagenet"] = "none",
    pad: int = 0,
    size: int | None = None,
    margin: float = 1.0,
    seed: int = 0,
    drop_last: bool = False,
    workers: int | None = None,
    resident: bool | None = None,
) -> Loader:
    """The loader that suits the images and the device's free memory.

    Args:
        images: uint8 (N, H, W, C) array, or an object with ``shape``, ``len`` and ``read(rows)``
            (winnow.tasks.data).
        targets: int64 (n,).
        mean, std: of the channels, in units of [0, 1].
        device: where batches are wanted.
        rows: int64 (n,), rows of ``images``; None takes all.
        batch_size: samples a batch.
        augment: of :meth:`Loader.epoch`; see :class:`winnow.tasks.train.recipe.Recipe`.
        pad: pixels of reflect padding of ``crop`` and ``crop_flip``.
        size: side of what the network sees; None keeps the images' own, 224 where they differ.
        margin: without random resized crops, images are resized to ``size`` times this on the shorter side
            and their centre is taken.
        seed: of order and augmentation.
        drop_last: leave out an epoch's last, smaller batch.
        workers: reading processes of a streamed set; None chooses.
        resident: hold the images on the device; None decides by free memory.

    Raises:
        BadInput: images, rows, targets, mean and std do not fit each other.
    """
    count = len(images)
    n = count if rows is None else len(rows)
    if n == 0:
        raise BadInput("no images: there is nothing to train on or to predict.")
    if len(targets) != n:
        raise BadInput(
            f"{len(targets)} targets of {n} images.", remedy="give one target an image, in the order of rows"
        )
    if rows is not None:
        rows = np.asarray(rows, np.int64)
        wrong = np.flatnonzero((rows < 0) | (rows >= count))
        if len(wrong):
            raise BadInput(f"rows[{wrong[0]}] = {rows[wrong[0]]} is outside the {count} images.")
    shape = images.shape[1:] if isinstance(images, np.ndarray) else images.shape
    if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.ndim != 4):
        raise BadInput(f"images are {images.dtype} {images.shape}, not uint8 (N, H, W, C).")
    channels = 3 if shape is None else int(shape[2])
    if len(mean) != channels or len(std) != channels or not all(s > 0 for s in std):
        raise BadInput(f"mean {tuple(mean)} and std {tuple(std)} do not fit images of {channels} channels.")
    random_crop = augment == "imagenet"
    if shape is None or random_crop or (size is not None and tuple(shape[:2]) != (size, size)):
        side = size or (DEFAULT_SIZE if shape is None else min(int(shape[0]), int(shape[1])))
        read = _Read(images, rows, side, 1.0 if random_crop else margin, seed)
        seen = (side, side, channels)
    else:
        read = _Read(images, rows, None, 1.0, seed)
        seen = (int(shape[0]), int(shape[1]), channels)
        if seen[0] != seen[1]:
            raise BadInput(
                f"images of {seen[0]} x {seen[1]} pixels are not square.",
                remedy="set the recipe's size: the centre is cropped",
            )
    crop = augment in ("crop", "crop_flip")
    if crop and pad >= min(seen[:2]):
        raise BadInput(
            f"pad = {pad} does not reflect in images of {seen[0]} x {seen[1]} pixels.",
            remedy="lower the recipe's pad, or pad='scaled'",
        )
    if resident is None:
        resident = not random_crop and n * math.prod(seen) <= _free_bytes(device)
    elif resident and random_crop:
        raise BadInput("resident=True does not go with augment='imagenet', which resizes from the originals.")
    labels = torch.from_numpy(np.array(targets, np.int64)).to(device)
    common: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "batch_size": batch_size,
        "crop": crop,
        "flip": augment == "crop_flip",
        "pad": pad,
        "seed": seed,
        "drop_last": drop_last,
    }
    if resident:
        return DeviceLoader(_resident(read, n, seen, device), labels, **common)
    if workers is None:
        workers = 0 if isinstance(images, np.ndarray) and read.size is None else cpu_count()
    return StreamLoader(read, labels, shape=seen, workers=workers, random_crop=random_crop, **common)
