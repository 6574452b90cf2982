"""The front door to datasets: a name, a split and options give a Split."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from winnow.tasks.data.fetch import UNVERIFIED
from winnow.tasks.data.split import Split
from winnow.tasks.errors import BadInput, did_you_mean
from winnow.tasks.hardware import data_root
from winnow.tasks.registry import datasets

__all__ = [
    "candidates",
    "check_count",
    "check_split",
    "data_folder",
    "labelled",
    "load_split",
    "natural_key",
    "numbered",
    "options_of",
]

_RESERVED = {"split", "variant"}


def options_of(name: str) -> dict[str, Any]:
    """Options of a dataset with their defaults.

    Raises:
        UnknownName: no such dataset.

    >>> options_of("cifar10")["verify"]
    True
    """
    parameters = inspect.signature(datasets.get(name).function).parameters
    own = {key: parameter.default for key, parameter in parameters.items() if key not in _RESERVED}
    return {**own, "labels": None}


def load_split(name: str, split: str = "train", **options: Any) -> Split:
    """Load one split of a dataset.

    Args:
        name: a registered name, for example ``cifar10`` or ``imagefolder:/path``.
        split: ``train``, ``test`` or one of the dataset's own.
        options: ``root`` (default: the data root), ``download`` (default True; ``WINNOW_OFFLINE=1`` forbids
            it), ``labels`` (a file of one's own labels, see :func:`labelled`) and the dataset's own.

    Raises:
        UnknownName: no such dataset.
        BadInput: no such split or option, or damaged files.
        MissingData: files are missing and cannot be fetched.

    >>> split = load_split("digits", "test")
    >>> len(split), split.images.shape
    (355, (8, 8, 1))
    """
    accepted = options_of(name)
    for option in options:
        if option not in accepted:
            raise BadInput(
                f"{name} has no option {option!r}.{did_you_mean(option, accepted)} Options: "
                f"{', '.join(sorted(accepted))}."
            )
    labels = options.pop("labels", None)
    loaded: Split = datasets.get(name)(split=split, **options)
    return loaded if labels is None else labelled(loaded, labels)


def labelled(split: Split, path: str) -> Split:
    """A split with the labels of a file in place of its own.

    Args:
        split: of any dataset.
        path: a file of arrays (:mod:`winnow.tasks.data.arrays`) with a column ``label``, and one with ids or
            paths unless it has one row per sample, in order; ``path#name`` picks another column. Or what an
            annotation tool exported (:mod:`winnow.tasks.data.annotations`). Rows of other samples (of the
            test split) are passed over. Class names, or numbers.

    Raises:
        BadInput: a sample without a label.
    """
    from winnow.tasks.data.rows import in_order_of, labels_in

    names = None if split.sources is None else list(split.sources)
    words, ids = labels_in(str(path), names)
    order = in_order_of(str(path), ids, len(words), split.ids, names, exactly=False)
    if words.dtype.kind == "f" and not (words == np.rint(words)).all():
        raise BadInput(f"{path}: labels are fractions such as {words[words != np.rint(words)][0]}.")
    words = (words.astype(np.int64) if words.dtype.kind in "fiub" else words).astype(str)
    classes, numbers = numbered(words)
    if set(classes) <= set(split.classes):  # the dataset's own, in its order
        place = {word: number for number, word in enumerate(split.classes)}
        classes, numbers = split.classes, np.array([place[word] for word in words])
    return replace(split, classes=classes, truth=numbers if order is None else numbers[order])


def numbered(words: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names in natural order, and the number of each row's class.

    >>> numbered(np.array(["10", "9", "10"]))
    (('9', '10'), array([1, 0, 1]))
    """
    names, inverse = np.unique(words.astype(str), return_inverse=True)
    order = sorted(range(len(names)), key=lambda row: natural_key(str(names[row])))
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    return tuple(str(names[row]) for row in order), place[inverse]


def natural_key(path: str) -> list[tuple[Any, ...]]:
    """Sort key that compares paths folder by folder, and digits in names as numbers.

    >>> sorted(["b/10.png", "b/9.png", "a/x.png"], key=natural_key)
    ['a/x.png', 'b/9.png', 'b/10.png']
    """
    key = []
    for name in path.split("/"):
        pieces: list[Any] = re.split(r"(\d+)", name)
        pieces[1::2] = [int(digits) for digits in pieces[1::2]]
        key.append((*pieces, name))  # the name itself decides between 01 and 1
    return key


def data_folder(root: Path | str | None) -> Path:
    """``root``, else the data root; absolute."""
    return data_root() if root is None else Path(root).expanduser().absolute()


def candidates(path: str, root: Path | None) -> list[Path]:
    """Where a user's path may lead; a relative one under ``root`` or the working folder."""
    wanted = Path(path).expanduser()
    return [wanted] if wanted.is_absolute() else [data_folder(root) / wanted, wanted.absolute()]


def check_split(name: str, split: str, splits: Iterable[str] | None = None) -> None:
    """Refuse a split that the dataset does not have.

    Raises:
        BadInput: naming the splits.

    >>> check_split("cifar10", "tset")
    Traceback (most recent call last):
    winnow.BadInput: cifar10 has no split 'tset'. Did you mean 'test'? Splits: train, test.
    """
    offered = list(datasets.get(name).splits if splits is None else splits)
    if split not in offered:
        raise BadInput(
            f"{name} has no split {split!r}.{did_you_mean(split, offered)} Splits: {', '.join(offered)}."
        )


def check_count(name: str, split: str, found: int, folder: Path, *, expected: int | None = None) -> None:
    """Refuse a published split with missing images, as an interrupted unpacking leaves it.

    Raises:
        BadInput: with both numbers.
    """
    expected = datasets.get(name).samples[split] if expected is None else expected
    if found != expected:
        raise BadInput(
            f"{name}/{split}: {found:,} images in {folder}, the published split has {expected:,}.",
            remedy=f"unpack or fetch it again (an interrupted run leaves a part), or pass {UNVERIFIED} to "
            "use what is there",
        )
