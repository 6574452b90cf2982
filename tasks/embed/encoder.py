"""Encoders turn images into vectors; ``embed`` runs one over rows, ``normalise`` scales the result."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image

from winnow.tasks.data.images import Images, row_numbers
from winnow.tasks.embed.preprocess import Preprocess
from winnow.tasks.errors import BadInput
from winnow.tasks.hardware import borrowed_generator, by_device

if TYPE_CHECKING:
    from winnow.tasks.progress import Callback

__all__ = ["Encoder", "NetworkEncoder", "embed", "normalise", "seeded"]

log = logging.getLogger("winnow.tasks.embed")

_BLOCK = 8192  # rows held in float64 at a time


class Encoder(Protocol):
    """Turns images into vectors of ``dim`` numbers, each independent of the rest of its batch.

    An encoder may also have a method ``on_device``, which takes the same images and returns the vectors as a
    tensor on the device that computes them, without waiting for them.
    """

    @property
    def dim(self) -> int: ...

    def __call__(self, images: np.ndarray | list[Image.Image]) -> np.ndarray:
        """float32 (n, dim) of uint8 (n, H, W, C) or of n PIL images."""
        ...


class NetworkEncoder:
    """A network without its classifier, behind its preprocessing, in evaluation mode.

    Args:
        name: for messages.
        network: (n, 3, size, size) float32 to (n, dim).
        preprocess: images to the network's input.
        device: where it runs.
        dtype: for matrix products (autocast); weights and results are float32.
    """

    def __init__(
        self,
        name: str,
        network: torch.nn.Module,
        preprocess: Preprocess,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        layout = by_device({"cpu": torch.contiguous_format, "cuda": torch.channels_last}, device)
        self.name, self.preprocess, self.device, self.dtype = name, preprocess, device, dtype
        self.network = network.eval().requires_grad_(False).to(device).to(memory_format=layout)
        self.dim = self(np.zeros((1, preprocess.size, preprocess.size, 3), np.uint8)).shape[1]

    def __call__(self, images: np.ndarray | list[Image.Image]) -> np.ndarray:
        return self.on_device(images).cpu().numpy()

    def on_device(self, images: np.ndarray | list[Image.Image]) -> torch.Tensor:
        """float32 (n, dim) on the network's device; a GPU may still be computing them."""
        reduced = self.dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=self.dtype if reduced else None, enabled=reduced),
        ):
            features = self.network(self.preprocess(images, self.device))
        if features.ndim != 2:
            raise BadInput(
                f"{self.name} yields features of shape {tuple(features.shape)}, not one vector an image."
            )
        return features.float()


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Inside, torch initialises weights from a stream that depends on ``generator`` alone.

    >>> before = torch.get_rng_state()
    >>> with seeded(torch.Generator().manual_seed(0)):
    ...     layer = torch.nn.Linear(2, 2)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    with borrowed_generator(seed):
        yield


def embed(
    encoder: Encoder,
    images: Images,
    rows: Sequence[int] | np.ndarray | slice,
    *,
    batch_size: int = 256,
    progress: Callback | None = None,
) -> np.ndarray:
    """One vector for each image in ``rows``.

    While a batch is encoded, the next is read and decoded; a GPU gets the next batch before the last one's
    vectors are waited for.

    Args:
        encoder: what turns a batch into vectors.
        images: N images.
        rows: (n,) whole numbers in 0 .. N − 1, or a slice.
        batch_size: images at a time; changes memory and speed, and results by no more than rounding.
        progress: called after each batch with rows done, rows in all and a note.

    Returns:
        (n, dim) float32.

    Raises:
        BadInput: rows that do not exist, or an embedding that is NaN or infinite; names the row.

    >>> from winnow.tasks.data.images import ArrayImages
    >>> from winnow.tasks.embed.pixels import pixels
    >>> images = ArrayImages(np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1))
    >>> encoder = pixels(images, device=torch.device("cpu"), dtype=torch.float32, generator=torch.Generator())
    >>> (255 * embed(encoder, images, [2, 0])).round().tolist()
    [[8.0, 9.0, 10.0, 11.0], [0.0, 1.0, 2.0, 3.0]]
    """
    if isinstance(batch_size, bool) or batch_size < 1:
        raise BadInput(f"batch_size = {batch_size!r}: must be at least 1.")
    numbers = row_numbers(rows, len(images))
    vectors = np.empty((len(numbers), encoder.dim), np.float32)
    encode = getattr(encoder, "on_device", encoder)

    def collect(start: int, arrive: Callable[[], np.ndarray]) -> None:
        encoded = arrive()
        bad = np.flatnonzero(~np.isfinite(encoded).all(axis=1))
        if len(bad):
            raise BadInput(
                f"the embedding of row {numbers[start + bad[0]]} has NaN or infinite values (so have "
                f"{len(bad)} of its batch).",
                remedy="check the weights, then that image; in half precision an overflow looks like this, "
                "too: device=cpu has none",
            )
        end = start + len(encoded)
        vectors[start:end] = encoded
        if progress is not None:
            progress(end, len(numbers), "images")

    begun: deque[tuple[int, Callable[[], np.ndarray]]] = deque()
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(images.read, numbers[:batch_size])
        for start in range(0, len(numbers), batch_size):
            batch, end = coming.result(), start + batch_size
            if end < len(numbers):
                coming = reader.submit(images.read, numbers[end : end + batch_size])
            begun.append((start, _on_its_way(encode(batch))))
            if len(begun) > 1:
                collect(*begun.popleft())
        if begun:
            collect(*begun.popleft())
    return vectors


def _on_its_way(features: np.ndarray | torch.Tensor) -> Callable[[], np.ndarray]:
    """A function that waits for features and returns them as an array.

    From a GPU, the copy to the host is queued behind the computation, so that only this function waits.
    """
    if isinstance(features, np.ndarray):
        return lambda: features
    if features.device.type != "cuda":
        return features.numpy
    with torch.cuda.device(features.device):
        copy = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        copy.copy_(features, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

    def arrive() -> np.ndarray:
        copied.synchronize()
        return copy.numpy()

    return arrive


def normalise(features: np.ndarray, how: str, *, reference: np.ndarray | None = None) -> np.ndarray:
    """Scale embeddings.

    ``l2``: x / ‖x‖. ``zscore``: (x − μ) / σ in each dimension, σ with N − 1 in the denominator. ``none``:
    unchanged. A vector of norm zero stays zero, a constant dimension becomes zero. Sums are in float64.

    Args:
        features: (N, D) float32 or float16.
        how: ``none``, ``l2`` or ``zscore``.
        reference: (M, D) features whose μ and σ are used: for test images, those of the training images;
            default the features themselves.

    Returns:
        (N, D) float32, a new array.

    Raises:
        BadInput: unknown ``how``, NaN or infinite features (names the row), or features of another shape.

    >>> normalise(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), "l2").tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    >>> normalise(np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]], np.float32), "zscore").tolist()
    [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]

    References:
        gen_embeds.py and main_args.py (--l2_norm, --embed_norm) of HHU-MMBS/TEMI-official-BMVC2023.
    """
    if how not in ("none", "l2", "zscore"):
        raise BadInput(f"normalise = {how!r} is not one of none, l2, zscore.")
    _check(features, "features")
    result = np.array(features, np.float32)
    if how == "l2":
        for block in _blocks(result):
            norm = np.sqrt(np.square(block, dtype=np.float64).sum(axis=1, keepdims=True))
            block /= np.where(norm > 0, norm, 1)
    elif how == "zscore":
        source = features if reference is None else reference
        if reference is not None:
            _check(reference, "reference")
            if reference.shape[1] != features.shape[1]:
                raise BadInput(
                    f"reference has {reference.shape[1]} dimensions, features {features.shape[1]}."
                )
        if len(source) < 2:
            raise BadInput(f"zscore needs the statistics of at least 2 rows, found {len(source)}.")
        mean = sum(block.sum(axis=0, dtype=np.float64) for block in _blocks(source)) / len(source)
        squares = sum(np.square(block - mean).sum(axis=0) for block in _blocks(source))
        std = np.sqrt(squares / (len(source) - 1))
        std[std <= 1e-7 * np.abs(mean)] = 0  # constant up to the rounding of its mean
        for block in _blocks(result):
            block[...] = np.where(std > 0, (block - mean) / np.where(std > 0, std, 1), 0)
    return result


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def _check(features: np.ndarray, name: str) -> None:
    if features.ndim != 2 or features.dtype.kind != "f":
        raise BadInput(
            f"{name} must be a floating-point matrix (N, D), found {features.dtype} {features.shape}."
        )
    for number, block in enumerate(_blocks(features)):
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            raise BadInput(f"{name}: row {number * _BLOCK + bad[0]} has NaN or infinite values.")
