"""Datasets that are folders of image files: CINIC-10, Tiny ImageNet, ImageNet, and anybody's own."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.io

from winnow.tasks.data.fetch import UNVERIFIED, Published, damaged, extract_tar, obtain, unpack
from winnow.tasks.data.index import file_md5
from winnow.tasks.data.load import check_count, check_split, data_folder
from winnow.tasks.data.split import Encoded, FileImages, Split, channel_statistics, readable_suffixes
from winnow.tasks.errors import BadInput, MissingData

__all__ = ["cinic10", "imagefolder", "imagenet", "natural_key", "tiny_imagenet"]

log = logging.getLogger("winnow.tasks.data")

_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

AnyEncoded = TypeVar("AnyEncoded", bound=Encoded)


def natural_key(path: str) -> list[tuple[Any, ...]]:
    """Sort key under which numbers in names count as numbers, folder by folder.

    >>> sorted(["b/10.png", "b/9.png", "a/x.png"], key=natural_key)
    ['a/x.png', 'b/9.png', 'b/10.png']
    """
    key = []
    for part in path.split("/"):
        pieces: list[Any] = re.split(r"(\d+)", part)
        pieces[1::2] = [int(digits) for digits in pieces[1::2]]
        key.append((*pieces, part))  # the name itself decides between 01 and 1
    return key


def files_under(folder: Path, suffixes: set[str]) -> list[str]:
    """Image files under a folder at any depth, relative and with forward slashes; hidden ones left out, linked folders followed once."""
    found: list[str] = []
    seen: set[str] = set()

    def walk(path: str, prefix: str) -> None:
        real = os.path.realpath(path)
        if real in seen:
            return
        seen.add(real)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    walk(entry.path, f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in suffixes:
                    found.append(prefix + entry.name)

    walk(str(folder), "")
    return found


def folders_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def without_corrupt(
    name: str, split: str, images: AnyEncoded, skip_corrupt: bool
) -> tuple[AnyEncoded, np.ndarray]:
    """The images that decode and their rows, where ``skip_corrupt`` asks for it; those left out are listed in a warning."""
    rows = np.arange(len(images))
    if not skip_corrupt:
        return images, rows
    good = images.decodable()
    if good.all():
        return images, rows
    bad = np.flatnonzero(~good)
    log.warning(
        "%s/%s: %d images cannot be decoded and are left out: %s",
        name,
        split,
        len(bad),
        ", ".join(map(images.name_of, bad.tolist())),
    )
    return images.take(rows[good]), rows[good]


def cinic10(
    split: str = "train",
    *,
    root: Path | None = None,
    download: bool = True,
    verify: bool = True,
    merge_valid: bool = True,
    skip_corrupt: bool = False,
    cache: Path | None = None,
) -> Split:
    """CIFAR-10's classes from CIFAR-10 and ImageNet, 32x32 colour: 180,000 train (train and valid), 90,000 test.

    Args:
        split: ``train``, ``valid`` or ``test``.
        root: folder that holds ``cinic-10/{train,valid,test}/<class>/*.png``; default the data root.
        download: fetch what is missing (656 MB).
        verify: check the archive's md5 and the number of images.
        merge_valid: ``train`` is train followed by valid, as in the ELFS and CCS papers; False: the 90,000 of
            train alone.
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder of the checksum index.

    Returns:
        the split; images uint8 (N, 32, 32, 3), by class and then by file name; valid goes on counting at
        90,000.

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        L. Darlow, E. Crowley, A. Antoniou, A. Storkey, CINIC-10 is not ImageNet or CIFAR-10, 2018.
        Normalisation: ELFS's train.py.
    """
    check_split("cinic10", split)
    above = data_folder(root)
    folder = next(
        (above / name for name in ("cinic-10", "CINIC-10", "cinic10") if (above / name).is_dir()),
        above / "cinic-10",
    )
    published = Published(
        (
            "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
            "https://datashare.ed.ac.uk/server/api/core/bitstreams/e8e186cc-2688-48f1-aa5a-3fda1a43f8b6/content",
        ),
        "6ee4d0c996905fe93221de577967a372",
        687_544_992,
    )
    parts = ("train", "valid") if split == "train" and merge_valid else (split,)
    obtain("cinic10", published, folder, parts, download=download, verify=verify)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    paths: list[str] = []
    truth: list[int] = []
    for part in parts:
        for label, wanted in enumerate(classes):
            if not (folder / part / wanted).is_dir():
                raise BadInput(
                    f"cinic10: there is no folder {folder / part / wanted}.",
                    remedy="delete the folder to unpack or fetch it again",
                )
            files = sorted(files_under(folder / part / wanted, {".png"}))
            paths += [f"{part}/{wanted}/{file}" for file in files]
            truth += [label] * len(files)
    if verify:
        check_count(
            "cinic10", split, len(paths), folder, expected=None if split != "train" or merge_valid else 90_000
        )
    images, rows = without_corrupt(
        "cinic10", split, FileImages(folder, paths, shape=(32, 32, 3), cache=cache), skip_corrupt
    )
    mean, std = (0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835)
    return Split(
        "cinic10",
        split,
        rows,
        images,
        classes,
        mean,
        std,
        truth=np.array(truth, np.int64)[rows],
        sources=images.paths,
    )


def tiny_imagenet(
    split: str = "train",
    *,
    root: Path | None = None,
    download: bool = True,
    verify: bool = True,
    size: int | None = None,
    skip_corrupt: bool = False,
    cache: Path | None = None,
) -> Split:
    """200 classes of ImageNet, 64x64 colour: 100,000 train, 10,000 test (the published validation images).

    The published test images have no public labels, so ``test`` is ``val/``, labelled by
    ``val/val_annotations.txt``.

    Args:
        split: ``train`` or ``test``.
        root: folder that holds ``tiny-imagenet-200/``; default the data root.
        download: fetch what is missing (248 MB).
        verify: check the archive's md5 and the number of images.
        size: resize to it, for example 32 for networks for CIFAR.
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder of the checksum index.

    Returns:
        the split; images uint8 (N, 64, 64, 3); classes in ``wnids.txt``'s order with their first name of
        ``words.txt``; train by class and number, test in the annotations' order.

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        Y. Le, X. Yang, Tiny ImageNet visual recognition challenge, Stanford CS 231N, 2015. Normalisation:
        DeepCore, deepcore/datasets/tinyimagenet.py.

    Differences from upstream:
        DeepCore reads ``test/`` as one class called "images", so that its accuracies there mean nothing.
    """
    check_split("tiny_imagenet", split)
    above = data_folder(root)
    folder = above / "tiny-imagenet-200"
    published = Published(
        ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",), "90528d7ca1a48142e341f4ef8d21d0de", 248_100_043
    )
    needed = ("wnids.txt", "words.txt", "train" if split == "train" else "val/val_annotations.txt")
    obtain(
        "tiny_imagenet",
        published,
        above,
        [f"tiny-imagenet-200/{name}" for name in needed],
        download=download,
        verify=verify,
    )
    wnids = (folder / "wnids.txt").read_text().split()
    words = dict(
        line.split("\t", 1) for line in (folder / "words.txt").read_text().splitlines() if "\t" in line
    )
    paths: list[str] = []
    truth: list[int] = []
    if split == "train":
        for label, wnid in enumerate(wnids):
            place = f"train/{wnid}/images"
            if not (folder / place).is_dir():
                raise BadInput(
                    f"tiny_imagenet: there is no folder {folder / place}.",
                    remedy=f"delete {folder} to unpack or fetch it again",
                )
            files = sorted(files_under(folder / place, {".jpeg", ".jpg"}), key=natural_key)
            paths += [f"{place}/{file}" for file in files]
            truth += [label] * len(files)
    else:
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        for number, line in enumerate((folder / "val" / "val_annotations.txt").read_text().splitlines(), 1):
            file, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            if wnid not in labels:
                raise BadInput(
                    f"tiny_imagenet: line {number} of {folder / 'val' / 'val_annotations.txt'} names class "
                    f"{wnid!r}, not in wnids.txt."
                )
            paths.append(f"val/images/{file}")
            truth.append(labels[wnid])
    if verify:
        check_count("tiny_imagenet", split, len(paths), folder)
    images, rows = without_corrupt(
        "tiny_imagenet",
        split,
        FileImages(folder, paths, shape=(64, 64, 3), size=size, cache=cache),
        skip_corrupt,
    )
    return Split(
        "tiny_imagenet",
        split,
        rows,
        images,
        distinct_names(wnids, [words.get(wnid, wnid) for wnid in wnids]),
        (0.4802, 0.4481, 0.3975),
        (0.2770, 0.2691, 0.2821),
        truth=np.array(truth, np.int64)[rows],
        sources=images.paths,
    )


def distinct_names(wnids: Sequence[str], descriptions: Sequence[str]) -> tuple[str, ...]:
    """The first of each class's names; where two classes share it, with its WordNet id.

    >>> distinct_names(["n1", "n2", "n3"], ["crane, bird", "crane", "tench, Tinca tinca"])
    ('crane (n1)', 'crane (n2)', 'tench')
    """
    first = [text.split(",")[0].strip() for text in descriptions]
    shared = Counter(first)
    return tuple(
        f"{name} ({wnid})" if shared[name] > 1 else name for wnid, name in zip(wnids, first, strict=True)
    )


# ImageNet's archives and their published md5; they are behind a login, so there is nothing to fetch them
# from.
IMAGENET_FILES = {
    "train": ("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e"),
    "val": ("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"),
    "devkit": ("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf"),
}
_IMAGENET_PAGE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"


def imagenet(
    split: str = "train",
    *,
    root: Path | None = None,
    download: bool = True,
    verify: bool = True,
    size: int | None = None,
    skip_corrupt: bool = False,
    cache: Path | None = None,
) -> Split:
    """ILSVRC 2012, 1,000 classes of photographs: 1,281,167 train, 50,000 test (the validation images).

    Reads ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``, or a flat ``val/`` with the development kit;
    archives that lie in the folder are unpacked first.

    Args:
        split: ``train`` or ``test``.
        root: folder that holds ``imagenet/`` (or ``ILSVRC2012/``); default the data root.
        download: unused; the archives are behind a login.
        verify: check the archives' md5 when unpacking, and the number of images.
        size: short side in pixels; images are then cut to a square of it.
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder of the checksum index.

    Returns:
        the split; images of many sizes (``shape`` None) unless ``size`` is given. Classes in the order of
        their WordNet ids, images by class and file name as torchvision's ImageFolder lists them, whichever
        way the files are laid out.

    Raises:
        MissingData: the files are not there; names them and the folder.
        BadInput: archives truncated, or images missing.

    References:
        O. Russakovsky et al., ImageNet large scale visual recognition challenge, IJCV 2015.
    """
    check_split("imagenet", split)
    above = data_folder(root)
    folder = next(
        (above / name for name in ("imagenet", "ILSVRC2012", "ImageNet") if (above / name).is_dir()),
        above / "imagenet",
    )
    part = "train" if split == "train" else "val"
    if not (folder / part).is_dir():
        _unpack_imagenet(folder, part, verify)
    wnids = folders_in(folder / "train") if (folder / "train").is_dir() else []
    if split == "train":
        where = {wnid: sorted(files_under(folder / "train" / wnid, {".jpeg", ".jpg"})) for wnid in wnids}
        pairs = [(wnid, f"train/{wnid}/{file}") for wnid in wnids for file in where[wnid]]
    else:
        inside = folders_in(folder / "val")
        if inside:
            pairs = [
                (wnid, f"val/{wnid}/{file}")
                for wnid in inside
                for file in sorted(files_under(folder / "val" / wnid, {".jpeg", ".jpg"}))
            ]
        else:
            files = sorted(files_under(folder / "val", {".jpeg", ".jpg"}))
            answers = _validation_wnids(folder, verify)
            if len(answers) != len(files):
                raise BadInput(
                    f"imagenet: {len(files):,} images in {folder / 'val'}, the development kit labels "
                    f"{len(answers):,}."
                )
            pairs = sorted((wnid, f"val/{file}") for wnid, file in zip(answers, files, strict=True))
        wnids = wnids or sorted({wnid for wnid, _ in pairs})
    if verify:
        check_count("imagenet", split, len(pairs), folder / part)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    for wnid, path in pairs:
        if wnid not in labels:
            raise BadInput(f"imagenet: {path} is of class {wnid}, which train/ has no folder of.")
    if not pairs:
        raise BadInput(f"imagenet: {folder / part} holds no images.")
    images, rows = without_corrupt(
        "imagenet",
        split,
        FileImages(folder, [path for _, path in pairs], size=size, cache=cache),
        skip_corrupt,
    )
    truth = np.array([labels[wnid] for wnid, _ in pairs], np.int64)[rows]
    return Split(
        "imagenet",
        split,
        rows,
        images,
        _imagenet_names(wnids),
        *_IMAGENET_STATISTICS,
        truth=truth,
        sources=images.paths,
    )


def _imagenet_names(wnids: Sequence[str]) -> tuple[str, ...]:
    from timm.data import ImageNetInfo  # slow to import, and only ImageNet needs it

    known = ImageNetInfo()
    words = dict(zip(known.label_names(), known.label_descriptions(), strict=True))
    return distinct_names(wnids, [words.get(wnid, wnid) for wnid in wnids])


def _imagenet_archive(folder: Path, part: str, verify: bool) -> Path:
    filename, md5 = IMAGENET_FILES[part]
    archive = folder / filename
    if not archive.exists():
        layout = {
            "train": "train/<wnid>/*.JPEG",
            "val": "val/<wnid>/*.JPEG",
            "devkit": "ILSVRC2012_devkit_t12/data/",
        }[part]
        raise MissingData(
            f"imagenet: neither {layout} nor {filename} is in {folder}, and there is no public download.",
            remedy=f"log in at {_IMAGENET_PAGE}, download "
            f"{', '.join(each for each, _ in IMAGENET_FILES.values())} "
            f"and put them into {folder}",
        )
    if verify:
        log.info("imagenet: checking the md5 of %s", archive)
        found = file_md5(archive)
        if found != md5:
            raise BadInput(
                f"imagenet: {archive} has md5 {found}, not {md5}. A download that was cut off looks like "
                "this.",
                remedy=f"download it again; {UNVERIFIED} accepts it as it is",
            )
    return archive


def _unpack_imagenet(folder: Path, part: str, verify: bool) -> None:
    archive = _imagenet_archive(folder, part, verify)
    log.info("imagenet: unpacking %s into %s", archive, folder / part)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as scratch:
        place = Path(scratch) / part
        place.mkdir()
        try:
            with tarfile.open(archive) as outer:
                if part == "val":
                    extract_tar(outer, place)
                else:
                    for member in outer:  # one tar a class
                        inside = outer.extractfile(member)
                        if inside is not None:
                            (place / Path(member.name).stem).mkdir()
                            with tarfile.open(fileobj=inside) as inner:
                                extract_tar(inner, place / Path(member.name).stem)
        except (tarfile.TarError, EOFError) as error:
            raise damaged(archive, error) from error
        os.replace(place, folder / part)


def _validation_wnids(folder: Path, verify: bool) -> list[str]:
    # WordNet ids of the validation images in the order of their numbers, from the development kit.
    kit = folder / "ILSVRC2012_devkit_t12"
    if not (kit / "data" / "meta.mat").exists():
        unpack(_imagenet_archive(folder, "devkit", verify), folder)
    try:
        synsets = scipy.io.loadmat(kit / "data" / "meta.mat", squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(synsets)}
        numbers = (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
        return [wnids[int(number)] for number in numbers]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise BadInput(
            f"imagenet: the development kit in {kit} cannot be read: {type(error).__name__}: {error}.",
            remedy=f"delete the folder and put {IMAGENET_FILES['devkit'][0]} into {folder}",
        ) from error


_TEST_FOLDERS = ("test", "val", "valid", "validation")


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

    With ``train/`` inside, it and ``test/`` (or ``val/``) are the splits; otherwise the folder is one pool.
    Sub-folders are the classes; a flat folder is unlabelled. Names are sorted naturally (9 before 10).

    Args:
        split: ``train``, ``test``, or another split folder that is there.
        variant: the folder; a relative one is looked for under ``root`` and then in the working directory.
        root: default the data root.
        download: unused.
        test_fraction: where there is no test folder, the share of images that ``test`` takes: those whose
            path's blake2b hash falls below it, so that an image never changes sides when others come or go.
        size: short side in pixels; images are then cut to a square of it, so that small networks can train on
            any folder.
        channels: 3 (grey images are repeated) or 1 (grey; needs ``size`` or images of one size).
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder of the checksum index.

    Returns:
        the split; ``shape`` is set when all images have one size; mean and std are of at most 2,048 training
        images.

    Raises:
        MissingData: no such folder.
        BadInput: no images, no such split, images beside class folders, a test class that train has not.
    """
    name = f"imagefolder:{variant}"
    folder = _find_folder(variant, root)
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise BadInput(f"test_fraction = {test_fraction}: must be between 0 and 1.")
    parts = _split_folders(folder)
    if "test" not in parts:
        if test_fraction is None and split == "test":
            raise BadInput(
                f"{name} has no split 'test': there is no "
                f"{' or '.join(f'{each}/' for each in _TEST_FOLDERS)} in {folder}.",
                remedy="pass test_fraction=0.1 to hold out some images",
            )
    elif test_fraction is not None:
        raise BadInput(
            f"test_fraction = {test_fraction}, but {parts['test']} is there.",
            remedy="leave test_fraction out",
        )
    check_split(name, split, sorted({*parts, "test"}))

    paths, truth, classes = _listing(name, parts["train"], None)
    if test_fraction is not None:
        held_out = np.array([_path_share(path) < test_fraction for path in paths])
        train_rows, test_rows = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        if not len(train_rows) or not len(test_rows):
            raise BadInput(
                f"test_fraction = {test_fraction} leaves no {'train' if len(test_rows) else 'test'} images "
                f"of {len(paths)}."
            )
    else:
        train_rows = test_rows = np.arange(len(paths))

    train = FileImages(
        parts["train"], [paths[row] for row in train_rows], size=size, channels=channels, cache=cache
    )
    if split in parts and split != "train":
        paths, truth, classes = _listing(name, parts[split], classes)
        images = FileImages(parts[split], paths, size=size, channels=channels, cache=cache)
    else:
        rows = test_rows if split == "test" else train_rows
        images = (
            train
            if split == "train"
            else FileImages(
                parts["train"], [paths[row] for row in rows], size=size, channels=channels, cache=cache
            )
        )
        truth = None if truth is None else truth[rows]
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
    """Split of somebody's own images: corrupt ones left out where asked, shape found, mean and std of the training images."""
    kept, rows = without_corrupt(name, split, images, skip_corrupt)
    usable = kept if train is images else without_corrupt(name, "train", train, skip_corrupt)[0]
    for part, what in ((kept, split), (usable, "train")):
        if not len(part):
            raise BadInput(f"{name}/{what} has no images.")
        part.shape = part.common_shape()
        if part.shape is None and part.channels == 1:
            raise BadInput(
                f"channels = 1, but the images of {name}/{what} are of several sizes.",
                remedy="pass size=<pixels> too",
            )
    mean, std = channel_statistics(usable)
    return Split(
        name,
        split,
        rows,
        kept,
        classes,
        mean,
        std,
        truth=None if truth is None else truth[rows],
        sources=kept.sources,
    )


def _find_folder(variant: str, root: Path | None) -> Path:
    asked = Path(variant).expanduser()
    tried = [asked] if asked.is_absolute() else [data_folder(root) / asked, asked.absolute()]
    for folder in tried:
        if folder.is_dir():
            return folder
    raise MissingData(
        f"there is no folder {' or '.join(map(str, tried))}.",
        remedy="give the folder's absolute path: imagefolder:/path/to/images",
    )


def _split_folders(folder: Path) -> dict[str, Path]:
    inside = folders_in(folder)
    if "train" not in inside:
        return {"train": folder}
    parts = {name: folder / name for name in inside if name in ("train", *_TEST_FOLDERS, "unlabeled")}
    test = next((parts[name] for name in _TEST_FOLDERS if name in parts), None)
    return parts if test is None else {**parts, "test": test}


def _listing(
    name: str, folder: Path, known: tuple[str, ...] | None
) -> tuple[list[str], np.ndarray | None, tuple[str, ...]]:
    paths = sorted(files_under(folder, readable_suffixes()), key=natural_key)
    if not paths:
        raise BadInput(
            f"{name}: there are no images in {folder}.",
            remedy=f"file names must end in one of {' '.join(sorted(readable_suffixes()))}",
        )
    loose = [path for path in paths if "/" not in path]
    if len(loose) == len(paths):
        return paths, None, known or ()
    if loose:
        raise BadInput(
            f"{name}: {len(loose)} images ({loose[0]}, …) lie in {folder} beside class folders.",
            remedy="move them into a class folder, or all images into one flat folder",
        )
    found = tuple(sorted({path.partition("/")[0] for path in paths}, key=natural_key))
    classes = known or found
    strangers = sorted(set(found) - set(classes))
    if strangers:
        raise BadInput(f"{name}: {folder} has classes that train has not: {', '.join(strangers[:5])}.")
    labels = {label: number for number, label in enumerate(classes)}
    return paths, np.array([labels[path.partition("/")[0]] for path in paths], np.int64), classes


def _path_share(path: str) -> float:
    return (
        int.from_bytes(
            hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big"
        )
        / 2**64
    )
