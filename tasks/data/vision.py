"""The small benchmark sets, in torchvision's file layouts under the data root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from torchvision import datasets as stock

from winnow.tasks.data.fetch import Published, obtain, verify_digests
from winnow.tasks.data.formats import read_idx, read_pickle
from winnow.tasks.data.images import ArrayImages
from winnow.tasks.data.load import check_count, check_split, data_folder
from winnow.tasks.data.split import Split
from winnow.tasks.errors import BadInput

__all__ = ["cifar10", "cifar100", "fashion_mnist", "mnist", "qmnist", "stl10", "svhn"]

_DIGITS = tuple(str(digit) for digit in range(10))

# of each channel of the training images: mean, standard deviation
_NORMALISATION = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    "qmnist": ((0.1308,), (0.3088,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "stl10": ((0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
}


def _whole(
    name: str,
    split: str,
    pixels: np.ndarray,
    classes: Sequence[str],
    truth: np.ndarray | None,
    folder: Path,
    verify: bool,
) -> Split:
    """The split of pixels uint8 (N, H, W, C), which ``verify`` wants to be as many as published."""
    if verify:
        check_count(name, split, len(pixels), folder)
    mean, std = _NORMALISATION[name]
    images = ArrayImages(pixels)
    return Split(name, split, np.arange(len(images)), images, tuple(classes), mean, std, truth=truth)


def _unpacked(
    name: str,
    kind: Any,
    digests: Mapping[str, str],
    size: int,
    root: Path | None,
    download: bool,
    verify: bool,
) -> Path:
    """The folder of a set that comes as one archive, once these files are in it."""
    folder = data_folder(root) / kind.base_folder
    published = Published((kind.url,), kind.tgz_md5, size, kind.filename)
    contents = [f"{kind.base_folder}/{file}" for file in digests]
    obtain(name, published, folder.parent, contents, download=download, verify=verify)
    if verify:
        verify_digests(name, folder, digests)
    return folder


def mnist(
    split: str = "train",
    *,
    root: Path | None = None,
    download: bool = True,
    verify: bool = True,
    permutation_seed: int | None = None,
) -> Split:
    """Handwritten digits, 28x28 grey: 60,000 train, 10,000 test.

    Args:
        split: ``train`` or ``test``.
        root: folder that holds ``MNIST/raw/``; default the data root.
        download: fetch what is missing.
        verify: check the archives' md5 and the number of images.
        permutation_seed: permuted MNIST: the pixels of all images in one new order, drawn as DeepCore does.

    Returns:
        the split; images uint8 (N, 28, 28, 1).

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition,
        Proc. IEEE 1998. I. Goodfellow et al., An empirical investigation of catastrophic forgetting in
        gradient-based neural networks, 2013 (permuted); PatrickZH/DeepCore@74ec709 deepcore/datasets/mnist.py
        permutedMNIST.
    """
    plain = _mnist_like("mnist", stock.MNIST, _DIGITS, split, root, download, verify)
    if permutation_seed is None:
        return plain
    order = np.random.RandomState(permutation_seed).permutation(28 * 28)  # DeepCore's stream
    pixels = np.asarray(plain.images.read(slice(None))).reshape(len(plain), -1)
    return replace(plain, images=ArrayImages(pixels[:, order].reshape(-1, 28, 28, 1)))


def fashion_mnist(
    split: str = "train", *, root: Path | None = None, download: bool = True, verify: bool = True
) -> Split:
    """Photographs of clothes, 28x28 grey: 60,000 train, 10,000 test.

    Args:
        split: ``train`` or ``test``.
        root: folder that holds ``FashionMNIST/raw/``; default the data root.
        download: fetch what is missing.
        verify: check the archives' md5 and the number of images.

    Returns:
        the split; images uint8 (N, 28, 28, 1).

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms, 2017.
    """
    kind = stock.FashionMNIST
    return _mnist_like("fashion_mnist", kind, kind.classes, split, root, download, verify)


def _mnist_like(
    name: str, kind: Any, classes: Sequence[str], split: str, root: Path | None, download: bool, verify: bool
) -> Split:
    check_split(name, split)
    stem = {"train": "train", "test": "t10k"}[split]
    folder = data_folder(root) / kind.__name__ / "raw"
    for filename, md5 in kind.resources:
        if filename.startswith(stem):
            published = Published(tuple(mirror + filename for mirror in kind.mirrors), md5)
            obtain(name, published, folder, [filename.removesuffix(".gz")], download=download, verify=verify)
    images = read_idx(folder / f"{stem}-images-idx3-ubyte", 3)
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte", 1).astype(np.int64)
    return _whole(name, split, images[..., None], classes, labels, folder, verify)


def qmnist(
    split: str = "train", *, root: Path | None = None, download: bool = True, verify: bool = True
) -> Split:
    """MNIST rebuilt from NIST's archive, 28x28 grey: 60,000 train, 60,000 test.

    Args:
        split: ``train``, ``test``, ``test10k`` (MNIST's test images), ``test50k`` (the other test images) or
            ``nist`` (all 402,953 digits).
        root: folder that holds ``QMNIST/raw/``; default the data root.
        download: fetch what is missing.
        verify: check the archives' md5 and the number of images.

    Returns:
        the split; images uint8 (N, 28, 28, 1); ``truth`` is the first column of the extended labels.

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        C. Yadav, L. Bottou, Cold case: the lost MNIST digits, NeurIPS 2019.
    """
    check_split("qmnist", split)
    folder = data_folder(root) / "QMNIST" / "raw"
    files = []
    for url, md5 in stock.QMNIST.resources[stock.QMNIST.subsets[split]]:
        published = Published((url,), md5)
        files.append(folder / published.filename.rpartition(".")[0])
        obtain("qmnist", published, folder, [files[-1].name], download=download, verify=verify)
    rows = {"test10k": slice(0, 10_000), "test50k": slice(10_000, None)}.get(split, slice(None))
    images, labels = read_idx(files[0], 3)[rows], read_idx(files[1], 2)[rows, 0].astype(np.int64)
    return _whole("qmnist", split, images[..., None], _DIGITS, labels, folder, verify)


def svhn(
    split: str = "train", *, root: Path | None = None, download: bool = True, verify: bool = True
) -> Split:
    """House numbers from street views, 32x32 colour: 73,257 train, 26,032 test, 531,131 extra.

    Args:
        split: ``train``, ``test`` or ``extra`` (easier digits, for training).
        root: folder that holds ``train_32x32.mat`` and the like; default the data root.
        download: fetch what is missing.
        verify: check the file's md5 and the number of images.

    Returns:
        the split; images uint8 (N, 32, 32, 3); the file's label 10 is digit 0.

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        Y. Netzer et al., Reading digits in natural images with unsupervised feature learning, NIPS workshop
        2011.
    """
    check_split("svhn", split)
    folder = data_folder(root)
    url, filename, md5 = stock.SVHN.split_list[split]
    sizes = {"train": 182_040_794, "test": 64_275_384, "extra": 1_329_278_602}
    obtain("svhn", Published((url,), md5, sizes[split]), folder, [filename], download=download, verify=verify)
    if verify:
        verify_digests("svhn", folder, {filename: md5})
    try:
        content = scipy.io.loadmat(folder / filename, variable_names=["X", "y"])
        pixels, labels = content["X"], content["y"].astype(np.int64).ravel()
    except Exception as error:  # SciPy's reader raises many exceptions on damaged files
        raise BadInput(
            f"svhn: {folder / filename} cannot be read: {type(error).__name__}: {error}.",
            remedy="delete it to fetch it again",
        ) from error
    if pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise BadInput(f"svhn: X in {folder / filename} has shape {pixels.shape}, not (32, 32, 3, N).")
    images = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
    return _whole("svhn", split, images, _DIGITS, labels % 10, folder, verify)


def cifar10(
    split: str = "train", *, root: Path | None = None, download: bool = True, verify: bool = True
) -> Split:
    """Small photographs of 10 classes, 32x32 colour: 50,000 train, 10,000 test.

    Args:
        split: ``train`` or ``test``.
        root: folder that holds ``cifar-10-batches-py/``; default the data root.
        download: fetch what is missing.
        verify: check the md5 of the stock files; re-made pickles need False.

    Returns:
        the split; images uint8 (N, 32, 32, 3), in the published order.

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        A. Krizhevsky, Learning multiple layers of features from tiny images, 2009. Normalisation: ELFS's and
        CCS's train.py.
    """
    return _cifar("cifar10", stock.CIFAR10, 170_498_071, split, root, download, verify)


def cifar100(
    split: str = "train", *, root: Path | None = None, download: bool = True, verify: bool = True
) -> Split:
    """Small photographs of 100 classes, 32x32 colour: 50,000 train, 10,000 test.

    Args:
        split: ``train`` or ``test``.
        root: folder that holds ``cifar-100-python/``; default the data root.
        download: fetch what is missing.
        verify: check the md5 of the stock files; re-made pickles need False.

    Returns:
        the split; images uint8 (N, 32, 32, 3), in the published order; the fine labels.

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        A. Krizhevsky, Learning multiple layers of features from tiny images, 2009. Normalisation: ELFS's and
        CCS's train.py.
    """
    return _cifar("cifar100", stock.CIFAR100, 169_001_437, split, root, download, verify)


def _cifar(
    name: str, kind: Any, size: int, split: str, root: Path | None, download: bool, verify: bool
) -> Split:
    check_split(name, split)
    batches = dict(kind.train_list if split == "train" else kind.test_list)
    digests = {**batches, kind.meta["filename"]: kind.meta["md5"]}
    folder = _unpacked(name, kind, digests, size, root, download, verify)
    key = kind.meta["key"]
    classes = [str(label) for label in read_pickle(folder / kind.meta["filename"], key)[key]]
    pixels, labels = [], []
    for file in batches:
        batch = read_pickle(folder / file, "data")
        data = np.asarray(batch["data"])
        truth = batch.get("labels", batch.get("fine_labels"))
        if (
            data.dtype != np.uint8
            or data.ndim != 2
            or data.shape[1] != 3072
            or truth is None
            or len(truth) != len(data)
        ):
            raise BadInput(
                f"{name}: {folder / file} does not hold rows of 3,072 uint8 pixels with a label each."
            )
        pixels.append(data)
        labels.append(np.asarray(truth, np.int64))
    images = np.ascontiguousarray(np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return _whole(name, split, images, classes, np.concatenate(labels), folder, verify)


def stl10(
    split: str = "train", *, root: Path | None = None, download: bool = True, verify: bool = True
) -> Split:
    """Photographs from ImageNet, 96x96 colour: 5,000 train, 8,000 test, 100,000 unlabeled.

    Args:
        split: ``train``, ``test`` or ``unlabeled`` (no labels).
        root: folder that holds ``stl10_binary/``; default the data root.
        download: fetch what is missing (one archive of 2.6 GB).
        verify: check the md5 of the files that are read and the number of images.

    Returns:
        the split; images uint8 (N, 96, 96, 3), memory-mapped.

    Raises:
        MissingData, BadInput: files missing, truncated or not the published ones.

    References:
        A. Coates, H. Lee, A. Ng, An analysis of single-layer networks in unsupervised feature learning,
        AISTATS 2011. Normalisation: ELFS's train.py.
    """
    check_split("stl10", split)
    kind = stock.STL10
    digests = {file: md5 for file, md5 in (*kind.train_list, *kind.test_list) if file.startswith(f"{split}_")}
    folder = _unpacked("stl10", kind, digests, 2_640_397_119, root, download, verify)
    file = folder / f"{split}_X.bin"
    if not file.stat().st_size or file.stat().st_size % (3 * 96 * 96):
        raise BadInput(
            f"stl10: {file} is not a whole number of images: it was cut off.",
            remedy="delete it to unpack or fetch it again",
        )
    columns = np.memmap(file, np.uint8, mode="r").reshape(-1, 3, 96, 96)  # channel, x, y
    images = columns.transpose(0, 3, 2, 1)
    labels = None
    if split != "unlabeled":
        labels = np.fromfile(folder / f"{split}_y.bin", np.uint8).astype(np.int64) - 1
    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    return _whole("stl10", split, images, classes, labels, folder, verify)
