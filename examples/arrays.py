r"""A dataset in one file: images and labels from an .npz file.

    WINNOW_PLUGINS=examples/arrays.py winnow run ccs -p dataset=arrays:/data/mine.npz \
        -p proxy.network=convnet -p training.network=convnet

The file holds ``train_images`` and ``test_images``, uint8 (N, H, W) or (N, H, W, C), and ``train_labels`` and
``test_labels``, int (N,).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from winnow.tasks.data.load import check_split
from winnow.tasks.data.split import ArrayImages, Split, channel_statistics
from winnow.tasks.errors import BadInput, MissingData
from winnow.tasks.registry import datasets


def arrays(split: str = "train", *, variant: str, root: Path | None = None, download: bool = True) -> Split:
    """Images and labels of an .npz file.

    Args:
        split: ``train`` or ``test``.
        variant: path of the file.
        root: unused; the path says where the file is.
        download: unused.

    Returns:
        the split; mean and standard deviation are those of the training images.

    Raises:
        BadInput: an array is missing, or the numbers of images and labels differ.
        MissingData: there is no such file.
    """
    check_split("arrays:*", split, ("train", "test"))
    path = Path(variant).expanduser()
    if not path.is_file():
        raise MissingData(
            f"{path}: no such file.", remedy="give the path after the colon: arrays:/data/mine.npz"
        )
    with np.load(path, allow_pickle=False) as file:
        missing = {f"{part}_{what}" for part in ("train", "test") for what in ("images", "labels")} - set(
            file
        )
        if missing:
            raise BadInput(f"{path} has no array {min(missing)}; it has {', '.join(file)}.")
        images = {part: ArrayImages(_with_channels(file[f"{part}_images"])) for part in ("train", "test")}
        labels = {part: file[f"{part}_labels"].astype(np.int64) for part in ("train", "test")}
    if len(images[split]) != len(labels[split]):
        raise BadInput(
            f"{path}: {len(images[split])} {split}_images and {len(labels[split])} {split}_labels."
        )
    classes = tuple(str(label) for label in range(max(int(part.max()) for part in labels.values()) + 1))
    mean, std = channel_statistics(images["train"])
    return Split(
        f"arrays:{path.name}",
        split,
        np.arange(len(labels[split])),
        images[split],
        classes,
        mean,
        std,
        truth=labels[split],
    )


def _with_channels(images: np.ndarray) -> np.ndarray:
    return images[..., None] if images.ndim == 3 else images


datasets.add("arrays:*", arrays)
