"""ImageNet and benchmarks made from it, published as folders of image files: CINIC-10, Tiny ImageNet."""

from __future__ import annotations

import logging
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from winnow.tasks.data.fetch import UNVERIFIED, Published, damaged, extract_tar, obtain, plain_members, unpack
from winnow.tasks.data.folders import files_under, folders_in, without_corrupt
from winnow.tasks.data.images import FileImages
from winnow.tasks.data.index import file_md5
from winnow.tasks.data.load import check_count, check_split, data_folder, natural_key
from winnow.tasks.data.split import Split
from winnow.tasks.errors import BadInput, MissingData

__all__ = ["cinic10", "imagenet", "tiny_imagenet"]

log = logging.getLogger("winnow.tasks.data")

_JPEG = {".jpeg", ".jpg"}

# of each channel of the training images: mean, standard deviation
_NORMALISATION = {
    "cinic10": ((0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


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
    """CIFAR-10's classes from CIFAR-10 and ImageNet, 32x32 colour: 180,000 train (with valid), 90,000 test.

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
        the split; images uint8 (N, 32, 32, 3), by class and then by file name; merged into train, valid's ids
        start at 90,000.

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        L. Darlow, E. Crowley, A. Antoniou, A. Storkey, CINIC-10 is not ImageNet or CIFAR-10, 2018.
        Normalisation: ELFS's train.py.
    """
    check_split("cinic10", split)
    above = data_folder(root)
    folder = _first_folder(above, "cinic-10", "CINIC-10", "cinic10")
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
    labelled = [
        (path, label)
        for part in parts
        for label, name in enumerate(classes)
        for path in sorted(_files("cinic10", folder, f"{part}/{name}", {".png"}))
    ]
    if verify:
        unmerged = 90_000 if split == "train" and not merge_valid else None
        check_count("cinic10", split, len(labelled), folder, expected=unmerged)
    return _split("cinic10", split, folder, labelled, classes, skip_corrupt, shape=(32, 32, 3), cache=cache)


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
        size: resize to this, for example 32 for CIFAR networks.
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder of the checksum index.

    Returns:
        the split; images uint8 (N, 64, 64, 3); classes in the order of ``wnids.txt``, each under its first
        name in ``words.txt``; train by class and number, test in the order of the annotations.

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        Y. Le, X. Yang, Tiny ImageNet visual recognition challenge, Stanford CS 231N, 2015. Normalisation:
        DeepCore, deepcore/datasets/tinyimagenet.py.

    Differences from upstream:
        DeepCore reads ``test/`` as one class called "images", so its accuracies there mean nothing.
    """
    check_split("tiny_imagenet", split)
    above = data_folder(root)
    folder = above / "tiny-imagenet-200"
    published = Published(
        ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",), "90528d7ca1a48142e341f4ef8d21d0de", 248_100_043
    )
    needed = ("wnids.txt", "words.txt", "train" if split == "train" else "val/val_annotations.txt")
    contents = [f"tiny-imagenet-200/{name}" for name in needed]
    obtain("tiny_imagenet", published, above, contents, download=download, verify=verify)
    wnids = (folder / "wnids.txt").read_text().split()
    lines = (folder / "words.txt").read_text().splitlines()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    if split == "train":
        labelled = [
            (path, label)
            for label, wnid in enumerate(wnids)
            for path in sorted(
                _files("tiny_imagenet", folder, f"train/{wnid}/images", _JPEG), key=natural_key
            )
        ]
    else:
        labelled = []
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        annotations = folder / "val" / "val_annotations.txt"
        for number, line in enumerate(annotations.read_text().splitlines(), 1):
            file, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            if wnid not in labels:
                raise BadInput(
                    f"tiny_imagenet: line {number} of {annotations} names class {wnid!r}, not in wnids.txt."
                )
            labelled.append((f"val/images/{file}", labels[wnid]))
    if verify:
        check_count("tiny_imagenet", split, len(labelled), folder)
    classes, shape = distinct_names(wnids, words), (64, 64, 3)
    return _split(
        "tiny_imagenet", split, folder, labelled, classes, skip_corrupt, shape=shape, size=size, cache=cache
    )


def _split(
    name: str,
    split: str,
    folder: Path,
    labelled: Sequence[tuple[str, int]],
    classes: tuple[str, ...],
    skip_corrupt: bool,
    **options: Any,
) -> Split:
    """The split of files in a folder, given as (path, label), read with the options of FileImages."""
    files = FileImages(folder, [path for path, _ in labelled], **options)
    images, rows = without_corrupt(name, split, files, skip_corrupt)
    truth = np.array([label for _, label in labelled], np.int64)[rows]
    mean, std = _NORMALISATION[name]
    return Split(name, split, rows, images, classes, mean, std, truth=truth, sources=images.sources)


def _first_folder(above: Path, *names: str) -> Path:
    """The first of these folders that exists, else the first."""
    return next((above / name for name in names if (above / name).is_dir()), above / names[0])


def _files(dataset: str, folder: Path, below: str, suffixes: set[str]) -> list[str]:
    """Image files in a sub-folder, which must exist; paths are relative to ``folder``."""
    if not (folder / below).is_dir():
        raise BadInput(
            f"{dataset}: there is no folder {folder / below}.",
            remedy=f"delete {folder} to unpack or fetch it again",
        )
    return [f"{below}/{file}" for file in files_under(folder / below, suffixes)]


def distinct_names(wnids: Sequence[str], descriptions: Mapping[str, str]) -> tuple[str, ...]:
    """The first name of each class, with its WordNet id where two classes share a name.

    A class without a description is named by its id.

    >>> descriptions = {"n1": "crane, bird", "n2": "crane", "n3": "tench, Tinca tinca"}
    >>> distinct_names(["n1", "n2", "n3", "n4"], descriptions)
    ('crane (n1)', 'crane (n2)', 'tench', 'n4')
    """
    first = [descriptions.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    shared = Counter(first)
    return tuple(
        f"{name} ({wnid})" if shared[name] > 1 else name for wnid, name in zip(wnids, first, strict=True)
    )


# ImageNet's archives, their published md5 and what they unpack to; they are behind a login, so they cannot be
# fetched.
IMAGENET_FILES = {
    "train": ("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e", "train/<wnid>/*.JPEG"),
    "val": ("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622", "val/<wnid>/*.JPEG"),
    "devkit": (
        "ILSVRC2012_devkit_t12.tar.gz",
        "fa75699e90414af021442c21a62c3abf",
        "ILSVRC2012_devkit_t12/data/",
    ),
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
    archives in the folder are unpacked first.

    Args:
        split: ``train`` or ``test``.
        root: folder that holds ``imagenet/`` (or ``ILSVRC2012/``); default the data root.
        download: unused; the archives are behind a login.
        verify: check the archives' md5 when unpacking, and the number of images.
        size: short side in pixels; images are then cropped to a square.
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder of the checksum index.

    Returns:
        the split; images of many sizes (``shape`` None) unless ``size`` is given. Classes in the order of
        their WordNet ids, images by class and file name as torchvision's ImageFolder lists them, however the
        files are laid out.

    Raises:
        MissingData: the files are not there; names them and the folder.
        BadInput: archives truncated, or images missing.

    References:
        O. Russakovsky et al., ImageNet large scale visual recognition challenge, IJCV 2015.
    """
    check_split("imagenet", split)
    folder = _first_folder(data_folder(root), "imagenet", "ILSVRC2012", "ImageNet")
    part = "train" if split == "train" else "val"
    if not (folder / part).is_dir():
        _unpack_imagenet(folder, part, verify)
    wnids = folders_in(folder / "train") if (folder / "train").is_dir() else []
    pairs = _labelled_files(folder, part, verify)
    if verify:
        check_count("imagenet", split, len(pairs), folder / part)
    if not pairs:
        raise BadInput(f"imagenet: {folder / part} holds no images.")
    wnids = wnids or sorted({wnid for wnid, _ in pairs})
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    for wnid, path in pairs:
        if wnid not in labels:
            raise BadInput(f"imagenet: {path} is of class {wnid}, which has no folder in train/.")
    labelled = [(path, labels[wnid]) for wnid, path in pairs]
    names = _imagenet_names(wnids)
    return _split("imagenet", split, folder, labelled, names, skip_corrupt, size=size, cache=cache)


def _labelled_files(folder: Path, part: str, verify: bool) -> list[tuple[str, str]]:
    """WordNet id and path, relative to ``folder``, of each image, by class and file name."""
    if part == "train" or folders_in(folder / part):
        return [
            (wnid, f"{part}/{wnid}/{file}")
            for wnid in folders_in(folder / part)
            for file in sorted(files_under(folder / part / wnid, _JPEG))
        ]
    files = sorted(files_under(folder / part, _JPEG))
    wnids = _validation_wnids(folder, verify)
    if len(wnids) != len(files):
        raise BadInput(
            f"imagenet: {len(files):,} images in {folder / part}, the development kit labels {len(wnids):,}."
        )
    return sorted((wnid, f"{part}/{file}") for wnid, file in zip(wnids, files, strict=True))


def _imagenet_names(wnids: Sequence[str]) -> tuple[str, ...]:
    from timm.data import ImageNetInfo  # slow to import, and only ImageNet needs it

    info = ImageNetInfo()
    return distinct_names(wnids, dict(zip(info.label_names(), info.label_descriptions(), strict=True)))


def _imagenet_archive(folder: Path, part: str, verify: bool) -> Path:
    filename, published, layout = IMAGENET_FILES[part]
    archive = folder / filename
    if not archive.exists():
        raise MissingData(
            f"imagenet: neither {layout} nor {filename} is in {folder}, and there is no public download.",
            remedy=f"log in at {_IMAGENET_PAGE}, download "
            f"{', '.join(name for name, *_ in IMAGENET_FILES.values())} and put them into {folder}",
        )
    if verify:
        log.info("imagenet: checking the md5 of %s", archive)
        md5 = file_md5(archive)
        if md5 != published:
            raise BadInput(
                f"imagenet: {archive} has md5 {md5}, not {published}. A download that was cut off looks like "
                "this.",
                remedy=f"download it again; {UNVERIFIED} accepts it as it is",
            )
    return archive


def _unpack_imagenet(folder: Path, part: str, verify: bool) -> None:
    archive = _imagenet_archive(folder, part, verify)
    log.info("imagenet: unpacking %s into %s", archive, folder / part)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as scratch:
        unpacked = Path(scratch) / part
        unpacked.mkdir()
        try:
            with tarfile.open(archive) as outer:
                if part == "val":
                    extract_tar(outer, unpacked)
                else:
                    for member in plain_members(outer):
                        _unpack_class(outer, member, unpacked)
        except (tarfile.TarError, EOFError) as error:
            raise damaged(archive, error) from error
        os.replace(unpacked, folder / part)


def _unpack_class(outer: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Unpack the tar of one class, ``<wnid>.tar``, into the folder of that class."""
    content = outer.extractfile(member)
    if content is None:  # a folder
        return
    wnid = Path(member.name).stem
    if not wnid.strip("."):
        raise tarfile.ExtractError(f"member {member.name!r} is not named after a class")
    (folder / wnid).mkdir()
    with tarfile.open(fileobj=content) as inner:
        extract_tar(inner, folder / wnid)


def _validation_wnids(folder: Path, verify: bool) -> list[str]:
    """WordNet ids of the validation images in the order of their numbers, from the development kit."""
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
