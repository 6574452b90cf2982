"""Folders of image files: how they are listed, and any such folder as a dataset."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from winnow.tasks.data.images import Encoded, FileImages, readable_suffixes
from winnow.tasks.data.index import blake2b
from winnow.tasks.data.load import candidates, check_split, natural_key
from winnow.tasks.data.split import Split, channel_statistics
from winnow.tasks.errors import BadInput, MissingData

__all__ = ["files_under", "finish", "imagefolder"]

log = logging.getLogger("winnow.tasks.data")

_TEST_FOLDERS = ("test", "val", "valid", "validation")

AnyEncoded = TypeVar("AnyEncoded", bound=Encoded)


def files_under(folder: Path, suffixes: set[str]) -> list[str]:
    """Image files at any depth under a folder, relative to it, with forward slashes.

    Hidden files and folders are left out; a folder reached by several links is entered once.
    """
    entered: set[str] = set()

    def walk(path: str, prefix: str) -> Iterator[str]:
        real = os.path.realpath(path)
        if real in entered:
            return
        entered.add(real)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from walk(entry.path, f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in suffixes:
                    yield prefix + entry.name

    return list(walk(str(folder), ""))


def folders_in(folder: Path) -> list[str]:
    """Names of a folder's sub-folders, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def without_corrupt(
    name: str, split: str, images: AnyEncoded, skip_corrupt: bool
) -> tuple[AnyEncoded, np.ndarray]:
    """The images and their rows; with ``skip_corrupt`` only those that decode; the log names the others."""
    good = images.decodable() if skip_corrupt else np.ones(len(images), bool)
    rows = np.flatnonzero(good)
    if good.all():
        return images, rows
    bad = [images.name_of(row) for row in np.flatnonzero(~good).tolist()]
    log.warning(
        "%s/%s: %d images cannot be decoded and are left out: %s", name, split, len(bad), ", ".join(bad)
    )
    return images.take(rows), rows


def imagefolder(
    split: str = "train",
    *,
    variant: str,
    root: Path | None = None,
    download: bool = True,
    test_fraction: float | None = None,
    size: int | None = None,
    channels: int = 3,
    skip_corrupt: bool = False,
    cache: Path | None = None,
) -> Split:
    """Any folder of images: ``imagefolder:<path>``.

    If it holds ``train/``, then ``train/`` and ``test/`` (or ``val/``) are the splits; otherwise the folder
    is one pool. Sub-folders are the classes; a flat folder is unlabelled. Names are sorted naturally (9
    before 10).

    Args:
        split: ``train``, ``test``, or another split folder that exists.
        variant: the folder; a relative one is looked for under ``root`` and then in the working directory.
        root: default the data root.
        download: unused.
        test_fraction: where there is no test folder, the share of images that ``test`` takes: those whose
            path's blake2b hash falls below it, so that an image never changes sides when others come or go.
        size: short side in pixels; images are then cropped to a square, so that small networks can train on
            any folder.
        channels: 3 (grey is repeated) or 1 (grey; needs ``size`` or images of one size).
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder of the checksum index.

    Returns:
        the split; ``shape`` is set if all images have one size; mean and std are those of at most 2,048
        training images.

    Raises:
        MissingData: no such folder.
        BadInput: no images, no such split, images beside class folders, a test class that is not in train.
    """
    name = f"imagefolder:{variant}"
    folder = _find_folder(variant, root)
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise BadInput(f"test_fraction = {test_fraction}: must be between 0 and 1.")
    folders = _split_folders(folder)
    if "test" not in folders:
        if test_fraction is None and split == "test":
            raise BadInput(
                f"{name} has no split 'test': there is no {'/ or '.join(_TEST_FOLDERS)}/ in {folder}.",
                remedy="pass test_fraction=0.1 to hold out some images",
            )
    elif test_fraction is not None:
        raise BadInput(
            f"test_fraction = {test_fraction}, but {folders['test']} is there.",
            remedy="leave test_fraction out",
        )
    check_split(name, split, sorted({*folders, "test"}))
    options = {"size": size, "channels": channels, "cache": cache}
    paths, truth, classes = _listing(name, folders["train"], None)
    pool = FileImages(folders["train"], paths, **options)
    held_out = np.zeros(len(paths), bool)
    if test_fraction is not None:
        held_out[:] = [_path_share(path) < test_fraction for path in paths]
        if held_out.all() or not held_out.any():
            part = "train" if held_out.all() else "test"
            raise BadInput(f"test_fraction = {test_fraction} leaves no {part} images of {len(paths)}.")
    train = images = pool.take(np.flatnonzero(~held_out))
    if split in folders and split != "train":
        paths, truth, classes = _listing(name, folders[split], classes)
        images = FileImages(folders[split], paths, **options)
    else:
        rows = np.flatnonzero(held_out == (split == "test"))
        truth = None if truth is None else truth[rows]
        if split == "test":
            images = pool.take(rows)
    return finish(name, split, train, images, classes, truth, skip_corrupt)


def finish(
    name: str,
    split: str,
    train: Encoded,
    images: Encoded,
    classes: tuple[str, ...],
    truth: np.ndarray | None,
    skip_corrupt: bool,
) -> Split:
    """The split of a user's own images, whose shape and statistics are not published.

    Args:
        name, split: of the dataset.
        train: the training images, whose mean and std are taken.
        images: those of the split; may be ``train`` itself.
        classes: their names.
        truth: int64 (N,) labels of ``images``, None where there are none.
        skip_corrupt: leave out images that cannot be decoded.
    """
    kept, rows = without_corrupt(name, split, images, skip_corrupt)
    kept_train = kept if train is images else without_corrupt(name, "train", train, skip_corrupt)[0]
    for usable, part in ((kept, split), (kept_train, "train")):
        if not len(usable):
            raise BadInput(f"{name}/{part} has no images.")
        usable.shape = usable.common_shape()
        if usable.shape is None and usable.channels == 1:
            raise BadInput(
                f"channels = 1, but the images of {name}/{part} are of several sizes.",
                remedy="pass size=<pixels> too",
            )
    mean, std = channel_statistics(kept_train)
    labels = None if truth is None else truth[rows]
    return Split(name, split, rows, kept, classes, mean, std, truth=labels, sources=kept.sources)


def _find_folder(variant: str, root: Path | None) -> Path:
    folders = candidates(variant, root)
    for folder in folders:
        if folder.is_dir():
            return folder
    raise MissingData(
        f"there is no folder {' or '.join(map(str, folders))}.",
        remedy="give the folder's absolute path: imagefolder:/path/to/images",
    )


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split; the first that exists among the test split's names is also ``test``."""
    names = folders_in(folder)
    if "train" not in names:
        return {"train": folder}
    folders = {name: folder / name for name in names if name in ("train", *_TEST_FOLDERS, "unlabeled")}
    test = next((folders[name] for name in _TEST_FOLDERS if name in folders), None)
    return folders if test is None else {**folders, "test": test}


def _listing(
    name: str, folder: Path, train_classes: tuple[str, ...] | None
) -> tuple[list[str], np.ndarray | None, tuple[str, ...]]:
    """Paths, labels and class names of a folder; the classes are those of ``train_classes`` where given."""
    paths = sorted(files_under(folder, readable_suffixes()), key=natural_key)
    if not paths:
        raise BadInput(
            f"{name}: there are no images in {folder}.",
            remedy=f"file names must end in one of {' '.join(sorted(readable_suffixes()))}",
        )
    loose = [path for path in paths if "/" not in path]
    if len(loose) == len(paths):
        return paths, None, train_classes or ()
    if loose:
        raise BadInput(
            f"{name}: {len(loose)} images ({loose[0]}, …) lie in {folder} beside class folders.",
            remedy="move them into a class folder, or all images into one flat folder",
        )
    names = tuple(sorted({path.partition("/")[0] for path in paths}, key=natural_key))
    classes = train_classes or names
    strangers = sorted(set(names) - set(classes))
    if strangers:
        raise BadInput(f"{name}: {folder} has classes that train has not: {', '.join(strangers[:5])}.")
    labels = {label: number for number, label in enumerate(classes)}
    return paths, np.array([labels[path.partition("/")[0]] for path in paths], np.int64), classes


def _path_share(path: str) -> float:
    """A number in [0, 1) that depends on the path alone."""
    return int.from_bytes(blake2b(path, size=8), "big") / 2**64
