"""One split of a dataset: images read by row, stable ids, classes, normalisation, and labels kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from winnow.tasks.data.images import ArrayImages, Encoded, FileImages, Images
from winnow.tasks.data.index import blake2b, remembered
from winnow.tasks.errors import BadInput, MissingLabels

__all__ = ["ArrayImages", "FileImages", "Images", "Split", "channel_statistics"]

STATISTICS_SAMPLE = 2048  # images; the standard error of a channel mean is then below 0.002


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    r"""Mean and standard deviation of each channel over pixels scaled to [0, 1].

    $\mu_c = \frac1P\sum_p x_{pc}$ and $\sigma_c = \sqrt{\frac1P\sum_p x_{pc}^2 - \mu_c^2}$ over all pixels of
    at most 2,048 evenly spaced images; sums are exact integers, so neither order nor threads matter. A
    constant channel has standard deviation 1.

    Args:
        images: N >= 1 images.

    Returns:
        two tuples of ``channels`` floats.

    >>> channel_statistics(ArrayImages(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)))
    ((0.5,), (0.5,))
    """
    rows = np.unique(np.linspace(0, len(images) - 1, STATISTICS_SAMPLE).astype(np.int64))
    if isinstance(images, Encoded):
        keys, settled = images.identify(rows)
        key = blake2b(keys.tobytes() + images.reading.encode())
        sums = remembered(
            images.index("statistics", 56),
            np.frombuffer(key, np.uint8).reshape(1, 16),
            np.array([settled.all()]),
            lambda _: _sums(images, rows).view(np.uint8)[None],
        ).view(np.int64)[0]
    else:
        sums = _sums(images, rows)
    pixels = int(sums[0])
    channels = int(np.count_nonzero(sums[1:4] >= 0))
    mean = sums[1 : 1 + channels] / pixels / 255
    variance = (sums[4 : 4 + channels] / pixels / 255**2 - mean**2).clip(min=0)
    std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
    return tuple(round(float(m), 6) for m in mean), tuple(round(float(s), 6) for s in std)


def _sums(images: Images, rows: np.ndarray) -> np.ndarray:
    # int64 (7,): pixels, sum of each channel, sum of squares of each channel; -1 for an absent channel
    sums = np.zeros(7, np.int64)
    channels = 3
    for start in range(0, len(rows), 64):
        for image in images.read(rows[start : start + 64]):
            pixels = np.asarray(image)
            flat = pixels.reshape(-1, pixels.shape[-1])
            channels = flat.shape[1]
            counts = np.stack([np.bincount(column, minlength=256) for column in flat.T])  # int64 and exact
            levels = np.arange(256)
            sums[0] += len(flat)
            sums[1 : 1 + channels] += counts @ levels
            sums[4 : 4 + channels] += counts @ levels**2
    if channels == 1:
        sums[[2, 3, 5, 6]] = -1
    return sums


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a dataset.

    Attributes:
        name: the dataset's registered name.
        split: ``train``, ``test``, …
        ids: int64 (N,), unique: the row in the split's canonical order, the same on every machine. The second
            part of a merged split continues from the first; images that were left out leave gaps.
        images: the images, one per row.
        classes: class names; empty where there are none.
        mean, std: of each channel of the training images, pixels scaled to [0, 1].
        truth: int64 (N,) true labels, or None if there are none. Only annotation and reporting read it.
        sources: file or key of each row, where images have one.
        columns: what else is known of each row: ``group``, ``weight``.

    Raises:
        BadInput: no images, or fields that do not match.

    >>> pixels = np.zeros((2, 8, 8, 1), np.uint8)
    >>> images, truth = ArrayImages(pixels), np.array([0, 1])
    >>> split = Split("toy", "train", np.arange(2), images, ("a", "b"), (0.5,), (0.5,), truth=truth)
    >>> len(split), split.labels()
    (2, array([0, 1]))
    """

    name: str
    split: str
    ids: np.ndarray
    images: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    truth: np.ndarray | None = field(default=None, repr=False)
    sources: Sequence[str] | None = field(default=None, repr=False)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        count = len(self.images)
        where = f"{self.name}/{self.split}"
        if count == 0:
            raise BadInput(f"{where} has no images.")
        columns: dict[str, Any] = {
            "ids": self.ids,
            "truth": self.truth,
            "sources": self.sources,
            **self.columns,
        }
        for name, column in columns.items():
            if column is not None and len(column) != count:
                raise BadInput(f"{where}: {count} images but {len(column)} {name}.")
        ids = np.array(self.ids, np.int64)
        if len(np.unique(ids)) != count:
            raise BadInput(f"{where}: ids are not unique.")
        ids.setflags(write=False)
        object.__setattr__(self, "ids", ids)
        if len(self.mean) != len(self.std) or (
            self.images.shape is not None and len(self.mean) != self.images.shape[2]
        ):
            raise BadInput(
                f"{where}: mean {self.mean} and std {self.std} do not fit images of shape "
                f"{self.images.shape}."
            )
        if self.truth is not None:
            truth = np.array(self.truth, np.int64)
            outside = np.flatnonzero((truth < 0) | (truth >= len(self.classes)))
            if outside.size:
                raise BadInput(
                    f"{where}: image {outside[0]} has label {truth[outside[0]]}, there are "
                    f"{len(self.classes)} classes."
                )
            truth.setflags(write=False)
            object.__setattr__(self, "truth", truth)

    def __len__(self) -> int:
        return len(self.images)

    def labels(self) -> np.ndarray:
        """True labels, int64 (N,), read-only.

        Raises:
            MissingLabels: the split has none.
        """
        if self.truth is None:
            raise MissingLabels(
                f"{self.name}/{self.split} has no labels.",
                remedy="use a label-free method (elfs, or a selector that needs features only), or a split "
                "with labels",
            )
        return self.truth
