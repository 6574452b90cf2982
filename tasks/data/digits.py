"""The digits that come with scikit-learn: no download, so that everything can be tried anywhere."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np

from winnow.tasks.data.images import ArrayImages
from winnow.tasks.data.load import check_split
from winnow.tasks.data.split import Split, channel_statistics

__all__ = ["digits"]

_FILE = "sklearn/datasets/data/digits.csv.gz"  # opened as a file: to import scikit-learn takes a second


def digits(split: str = "train", *, root: Path | None = None, download: bool = True) -> Split:
    """1,797 handwritten digits, 8x8 grey, bundled with scikit-learn.

    Every fifth digit of each class (the 5th, 10th, … in the bundled order) is a test image: 1,442 train, 355
    test. The 17 grey levels 0 … 16 become ``round(255 level / 16)``.

    Args:
        split: ``train`` or ``test``.
        root: unused; there are no files.
        download: unused.

    Returns:
        the split; images uint8 (N, 8, 8, 1).

    Raises:
        BadInput: no such split.

    >>> train, test = digits("train"), digits("test")
    >>> len(train) + len(test)
    1797

    References:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
        1998 (its test part).
    """
    check_split("digits", split)
    table = np.loadtxt(str(metadata.distribution("scikit-learn").locate_file(_FILE)), delimiter=",")
    labels = table[:, 64].astype(np.int64)
    pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    mean, std = channel_statistics(ArrayImages(pixels[~held_out]))
    rows = np.flatnonzero(held_out if split == "test" else ~held_out)
    ids, images, classes = np.arange(len(rows)), ArrayImages(pixels[rows]), tuple(map(str, range(10)))
    return Split("digits", split, ids, images, classes, mean, std, truth=labels[rows])
