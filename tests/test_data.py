"""Every dataset from files made on the spot in its published layout; torchvision's readers are the oracle."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import lzma
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets as stock

from winnow.tasks import files, hardware
from winnow.tasks.data import fetch, folders, formats, images, index, split
from winnow.tasks.data.images import ArrayImages, FileImages, decode, resize_crop
from winnow.tasks.data.load import load_split, options_of
from winnow.tasks.data.shards import ShardImages
from winnow.tasks.data.split import Split, channel_statistics
from winnow.tasks.errors import BadInput, MissingData, MissingLabels, UnknownName
from winnow.tasks.registry import datasets

OLD = 1_500_000_000  # seconds; old enough to be remembered by the index


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty data root, and no network unless a test allows it (and then from file:// URLs)."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("WINNOW_DATA", str(folder))
    monkeypatch.setenv("WINNOW_OFFLINE", "1")
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def png(pixels, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def picture(rng, size=(8, 8), channels=3):
    return rng.integers(0, 256, (*size, channels) if channels == 3 else size, dtype=np.uint8)


def write(path, content, age=OLD):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (age, age))
    return path


def tar_of(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    os.utime(path, (OLD, OLD))
    return path


def expect(monkeypatch, name, **samples):
    """Pretend that the published split has so many images."""
    monkeypatch.setitem(datasets._entries, name, replace(datasets.get(name), samples=samples))


# -- registry and front door ---------------------------------------------------------------------------------


def test_listing_loads_nothing_heavy():
    code = (
        "import sys; from winnow.tasks.registry import datasets\n"
        "for entry in datasets:\n"
        "    assert entry.summary.endswith('.') or entry.summary.endswith('``.'), entry.name\n"
        "    assert entry.splits[:2] == ('train', 'test')\n"
        "    assert isinstance(entry.download, bool)\n"
        "    assert hasattr(entry, 'size')\n"
        "assert not {'torch', 'torchvision', 'numpy', 'PIL', 'sklearn', 'webdataset'} & set(sys.modules)\n"
        "print(*datasets.names())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    names = (
        "cifar10 cifar100 cinic10 digits fashion_mnist imagefolder:* imagenet mnist pool:* qmnist stl10 "
        "svhn tiny_imagenet webdataset:*"
    )
    assert out.stdout.strip() == names


def test_every_stock_dataset_has_its_numbers_and_paper():
    for entry in datasets:
        if not entry.name.endswith("*"):
            assert set(entry.samples) == set(entry.splits)
            assert entry.classes >= 10
            assert entry.reference


def test_front_door_refuses_with_the_nearest_name():
    with pytest.raises(UnknownName, match="Did you mean 'cifar10'"):
        load_split("cifar1O")
    with pytest.raises(BadInput, match=r"no split 'tset'\. Did you mean 'test'\? Splits: train, test"):
        load_split("cifar10", "tset")
    with pytest.raises(BadInput, match=r"no option 'verfy'\. Did you mean 'verify'\?"):
        load_split("cifar10", verfy=False)
    assert options_of("cinic10")["merge_valid"] is True


@pytest.mark.parametrize(
    "name",
    ["mnist", "qmnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "stl10", "cinic10", "tiny_imagenet"],
)
def test_offline_names_file_folder_and_url(name, root, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(fetch.urllib.request, "urlopen", never)
    with pytest.raises(MissingData, match="WINNOW_OFFLINE is set") as caught:
        load_split(name)
    assert str(root) in str(caught.value)
    assert re.search(r"https?://\S+\.(gz|mat|zip)", str(caught.value))
    monkeypatch.delenv("WINNOW_OFFLINE")
    with pytest.raises(MissingData, match="download=False"):
        load_split(name, download=False)


# ------------------------------------------------------------------------------------------------ digits


def test_digits_are_split_by_every_fifth_of_each_class():
    from sklearn.datasets import load_digits

    bundle = load_digits()
    train, test = load_split("digits"), load_split("digits", "test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.ids.tolist() == list(range(1442))
    whole = np.bincount(bundle.target)
    assert np.bincount(test.labels()).tolist() == (whole // 5).tolist()
    together = np.concatenate([train.images.read(slice(None)), test.images.read(slice(None))])
    assert together.dtype == np.uint8
    assert together.max() == 255
    back = np.rint(together[..., 0] / 255 * 16).reshape(len(together), -1)
    assert sorted(map(bytes, back.astype(np.uint8))) == sorted(map(bytes, bundle.data.astype(np.uint8)))
    fifth_zero = np.flatnonzero(bundle.target == 0)[4]
    first = np.flatnonzero(test.labels() == 0)[0]
    assert (test.images.read([first])[0, ..., 0] == np.rint(bundle.images[fifth_zero] * 255 / 16)).all()
    pixels = train.images.read(slice(None)) / 255
    assert train.mean[0] == pytest.approx(pixels.mean(), abs=1e-6)
    assert train.std[0] == pytest.approx(pixels.std(), abs=1e-6)
    assert test.mean == train.mean


# -- the MNIST family ----------------------------------------------------------------------------------------


def idx(array, kind):
    return bytes([0, 0, kind, array.ndim]) + np.asarray(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.mark.parametrize(("name", "kind"), [("mnist", stock.MNIST), ("fashion_mnist", stock.FashionMNIST)])
def test_mnist_like(name, kind, root, rng, monkeypatch):
    for stem, count in (("train", 7), ("t10k", 4)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            write(root / kind.__name__ / "raw" / f"{stem}-{what}-ubyte.gz", gzip.compress(idx(array, 8)))
    with pytest.raises(BadInput, match="is not the published file"):
        load_split(name)
    resources = [(file, md5(root / kind.__name__ / "raw" / file)) for file, _ in kind.resources]
    monkeypatch.setattr(kind, "resources", resources)
    with pytest.raises(BadInput, match=r"7 images .* the published split has 60,000"):
        load_split(name)
    expect(monkeypatch, name, train=7, test=4)
    for part, ours in {part: load_split(name, part) for part in ("train", "test")}.items():
        theirs = kind(root, train=part == "train")
        assert ours.images.shape == (28, 28, 1)
        assert (ours.images.read(slice(None))[..., 0] == theirs.data.numpy()).all()
        assert ours.labels().tolist() == theirs.targets.tolist()
        assert len(ours.classes) == 10
    if name == "mnist":
        plain, permuted = (load_split(name, "test", permutation_seed=seed) for seed in (None, 3))
        order = np.random.RandomState(3).permutation(784)
        assert (permuted.images.read([1]).ravel() == plain.images.read([1]).ravel()[order]).all()
        assert permuted.labels().tolist() == plain.labels().tolist()


def test_mnist_cut_off(root, rng):
    raw = root / "MNIST" / "raw"
    whole = gzip.compress(idx(rng.integers(0, 256, (30, 28, 28), dtype=np.uint8), 8))
    write(raw / "train-images-idx3-ubyte.gz", whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"cannot be unpacked: EOFError.*\n.*delete it and fetch it again"):
        load_split("mnist", verify=False)
    assert not (raw / "train-images-idx3-ubyte").exists()
    assert [path.name for path in raw.iterdir()] == ["train-images-idx3-ubyte.gz"]
    write(raw / "train-images-idx3-ubyte", idx(np.zeros((3, 28, 28), np.uint8), 8)[:-5])
    write(raw / "train-labels-idx1-ubyte", idx(np.zeros(3, np.uint8), 8))
    with pytest.raises(BadInput, match=r"has 2,363 bytes, its header announces 2,368"):
        load_split("mnist", verify=False)
    write(raw / "train-images-idx3-ubyte", b"<html>not found</html>")
    with pytest.raises(BadInput, match="not an IDX file"):
        load_split("mnist", verify=False)


def test_qmnist(root, rng, monkeypatch):
    raw = root / "QMNIST" / "raw"
    for stem, count, squeeze, ending in (
        ("qmnist-train", 6, gzip, "gz"),
        ("qmnist-test", 5, gzip, "gz"),
        ("xnist", 9, lzma, "xz"),
    ):
        write(
            raw / f"{stem}-images-idx3-ubyte.{ending}",
            squeeze.compress(idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), 8)),
        )
        labels = rng.integers(0, 10, (count, 8)).astype(">i4")
        write(raw / f"{stem}-labels-idx2-int.{ending}", squeeze.compress(idx(labels, 12)))
    for part in ("train", "test", "nist", "test10k"):
        ours, theirs = load_split("qmnist", part, verify=False), stock.QMNIST(root, what=part)
        assert (ours.images.read(slice(None))[..., 0] == theirs.data.numpy()).all()
        assert ours.labels().tolist() == [theirs[i][1] for i in range(len(theirs))]
    with pytest.raises(BadInput, match="has no images"):
        load_split("qmnist", "test50k", verify=False)


# -- SVHN, STL-10 --------------------------------------------------------------------------------------------


def test_svhn(root, rng, monkeypatch):
    for part, count in (("train", 6), ("test", 4), ("extra", 5)):
        pixels = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = np.arange(1, count + 1, dtype=np.uint8)[:, None]
        labels[0] = 10  # their name of digit 0
        scipy.io.savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": labels}, do_compression=True)
    monkeypatch.setattr(stock.SVHN, "_check_integrity", lambda _: True)
    for part in ("train", "test", "extra"):
        ours, theirs = load_split("svhn", part, verify=False), stock.SVHN(root, split=part)
        assert (ours.images.read(slice(None)) == theirs.data.transpose(0, 2, 3, 1)).all()
        assert ours.labels().tolist() == theirs.labels.tolist()
        assert ours.labels()[0] == 0
    with pytest.raises(BadInput, match=r"differ from the published ones: train_32x32\.mat"):
        load_split("svhn")
    whole = (root / "train_32x32.mat").read_bytes()
    write(root / "train_32x32.mat", whole[:2000])
    with pytest.raises(BadInput, match="cannot be read"):
        load_split("svhn", verify=False)


def test_stl10(root, rng, monkeypatch):
    folder = root / "stl10_binary"
    for part, count in (("train", 5), ("test", 4), ("unlabeled", 6)):
        write(folder / f"{part}_X.bin", rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tobytes())
        if part != "unlabeled":
            write(folder / f"{part}_y.bin", rng.integers(1, 11, count, dtype=np.uint8).tobytes())
    monkeypatch.setattr(stock.STL10, "_check_integrity", lambda _: True)
    for part in ("train", "test", "unlabeled"):
        ours, theirs = load_split("stl10", part, verify=False), stock.STL10(root, split=part)
        assert (ours.images.read(slice(None)) == theirs.data.transpose(0, 2, 3, 1)).all()
        if part == "unlabeled":
            assert ours.truth is None
            with pytest.raises(MissingLabels, match="stl10/unlabeled has no labels"):
                ours.labels()
        else:
            assert ours.labels().tolist() == theirs.labels.tolist()
    assert isinstance(ours.images.array.base, np.ndarray), "2.8 GB are mapped, not read"
    with pytest.raises(BadInput, match="differ from the published ones"):
        load_split("stl10", "test")
    write(folder / "train_X.bin", (folder / "train_X.bin").read_bytes()[:-1])
    with pytest.raises(BadInput, match="was cut off"):
        load_split("stl10", verify=False)


# ------------------------------------------------------------------------------------------------ CIFAR


def cifar_batch(rng, count, key="labels", classes=10):
    return {
        "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        key: rng.integers(0, classes, count).tolist(),
        "filenames": [f"{i}.png" for i in range(count)],
    }


def cifar10_files(rng, protocol=2):
    batches = {f"data_batch_{i}": cifar_batch(rng, 3) for i in range(1, 6)} | {
        "test_batch": cifar_batch(rng, 4)
    }
    batches["batches.meta"] = {"label_names": list("abcdefghij")}
    # the published pickles were written by Python 2, under NumPy's old module names
    pickles = {name: pickle.dumps(batch, protocol) for name, batch in batches.items()}
    return {
        name: content.replace(b"numpy._core.", b"numpy.core.") if protocol == 2 else content
        for name, content in pickles.items()
    }


def put_cifar10(folder, rng, **options):
    for name, content in cifar10_files(rng, **options).items():
        write(folder / "cifar-10-batches-py" / name, content)
    return folder / "cifar-10-batches-py"


def publish_cifar10(monkeypatch, folder, archive=None):
    """Make torchvision's table of digests and URLs those of the files here."""
    kind = stock.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[name, md5(folder / name)] for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[name, md5(folder / name)] for name, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / "batches.meta")})
    if archive is not None:
        monkeypatch.setattr(kind, "url", archive.as_uri())
        monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    expect(monkeypatch, "cifar10", train=15, test=4)


@pytest.mark.parametrize("part", ["train", "test"])
def test_cifar10_agrees_with_torchvision(part, root, rng, monkeypatch):
    publish_cifar10(monkeypatch, put_cifar10(root, rng))
    ours, theirs = load_split("cifar10", part), stock.CIFAR10(root, train=part == "train")
    assert ours.ids.tolist() == list(range(len(theirs)))
    assert (ours.images.read(slice(None)) == theirs.data).all()
    assert ours.labels().tolist() == theirs.targets
    assert list(ours.classes) == theirs.classes
    assert ours.mean == (0.4914, 0.4822, 0.4465)


def test_cifar10_verification(root, rng):
    put_cifar10(root, rng, protocol=5)
    with pytest.raises(BadInput, match=r"differ from the published ones: data_batch_1, .*\n.*verify=False"):
        load_split("cifar10")
    assert len(load_split("cifar10", verify=False)) == 15


def test_cifar_pickles_run_no_code(root, rng, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    folder = put_cifar10(root, rng)
    write(folder / "data_batch_2", pickle.dumps({"data": Evil(), "labels": []}))
    with pytest.raises(
        BadInput, match=r"data_batch_2 cannot be read: UnpicklingError: it names (posix|nt)\.system"
    ):
        load_split("cifar10", verify=False)
    assert not (tmp_path / "owned").exists()
    write(folder / "data_batch_2", pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}))
    with pytest.raises(BadInput, match="data_batch_2 does not hold rows of 3,072"):
        load_split("cifar10", verify=False)
    write(folder / "data_batch_2", b"\x80\x02}q")
    with pytest.raises(BadInput, match="data_batch_2 cannot be read"):
        load_split("cifar10", verify=False)


class Named:
    """Pickles as a call of whatever is named, which need not exist here."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (np.array([os.system], object), "it holds an array of object"),
        (Named(np.ndarray, (1,), "O", b"x" * 8), "TypeError"),  # bytes taken for a pointer
        (Named(np.dtype, [("field", object)]), "cannot be read"),
        (Named(np.load, "evil.npy", None, True), "which is neither an array nor a number"),
        (Named(eval, "1"), r"it names (__builtin__|builtins)\.eval"),
    ],
    ids=["objects", "pointers", "records", "numpy", "builtins"],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar_pickles_hold_plain_arrays_only(content, match, protocol, root, rng):
    folder = put_cifar10(root, rng)
    write(folder / "data_batch_2", pickle.dumps({"data": content, "labels": []}, protocol))
    with pytest.raises(BadInput, match=match):
        load_split("cifar10", verify=False)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_plain_pickles_are_read_as_pickle_reads_them(protocol, tmp_path, rng):
    content = {
        "data": rng.integers(0, 256, (4, 6), dtype=np.uint8),
        "fortran": np.asfortranarray(rng.normal(size=(3, 2))),
        "big": np.arange(5, dtype=">i4"),
        "names": np.array(["a", "bc"]),
        "number": np.float32(1.5),
        "rest": [1, "x", b"y", None, {"deep": (2, 3)}],
    }
    write(tmp_path / "file", pickle.dumps(content, protocol))
    found = formats.read_pickle(tmp_path / "file", "data")
    assert found.keys() == content.keys()
    for name in ("data", "fortran", "big", "names", "number"):
        assert found[name].dtype == content[name].dtype
        np.testing.assert_array_equal(found[name], content[name])
    assert found["rest"] == content["rest"]


def test_cifar100_fine_labels(root, rng):
    folder = root / "cifar-100-python"
    for name in ("train", "test"):
        batch = cifar_batch(rng, 6, "fine_labels", 100) | {"coarse_labels": [0] * 6}
        write(folder / name, pickle.dumps(batch, 2))
    write(
        folder / "meta",
        pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)], "coarse_label_names": ["x"]}, 2),
    )
    ours = load_split("cifar100", verify=False)
    assert ours.labels().tolist() == pickle.loads((folder / "train").read_bytes())["fine_labels"]
    assert len(ours.classes) == 100


# ------------------------------------------------------------------------------------------------ fetching


@pytest.fixture
def cifar_archive(tmp_path, rng, monkeypatch):
    source = tmp_path / "elsewhere"
    folder = put_cifar10(source, rng)
    archive = source / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "cifar-10-batches-py")
    publish_cifar10(monkeypatch, folder, archive)
    monkeypatch.delenv("WINNOW_OFFLINE")
    return archive


def test_fetching_is_announced_and_whole(root, cifar_archive, caplog):
    with caplog.at_level(logging.INFO, "winnow.tasks.data"):
        found = load_split("cifar10", "test")
    assert len(found) == 4
    said = [record.message for record in caplog.records]
    assert said[0] == f"cifar10: fetching {cifar_archive.as_uri()} (170.5 MB) into {root}"
    assert sorted(path.name for path in root.iterdir() if path.name[0] != ".") == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]
    cifar_archive.unlink()
    caplog.clear()
    assert len(load_split("cifar10")) == 15, "the second time needs no network"
    assert not caplog.records


def test_what_came_must_be_what_was_published(root, cifar_archive, monkeypatch):
    monkeypatch.setattr(stock.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(MissingData, match=r"what came has md5 \w+, not 0000") as caught:
        load_split("cifar10")
    assert f"put the file into {root}" in str(caught.value)
    assert not list(root.glob("cifar*"))


def test_no_such_url(root, cifar_archive):
    cifar_archive.unlink()
    with pytest.raises(MissingData, match="could not be fetched: file://"):
        load_split("cifar10")
    assert not list(root.glob("*.part"))


def test_archive_that_was_put_there_is_unpacked_offline(root, cifar_archive, monkeypatch):
    monkeypatch.setenv("WINNOW_OFFLINE", "1")
    shutil.copy(cifar_archive, root)
    assert len(load_split("cifar10")) == 15


@pytest.mark.parametrize("verify", [True, False])
def test_half_an_archive(root, cifar_archive, verify):
    (root / cifar_archive.name).write_bytes(cifar_archive.read_bytes()[:20_000])
    with pytest.raises(BadInput, match=r"cut.off") as caught:
        load_split("cifar10", verify=verify)
    assert str(root / cifar_archive.name) in str(caught.value)
    assert not (root / "cifar-10-batches-py").exists(), "half a folder would look whole"
    assert not list(root.glob(".unpack-*"))


def test_archive_mends_a_folder_that_lacks_files(root, cifar_archive):
    load_split("cifar10")
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    assert len(load_split("cifar10")) == 15


def test_archive_of_something_else(root, cifar_archive):
    tar_of(root / cifar_archive.name, {"readme": b"no images"})
    with pytest.raises(BadInput, match="does not hold cifar-10-batches-py/data_batch_1"):
        load_split("cifar10", verify=False)


def member(name, kind=tarfile.REGTYPE, link="", content=b"x"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content


@pytest.mark.parametrize(
    "members",
    [
        [member("../../evil.txt")],
        [member("inside/../../../evil.txt")],
        [member("{outside}/evil.txt")],
        [member("link", tarfile.SYMTYPE, "{outside}"), member("link/evil.txt")],
        [member("link", tarfile.SYMTYPE, "../.."), member("link/evil.txt")],
        [member("link", tarfile.LNKTYPE, "{outside}/secret.txt")],
        [member("good.txt"), member("link", tarfile.SYMTYPE, "good.txt")],
        [member("pipe", tarfile.FIFOTYPE)],
    ],
    ids=["parent", "deep parent", "absolute", "absolute link", "link", "hard link", "link inside", "pipe"],
)
def test_tars_write_plain_files_inside_their_folder_or_nothing(members, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "bad" / "set"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    folder.mkdir(parents=True)
    with tarfile.open(folder / "evil.tar", "w") as tar:
        for info, content in members:
            info.name, info.linkname = (
                text.replace("{outside}", str(outside)) for text in (info.name, info.linkname)
            )
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(BadInput, match=r"cannot be unpacked: ExtractError: member .* (outside|neither)"):
        fetch.unpack(folder / "evil.tar", folder)
    assert [path.name for path in folder.iterdir()] == ["evil.tar"]
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "data", "outside"]


def test_zips_write_inside_their_folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    with zipfile.ZipFile(folder / "evil.zip", "w") as bundle:
        for name in ("../evil.txt", "/evil.txt", "a/../../evil.txt"):
            bundle.writestr(name, b"x")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16  # a symbolic link
        bundle.writestr(link, str(tmp_path))
    fetch.unpack(folder / "evil.zip", folder)
    assert not (tmp_path / "evil.txt").exists()
    assert not (folder / "link").is_symlink()


@pytest.mark.parametrize("name", ["..tar", "...tar", "../n01440764.tar"])
def test_imagenet_archives_of_classes_stay_inside(name, root):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        info, content = member("evil.JPEG")
        tar.addfile(info, io.BytesIO(content))
    tar_of(root / "imagenet" / "ILSVRC2012_img_train.tar", {name: inner.getvalue()})
    with pytest.raises(BadInput, match="ExtractError"):
        load_split("imagenet", verify=False)
    assert [path.name for path in (root / "imagenet").iterdir()] == ["ILSVRC2012_img_train.tar"]
    assert not list(root.parent.rglob("evil.JPEG"))


# ------------------------------------------------------------------------------------------------ CINIC-10

CINIC = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cinic_members(rng, per_class=2):
    return {
        f"{part}/{name}/{'cifar10-train' if i else 'n0123'}-{i}.png": png(picture(rng, (32, 32)))
        for part in ("train", "valid", "test")
        for name in CINIC
        for i in range(per_class)
    }


def test_cinic10_merges_train_and_valid(root, rng, monkeypatch):
    members = cinic_members(rng)
    for name, content in members.items():
        write(root / "cinic-10" / name, content)
    with pytest.raises(BadInput, match=r"40 images .* the published split has 180,000"):
        load_split("cinic10")
    expect(monkeypatch, "cinic10", train=40, valid=20, test=20)
    train, valid = load_split("cinic10"), load_split("cinic10", "valid")
    alone = load_split("cinic10", merge_valid=False, verify=False)
    assert (len(train), len(valid), len(alone), len(load_split("cinic10", "test"))) == (40, 20, 20, 20)
    assert train.ids.tolist() == list(range(40))
    assert train.sources[:3] == [
        "train/airplane/cifar10-train-1.png",
        "train/airplane/n0123-0.png",
        "train/automobile/cifar10-train-1.png",
    ]
    assert train.labels().tolist() == 2 * sorted(2 * list(range(10)))
    assert (train.images.read(range(20, 40)) == valid.images.read(slice(None))).all()
    assert (train.images.read([1])[0] == np.asarray(Image.open(io.BytesIO(members[train.sources[1]])))).all()
    theirs = stock.ImageFolder(root / "cinic-10" / "train")
    assert [str(Path(path).relative_to(root / "cinic-10")) for path, _ in theirs.samples] == alone.sources
    assert list(alone.classes) == theirs.classes
    assert train.mean == (0.47889522, 0.47227842, 0.43047404)


def test_cinic10_from_its_archive(root, rng):
    tar_of(root / "cinic-10" / "CINIC-10.tar.gz", cinic_members(rng, 1))
    assert len(load_split("cinic10", "test", verify=False)) == 10
    shutil.rmtree(root / "cinic-10" / "test" / "dog")
    with pytest.raises(BadInput, match=r"no folder .*test/dog"):
        load_split("cinic10", "test", verify=False)


# -- Tiny ImageNet -------------------------------------------------------------------------------------------


def tiny_members(rng):
    wnids = ["n03", "n01", "n02"]  # not sorted: the file decides
    members = {
        "wnids.txt": "\n".join(wnids).encode(),
        "words.txt": b"n00\tentity\nn01\tcrane\nn02\tcrane, bird\nn03\tgoldfish, Carassius auratus\n",
        "val/val_annotations.txt": b"val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn03\t0\t0\t9\t9\n"
        b"val_10.JPEG\tn01\t0\t0\t9\t9\n",
        "test/images/test_0.JPEG": png(picture(rng, (64, 64)), "jpeg"),
    }
    for wnid in wnids:
        for i in (0, 1, 10, 2):
            grey = 1 if i == 10 else 3  # some of its images are grey
            members[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = png(picture(rng, (64, 64), grey), "jpeg")
    for i in (0, 1, 10):
        members[f"val/images/val_{i}.JPEG"] = png(picture(rng, (64, 64)), "jpeg")
    return members


def test_tiny_imagenet_from_its_zip(root, rng):
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as bundle:
        for name, content in tiny_members(rng).items():
            bundle.writestr(f"tiny-imagenet-200/{name}", content)
    train, test = load_split("tiny_imagenet", verify=False), load_split("tiny_imagenet", "test", verify=False)
    assert train.classes == ("goldfish", "crane (n01)", "crane (n02)")
    assert train.labels().tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert train.sources[:4] == [f"train/n03/images/n03_{i}.JPEG" for i in (0, 1, 2, 10)]
    assert train.images.shape == (64, 64, 3)
    grey = train.images.read([3])[0]
    assert (grey[..., 0] == grey[..., 2]).all()
    assert test.labels().tolist() == [2, 0, 1], "labels come from val_annotations.txt"
    assert test.sources == ["val/images/val_0.JPEG", "val/images/val_1.JPEG", "val/images/val_10.JPEG"]
    assert load_split("tiny_imagenet", "test", verify=False, size=32).images.read([0]).shape == (1, 32, 32, 3)
    with pytest.raises(BadInput, match="the published split has 10,000"):
        load_split("tiny_imagenet", "test")


def test_tiny_imagenet_half_a_zip(root, rng):
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as bundle:
        bundle.writestr("tiny-imagenet-200/wnids.txt", "n01" * 100)
    whole = (root / "tiny-imagenet-200.zip").read_bytes()
    (root / "tiny-imagenet-200.zip").write_bytes(whole[:-30])
    with pytest.raises(BadInput, match=r"BadZipFile.*cut off"):
        load_split("tiny_imagenet", verify=False)
    with pytest.raises(BadInput, match=r"is not the published file \(248\.1 MB\)"):
        load_split("tiny_imagenet")


def test_tiny_imagenet_annotation_of_an_unknown_class(root, rng):
    for name, content in tiny_members(rng).items():
        write(root / "tiny-imagenet-200" / name, content)
    write(
        root / "tiny-imagenet-200" / "val" / "val_annotations.txt",
        b"val_0.JPEG\tn02\t0\nval_1.JPEG\tn99\t0\n",
    )
    with pytest.raises(BadInput, match=r"line 2 of .* names class 'n99'"):
        load_split("tiny_imagenet", "test", verify=False)


# ------------------------------------------------------------------------------------------------ ImageNet

WNIDS = ("n01440764", "n02012849", "n03126707")  # tench; the two cranes


def jpeg(rng, size):
    return png(picture(rng, size), "jpeg")


def devkit(answers):
    synsets = np.empty(
        4, [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    )
    for i, (number, wnid) in enumerate([(2, WNIDS[0]), (3, WNIDS[1]), (1, WNIDS[2]), (4, "n00001740")]):
        synsets[i] = (number, wnid, "words", int(number == 4))
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": synsets[:, None]})
    numbers = "".join(f"{dict(zip(WNIDS, (2, 3, 1), strict=True))[wnid]}\n" for wnid in answers)
    kit = "ILSVRC2012_devkit_t12/data"
    return {
        f"{kit}/meta.mat": buffer.getvalue(),
        f"{kit}/ILSVRC2012_validation_ground_truth.txt": numbers.encode(),
    }


@pytest.fixture
def imagenet_files(rng):
    train = {f"{wnid}/{wnid}_{i}.JPEG": jpeg(rng, (20 + i, 30)) for wnid in WNIDS for i in (2, 10)}
    answers = [WNIDS[2], WNIDS[0], WNIDS[0], WNIDS[1]]
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(rng, (24, 18)) for i in range(1, 5)}
    return train, val, answers


def test_imagenet_folders(root, imagenet_files, monkeypatch):
    train, val, answers = imagenet_files
    for name, content in train.items():
        write(root / "imagenet" / "train" / name, content)
    for (name, content), wnid in zip(val.items(), answers, strict=True):
        write(root / "imagenet" / "val" / wnid / name, content)
    with pytest.raises(BadInput, match=r"6 images .* the published split has 1,281,167"):
        load_split("imagenet")
    expect(monkeypatch, "imagenet", train=6, test=4)
    ours, theirs = load_split("imagenet"), stock.ImageFolder(root / "imagenet" / "train")
    assert [str(Path(path).relative_to(root / "imagenet")) for path, _ in theirs.samples] == ours.sources
    assert ours.labels().tolist() == theirs.targets
    assert ours.classes == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert ours.images.shape is None
    first = ours.images.read([0])[0]
    assert first.mode == "RGB"
    assert first.tobytes() == theirs[0][0].tobytes()
    assert load_split("imagenet", size=16).images.read([0, 5]).shape == (2, 16, 16, 3)
    held_out = load_split("imagenet", "test")
    assert held_out.labels().tolist() == [0, 0, 1, 2]


def test_imagenet_from_its_archives_and_flat_val(root, imagenet_files, tmp_path):
    train, val, answers = imagenet_files
    folder = root / "imagenet"
    inner = {}
    for wnid in WNIDS:
        mine = {name.partition("/")[2]: content for name, content in train.items() if name.startswith(wnid)}
        inner[f"{wnid}.tar"] = tar_of(tmp_path / f"{wnid}.tar", mine).read_bytes()
    tar_of(folder / "ILSVRC2012_img_train.tar", inner)
    tar_of(folder / "ILSVRC2012_img_val.tar", val)
    with pytest.raises(BadInput, match=r"ILSVRC2012_img_train.tar has md5"):
        load_split("imagenet")
    ours = load_split("imagenet", verify=False)
    assert ours.sources == [f"train/{name}" for name in sorted(train)]
    with pytest.raises(MissingData, match=r"ILSVRC2012_devkit_t12.tar.gz is in"):
        load_split("imagenet", "test", verify=False)
    tar_of(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit(answers))
    flat = load_split("imagenet", "test", verify=False)
    assert flat.labels().tolist() == [0, 0, 1, 2]
    assert [path[-8:] for path in flat.sources] == ["002.JPEG", "003.JPEG", "004.JPEG", "001.JPEG"], (
        "ids are those of class folders"
    )
    assert flat.classes == ours.classes
    (folder / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(BadInput, match=r"3 images .* the development kit labels 4"):
        load_split("imagenet", "test", verify=False)


def test_imagenet_half_an_archive(root, imagenet_files, tmp_path):
    train, _, _ = imagenet_files
    inner = tar_of(tmp_path / "inner.tar", train).read_bytes()
    tar_of(root / "imagenet" / "ILSVRC2012_img_train.tar", {"n01440764.tar": inner[:3000]})
    with pytest.raises(BadInput, match="cut off"):
        load_split("imagenet", verify=False)
    assert not (root / "imagenet" / "train").exists()


def test_imagenet_absent(root):
    with pytest.raises(MissingData) as caught:
        load_split("imagenet")
    for name in (
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "ILSVRC2012_devkit_t12.tar.gz",
        str(root / "imagenet"),
    ):
        assert name in str(caught.value)


# -- anybody's folder ----------------------------------------------------------------------------------------


def make_folder(folder, rng, layout, size=(8, 8), channels=3):
    for name in layout:
        write(
            folder / name,
            png(picture(rng, size, channels), Path(name).suffix[1:].lower().replace("jpg", "jpeg")),
        )
    return folder


def test_imagefolder_with_split_folders(tmp_path, rng):
    layout = [f"train/{name}/{i}.png" for name in ("c2", "c10") for i in (9, 10, 1)] + [
        "val/c10/0.webp",
        "unlabeled/1.bmp",
        "unlabeled/0.gif",
    ]
    folder = make_folder(tmp_path / "set", rng, [*layout, "train/c2/.hidden.png", "train/.cache/x.png"])
    write(folder / "train" / "c2" / "notes.txt", b"not an image")
    train, test = load_split(f"imagefolder:{folder}"), load_split(f"imagefolder:{folder}", "test")
    assert train.classes == ("c2", "c10")
    assert train.sources == ["c2/1.png", "c2/9.png", "c2/10.png", "c10/1.png", "c10/9.png", "c10/10.png"]
    assert train.labels().tolist() == [0, 0, 0, 1, 1, 1]
    assert train.images.shape == (8, 8, 3)
    assert test.labels().tolist() == [1]
    assert test.mean == train.mean
    pixels = train.images.read(slice(None)) / 255
    assert train.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-6)
    assert train.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-6)
    more = load_split(f"imagefolder:{folder}", "unlabeled")
    assert more.sources == ["0.gif", "1.bmp"]
    with pytest.raises(MissingLabels):
        more.labels()
    with pytest.raises(BadInput, match=r"no split 'tets'.*Splits: test, train, unlabeled, val"):
        load_split(f"imagefolder:{folder}", "tets")
    with pytest.raises(BadInput, match=r"test_fraction = 0.5, but .*val is there"):
        load_split(f"imagefolder:{folder}", test_fraction=0.5)
    make_folder(folder, rng, ["val/c3/0.png"])
    with pytest.raises(BadInput, match="classes that train has not: c3"):
        load_split(f"imagefolder:{folder}", "test")


def test_imagefolder_held_out_by_path(tmp_path, rng):
    folder = make_folder(
        tmp_path / "pool", rng, [f"{name}/{i}.png" for name in "ab" for i in range(20)], size=(4, 4)
    )
    name = f"imagefolder:{folder}"
    with pytest.raises(BadInput, match=r"no split 'test': there is no test/ .*\n.*test_fraction=0\.1"):
        load_split(name, "test")
    train, test = (load_split(name, part, test_fraction=0.3) for part in ("train", "test"))
    assert len(train) + len(test) == 40
    assert not set(train.sources) & set(test.sources)
    assert 3 <= len(test) <= 24
    make_folder(folder, rng, [f"c/{i}.png" for i in range(20)], size=(4, 4))
    grown = load_split(name, "test", test_fraction=0.3)
    assert set(test.sources) < set(grown.sources), "no image changes sides"
    assert not set(train.sources) & set(grown.sources)
    with pytest.raises(BadInput, match="between 0 and 1"):
        load_split(name, test_fraction=1.5)
    with pytest.raises(BadInput, match="leaves no test images"):
        load_split(name, test_fraction=1e-9)


def test_imagefolder_flat_relative_and_refusals(root, tmp_path, rng):
    make_folder(root / "photos", rng, ["10.jpg", "9.JPG"])
    flat = load_split("imagefolder:photos")
    assert flat.sources == ["9.JPG", "10.jpg"]
    assert flat.classes == ()
    with pytest.raises(MissingLabels):
        flat.labels()
    make_folder(root / "photos", rng, ["a/1.jpg"])
    with pytest.raises(BadInput, match="beside class folders"):
        load_split("imagefolder:photos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="there are no images in"):
        load_split(f"imagefolder:{tmp_path}/empty")
    with pytest.raises(MissingData, match="there is no folder"):
        load_split("imagefolder:nowhere")


def test_imagefolder_follows_links_once(tmp_path, rng):
    make_folder(tmp_path / "other", rng, ["1.png"])
    folder = make_folder(tmp_path / "set", rng, ["a/1.png"])
    (folder / "b").symlink_to(tmp_path / "other", target_is_directory=True)
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
    assert load_split(f"imagefolder:{folder}").sources == ["a/1.png", "b/1.png"]


def test_images_of_several_sizes(tmp_path, rng):
    folder = make_folder(tmp_path / "set", rng, ["a.png", "b.png"], size=(20, 30))
    make_folder(folder, rng, ["c.png"], size=(31, 15), channels=1)
    found = load_split(f"imagefolder:{folder}")
    assert found.images.shape is None
    assert [image.size for image in found.images.read([0, 2])] == [(30, 20), (15, 31)]
    assert all(image.mode == "RGB" for image in found.images.read([0, 2]))
    square = load_split(f"imagefolder:{folder}", size=12)
    assert square.images.read(slice(None)).shape == (3, 12, 12, 3)
    grey = load_split(f"imagefolder:{folder}", size=12, channels=1)
    assert grey.images.read([0]).shape == (1, 12, 12, 1)
    assert len(grey.mean) == 1
    with pytest.raises(BadInput, match=r"several sizes.\n.*size=<pixels>"):
        load_split(f"imagefolder:{folder}", channels=1)
    with pytest.raises(BadInput, match="size = 0"):
        load_split(f"imagefolder:{folder}", size=0)
    with pytest.raises(BadInput, match="channels = 4"):
        load_split(f"imagefolder:{folder}", channels=4)


# -- corrupt images ------------------------------------------------------------------------------------------


def spoil(folder, rng):
    whole = (folder / "b" / "1.png").read_bytes()
    write(folder / "b" / "1.png", whole[: len(whole) // 2])
    write(folder / "b" / "2.png", b"")
    write(folder / "b" / "3.png", b"<html>404</html>")


def test_corrupt_images_are_named_or_left_out(tmp_path, rng, caplog):
    folder = make_folder(
        tmp_path / "set", rng, [f"{name}/{i}.png" for name in "ab" for i in range(5)], size=(16, 16)
    )
    whole = load_split(f"imagefolder:{folder}").images.read(slice(None))
    spoil(folder, rng)
    with pytest.raises(BadInput, match=r"image 6 \(.*b/1\.png\) cannot be decoded: .*\n.*skip_corrupt=True"):
        load_split(f"imagefolder:{folder}")
    with caplog.at_level(logging.WARNING, "winnow.tasks.data"):
        kept = load_split(f"imagefolder:{folder}", skip_corrupt=True)
    assert "3 images cannot be decoded and are left out" in caplog.text
    assert "b/2.png" in caplog.text
    assert kept.ids.tolist() == [0, 1, 2, 3, 4, 5, 9]
    assert kept.labels().tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert kept.sources[-1] == "b/4.png"
    assert (kept.images.read(slice(None)) == whole[kept.ids]).all()
    assert len(kept.images.checksums()) == 7


def test_only_good_images_are_remembered(tmp_path, rng, monkeypatch):
    names = [f"{i}.png" for i in range(5)]
    folder = make_folder(tmp_path / "set", rng, names)
    images = FileImages(folder, names, cache=tmp_path / "cache")
    with monkeypatch.context() as hiccup:
        original = FileImages.content

        def flaky(self, row):
            if row == 3:
                raise OSError("stale file handle")
            return original(self, row)

        hiccup.setattr(FileImages, "content", flaky)
        assert images.decodable().tolist() == [True, True, True, False, True]
    read = count_reads(monkeypatch)
    assert images.decodable().all()
    assert [Path(name).name for name in read] == ["3.png"]


def test_a_file_that_went_away_is_named(tmp_path, rng):
    folder = make_folder(tmp_path, rng, ["a.png", "b.png"])
    images = FileImages(folder, ["a.png", "b.png"], cache=tmp_path)
    (folder / "b.png").unlink()
    with pytest.raises(BadInput, match=r"image 1 \(.*b\.png\) cannot be read: FileNotFoundError"):
        images.checksums()
    with pytest.raises(BadInput, match=r"image 1 .* cannot be read"):
        images.read([0, 1])


def test_a_stray_size_is_named(tmp_path, rng):
    folder = make_folder(tmp_path, rng, ["a.png"])
    make_folder(folder, rng, ["b.png"], size=(8, 9))
    with pytest.raises(BadInput, match=r"image 1 \(.*b\.png\) has 9 x 8 pixels, the others 8 x 8"):
        FileImages(folder, ["a.png", "b.png"], shape=(8, 8, 3)).read([0, 1])


def test_decoding_of_every_mode(rng):
    rgb = picture(rng, (6, 5))
    assert (np.asarray(decode(png(rgb))) == rgb).all()
    alpha = np.dstack([rgb, rng.integers(0, 256, (6, 5), dtype=np.uint8)])
    assert (np.asarray(decode(png(alpha))) == rgb).all()
    grey = picture(rng, (6, 5), 1)
    assert (np.asarray(decode(png(grey)))[..., 1] == grey).all()
    assert (np.asarray(decode(png(grey), 1)) == grey).all()
    deep = rng.integers(0, 65536, (6, 5), dtype=np.uint16)
    assert (np.asarray(decode(png(deep), 1)) == deep >> 8).all(), "16 bits keep the high byte"
    buffer = io.BytesIO()
    Image.fromarray(rgb).quantize(8).save(buffer, "gif")
    assert decode(buffer.getvalue()).mode == "RGB"
    buffer = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(buffer, "jpeg")
    assert decode(buffer.getvalue()).mode == "RGB"
    buffer = io.BytesIO()
    Image.fromarray(rgb.astype(np.float32)[..., 0]).save(buffer, "tiff")
    with pytest.raises(ValueError, match="floating-point"):
        decode(buffer.getvalue())
    with pytest.raises(Image.UnidentifiedImageError):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # would start Ghostscript


def test_odd_metadata_is_no_error_and_leaves_the_filters_of_warnings(rng):
    """In threads, too, where catch_warnings would restore each other's filters."""
    palette = Image.fromarray(picture(rng, (40, 50))).quantize(8)
    buffer = io.BytesIO()
    palette.save(buffer, "png", transparency=bytes(range(8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images._ignore_metadata_warnings.cache_clear()
        decode(buffer.getvalue())
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(decode, [buffer.getvalue()] * 200))) == 200
        assert warnings.filters == before
        with pytest.raises(UserWarning):
            warnings.warn("mine", UserWarning, stacklevel=1)
    images._ignore_metadata_warnings.cache_clear()


def test_resize_crop_keeps_the_middle():
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255
    assert (np.asarray(resize_crop(Image.fromarray(wide), 10)) == 255).all()
    assert resize_crop(Image.fromarray(wide.transpose(1, 0, 2)), 7).size == (7, 7)


# ------------------------------------------------------------------------------------------------ webdataset


@pytest.fixture
def shards(tmp_path, rng):
    """Two shards of three and two samples, labelled in three ways."""
    folder = tmp_path / "shards"
    pictures = [picture(rng, (8, 8)) for _ in range(5)]
    members = [
        {
            f"dir/{i:04d}.txt": f"caption {i % 2}".encode(),
            f"dir/{i:04d}.png": png(pictures[i]),
            f"dir/{i:04d}.cls": str(i % 3).encode(),
            f"dir/{i:04d}.json": f'{{"uid": "u{i}", "kind": "k{i % 2}"}}'.encode(),
        }
        for i in range(5)
    ]
    tar_of(folder / "9.tar", {"__meta__": b"x", **members[0], **members[1], **members[2]})
    tar_of(folder / "10.tar", {**members[3], "README.md": b"no image here", **members[4]})
    return folder, pictures


@pytest.mark.parametrize("pattern", ["{}", "{}/*.tar", "{}/{{9..10}}.tar", "file://{}/*.tar"])
def test_webdataset_is_read_by_row(pattern, shards, caplog):
    folder, pictures = shards
    with caplog.at_level(logging.WARNING, "winnow.tasks.data"):
        found = load_split("webdataset:" + pattern.format(folder))
    assert "1 samples without an image are left out" in caplog.text
    assert found.sources == [f"dir/{i:04d}" for i in range(5)], "9 comes before 10"
    assert found.labels().tolist() == [0, 1, 2, 0, 1]
    assert found.classes == ("0", "1", "2")
    assert (found.images.read([4, 0, 2]) == np.stack([pictures[4], pictures[0], pictures[2]])).all()
    expected = hashlib.blake2b(png(pictures[3]), digest_size=16).digest()
    assert found.images.checksums()[3].tobytes() == expected


def test_webdataset_labels(shards):
    folder, _ = shards
    by_json = load_split(f"webdataset:{folder}", label="json.kind")
    assert (by_json.classes, by_json.labels().tolist()) == (("k0", "k1"), [0, 1, 0, 1, 0])
    by_text = load_split(f"webdataset:{folder}", label="txt")
    assert by_text.classes == ("caption 0", "caption 1")
    with pytest.raises(BadInput, match=r"has no label in json.nope"):
        load_split(f"webdataset:{folder}", label="json.nope")
    with pytest.raises(BadInput, match="label = 'xml'"):
        load_split(f"webdataset:{folder}", label="xml")


def test_webdataset_test_shards(shards, tmp_path, rng):
    folder, pictures = shards
    name = f"webdataset:{folder}/9.tar"
    with pytest.raises(BadInput, match=r"no split 'test'.\n.*test_shards"):
        load_split(name, "test")
    test = load_split(name, "test", test_shards=f"{folder}/10.tar")
    assert test.ids.tolist() == [0, 1]
    assert test.labels().tolist() == [0, 1]
    assert len(test.classes) == 3
    assert test.mean == load_split(name).mean
    tar_of(folder / "new.tar", {"a.png": png(pictures[0]), "a.cls": b"7"})
    with pytest.raises(BadInput, match="label '7', which no training sample has"):
        load_split(name, "test", test_shards=f"{folder}/new.tar")


def test_webdataset_refusals(shards, tmp_path, rng):
    folder, pictures = shards
    with pytest.raises(MissingData, match=r"no shards at .*11\.tar, .*12\.tar"):
        load_split(f"webdataset:{folder}/{{9..12}}.tar")
    with pytest.raises(MissingData, match="not local, and nothing may be fetched: WINNOW_OFFLINE"):
        load_split("webdataset:https://example.org/{0..3}.tar")
    whole = (folder / "9.tar").read_bytes()
    write(folder / "cut.tar", whole[:3000])
    with pytest.raises(BadInput, match=r"cut\.tar \(3,000 bytes\) cannot be indexed"):
        load_split(f"webdataset:{folder}/cut.tar")
    write(folder / "packed.tar", gzip.compress(whole))
    with pytest.raises(BadInput, match="compressed tars must be decompressed"):
        load_split(f"webdataset:{folder}/packed.tar")
    tar_of(folder / "text.tar", {"a.txt": b"x"})
    with pytest.raises(BadInput, match="there are no images in"):
        load_split(f"webdataset:{folder}/text.tar")
    tar_of(folder / "bad.tar", {"a.png": b"junk", "b.png": png(pictures[0])})
    with pytest.raises(BadInput, match=r"image 0 \(a in .*bad\.tar\) cannot be decoded"):
        load_split(f"webdataset:{folder}/bad.tar")
    kept = load_split(f"webdataset:{folder}/bad.tar", skip_corrupt=True)
    assert (kept.ids.tolist(), kept.sources) == ([1], ["b"])
    assert (np.asarray(kept.images.read([0])[0]) == pictures[0]).all()
    tar_of(folder / "half.tar", {"a.png": png(pictures[0]), "a.cls": b"1", "b.png": png(pictures[0])})
    with pytest.raises(BadInput, match=r"sample b in .* has no label in cls, others have"):
        load_split(f"webdataset:{folder}/half.tar")


def test_webdataset_on_another_file_system(shards):
    import fsspec

    folder, pictures = shards
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/wds/0.tar", (folder / "9.tar").read_bytes())
    try:
        found = load_split("webdataset:memory://wds/0.tar")
        assert (found.images.read([1])[0] == pictures[1]).all()
    finally:
        memory.rm("/wds", recursive=True)


def test_shards_are_scanned_once(shards, monkeypatch):
    folder, _ = shards
    first = load_split(f"webdataset:{folder}")

    def never(*_args):
        raise AssertionError("scanned again")

    monkeypatch.setattr("winnow.tasks.data.shards.scan", never)
    again = load_split(f"webdataset:{folder}")
    assert again.sources == first.sources
    assert (again.labels() == first.labels()).all()
    os.utime(folder / "9.tar", (OLD + 1, OLD + 1))
    with pytest.raises(AssertionError, match="scanned again"):
        load_split(f"webdataset:{folder}")


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_appears_whole_with_the_permissions_of_its_process(mask, tmp_path):
    before = os.umask(mask)
    try:
        with files.atomic(tmp_path / "new" / "file") as temporary:
            assert temporary.parent == tmp_path / "new"
            assert temporary.name.startswith(".tmp-")
            temporary.write_bytes(b"content")
            assert not (tmp_path / "new" / "file").exists()
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    (file,) = (tmp_path / "new").iterdir()
    assert (file.name, file.read_bytes()) == ("file", b"content")
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(error, tmp_path):
    (tmp_path / "file").write_bytes(b"old")

    def fail():
        with files.atomic(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half of the ne")
            raise error

    with pytest.raises(error):
        fail()
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


# -- checksums and their index -------------------------------------------------------------------------------


def count_reads(monkeypatch, kind=FileImages):
    read, original = [], kind.content

    def content(self, row):
        read.append(self.name_of(row))
        return original(self, row)

    monkeypatch.setattr(kind, "content", content)
    return read


def test_checksums_are_of_content():
    pixels = np.zeros((3, 4, 4, 1), np.uint8)
    pixels[1] = 1
    sums = ArrayImages(pixels).checksums()
    assert sums.shape == (3, 16)
    assert sums.dtype == np.uint8
    assert (sums[0] == sums[2]).all()
    assert (sums[0] != sums[1]).any()
    digest = hashlib.blake2b(b"4x4x1" + bytes(16), digest_size=16).digest()
    assert sums[0].tobytes() == digest
    assert (ArrayImages(pixels.reshape(3, 2, 8, 1)).checksums()[0] != sums[0]).any(), "the shape counts"
    strided = np.zeros((3, 1, 4, 4), np.uint8)
    strided[1] = 1
    assert (ArrayImages(strided.transpose(0, 2, 3, 1)).checksums() == sums).all()


def test_unchanged_files_are_not_read_again(tmp_path, rng, monkeypatch):
    names = [f"{i}.png" for i in range(40)]
    folder = make_folder(tmp_path / "set", rng, names)
    cache = tmp_path / "cache"
    read = count_reads(monkeypatch)
    said = []
    first = FileImages(folder, names, cache=cache).checksums(progress=lambda *note: said.append(note))
    assert len(read) == 40
    assert said == [(40, 40, "checksums")]
    assert first[5].tobytes() == hashlib.blake2b((folder / "5.png").read_bytes(), digest_size=16).digest()
    read.clear()
    assert (FileImages(folder, names[::-1], cache=cache).checksums() == first[::-1]).all()
    assert not read
    write(folder / "7.png", png(picture(rng)), age=OLD + 1)
    os.utime(folder / "8.png", (OLD + 1, OLD + 1))
    changed = FileImages(folder, names, cache=cache).checksums()
    assert sorted(Path(name).name for name in read) == ["7.png", "8.png"]
    assert np.flatnonzero((changed != first).any(1)).tolist() == [7]
    assert not list(cache.glob(".*")), "no temporary files are left"


def test_young_files_are_not_trusted(tmp_path, rng, monkeypatch):
    folder = make_folder(tmp_path / "set", rng, ["a.png"])
    now = time.time()
    os.utime(folder / "a.png", (now, now))
    read = count_reads(monkeypatch)
    for _ in range(2):
        FileImages(folder, ["a.png"], cache=tmp_path / "cache").checksums()
    assert len(read) == 2, "a second change within the clock's tick would go unseen"


def test_damaged_index_is_made_anew(tmp_path, rng, caplog):
    folder = make_folder(tmp_path / "set", rng, ["a.png"])
    cache = tmp_path / "cache"
    first = FileImages(folder, ["a.png"], cache=cache).checksums()
    (file,) = cache.iterdir()
    for spoilt in (b"junk", file.read_bytes()[:-40], b""):
        file.write_bytes(spoilt)
        assert (FileImages(folder, ["a.png"], cache=cache).checksums() == first).all()
        assert "is damaged" in caplog.text
        assert index.load_arrays(file, "keys", "values") is not None


class Loud:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


def test_pickles_in_an_index_are_not_loaded(tmp_path, rng, caplog):
    """np.load would run them if it were allowed to."""
    folder = make_folder(tmp_path / "set", rng, ["a.png"])
    cache = tmp_path / "cache"
    first = FileImages(folder, ["a.png"], cache=cache).checksums()
    (file,) = cache.iterdir()
    with np.load(file) as stored:
        keys = stored["keys"]
    values = np.empty((1, 16), object)
    values[:] = Loud(tmp_path / "owned")
    np.savez(file, keys=keys, values=values)
    assert (FileImages(folder, ["a.png"], cache=cache).checksums() == first).all()
    assert "Object arrays cannot be loaded when allow_pickle=False" in caplog.text
    file.write_bytes(pickle.dumps(Loud(tmp_path / "owned")))
    assert (FileImages(folder, ["a.png"], cache=cache).checksums() == first).all()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("text", "extents"),
    [
        (b"not json", np.zeros((1, 2), np.int64)),
        (b'{"keys": ["a"]}', np.zeros((1, 2), np.int64)),
        (b'{"keys": [1], "labels": [null]}', np.zeros((1, 2), np.int64)),
        (b'{"keys": ["a"], "labels": [null]}', np.zeros((2, 2), np.int64)),
        (b'{"keys": ["a"], "labels": [null]}', np.full((1, 2), -4096, np.int64)),
        (b"[]", np.zeros((0, 2), np.int64)),
    ],
)
def test_a_shard_index_of_something_else_is_made_anew(text, extents, shards, root):
    folder, pictures = shards
    name = f"webdataset:{folder}/9.tar"
    first = load_split(name)
    (file,) = (root / ".winnow-index" / "shards").iterdir()
    np.savez(file, text=np.frombuffer(text, np.uint8), extents=extents)
    again = load_split(name)
    assert again.sources == first.sources
    assert (again.images.read([1])[0] == pictures[1]).all()
    with np.load(file) as stored:
        assert len(stored["extents"]) == 3


def test_index_that_cannot_be_written_costs_nothing_but_time(tmp_path, rng, caplog):
    folder = make_folder(tmp_path / "set", rng, ["a.png"])
    (tmp_path / "file").write_bytes(b"")
    assert len(FileImages(folder, ["a.png"], cache=tmp_path / "file" / "cache").checksums()) == 1
    assert "cannot be written" in caplog.text


def test_interrupted_checksums_go_on(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(index, "CHUNK", 4)
    names = [f"{i}.png" for i in range(10)]
    folder = make_folder(tmp_path / "set", rng, names)
    original = FileImages.content

    def killed(self, row):
        if row == 9:
            raise KeyboardInterrupt
        return original(self, row)

    monkeypatch.setattr(FileImages, "content", killed)
    with pytest.raises(KeyboardInterrupt):
        FileImages(folder, names, cache=tmp_path / "cache").checksums()
    monkeypatch.setattr(FileImages, "content", original)
    read = count_reads(monkeypatch)
    FileImages(folder, names, cache=tmp_path / "cache").checksums()
    assert sorted(Path(name).name for name in read) == ["8.png", "9.png"]


def test_index_keeps_what_others_wrote(tmp_path):
    table = index.StatIndex(tmp_path / "x.npz", 2)
    keys = np.arange(48, dtype=np.uint8).reshape(3, 16)
    keys[0] = 0  # NULs must not be taken for padding
    keys[1] = [*([0] * 15), 1]
    table.put(keys[:2], np.array([[1, 1], [2, 2]], np.uint8))
    table.put(keys[1:], np.array([[5, 5], [3, 3]], np.uint8))
    values, found = table.get(np.concatenate([keys, np.full((1, 16), 9, np.uint8)]))
    assert found.tolist() == [True, True, True, False]
    assert values[:3, 0].tolist() == [1, 5, 3]


def test_reading_options_change_checksums(tmp_path, rng):
    folder = make_folder(tmp_path / "set", rng, ["a.png"])
    sums = {
        FileImages(folder, ["a.png"], cache=tmp_path / "cache", **options).checksums().tobytes()
        for options in ({}, {"size": 4}, {"size": 5}, {"size": 4, "channels": 1})
    }
    assert len(sums) == 4


# -- rows, statistics, Split ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ArrayImages, FileImages, ShardImages])
def test_rows_are_checked(kind, tmp_path, rng):
    if kind is ArrayImages:
        images = ArrayImages(np.zeros((4, 8, 8, 3), np.uint8))
    elif kind is FileImages:
        images = FileImages(
            make_folder(tmp_path, rng, ["0.png", "1.png", "2.png", "3.png"]),
            [f"{i}.png" for i in range(4)],
            shape=(8, 8, 3),
        )
    else:
        path = tar_of(tmp_path / "s.tar", {f"{i}.png": png(picture(rng)) for i in range(4)})
        images = load_split(f"webdataset:{path}").images
    assert len(images) == 4
    assert images.read([]).shape == (0, 8, 8, 3)
    assert images.read(np.array([3, 3, 0])).shape == (3, 8, 8, 3)
    for rows, match in (
        ([0, 4], r"rows\[1\] = 4"),
        ([-1], r"rows\[0\] = -1"),
        ([0.5], "whole numbers"),
        ([[0]], "whole numbers"),
    ):
        with pytest.raises(BadInput, match=match):
            images.read(rows)


def test_many_threads_read_the_same(tmp_path, rng, monkeypatch):
    names = [f"{i}.png" for i in range(60)]
    images = FileImages(make_folder(tmp_path, rng, names), names, shape=(8, 8, 3), cache=tmp_path / "cache")
    monkeypatch.setenv("WINNOW_THREADS", "1")
    alone = images.read(slice(None))
    monkeypatch.setenv("WINNOW_THREADS", "7")
    assert (images.read(slice(None)) == alone).all()
    assert [np.asarray(Image.open(tmp_path / name)).tobytes() for name in names] == [
        image.tobytes() for image in alone
    ]


def test_threads_do_not_nest(tmp_path, rng, monkeypatch):
    """Sixteen threads or processes that each read with sixteen threads would be 256 on 16 cores."""
    monkeypatch.setenv("WINNOW_THREADS", "4")
    names = [f"{i}.png" for i in range(40)]
    images = FileImages(make_folder(tmp_path, rng, names), names, shape=(8, 8, 3), cache=tmp_path / "cache")
    readers, original = set(), FileImages.content

    def content(self, row):
        readers.add(threading.get_ident())
        return original(self, row)

    monkeypatch.setattr(FileImages, "content", content)
    images.read(slice(None))
    assert threading.get_ident() not in readers
    readers.clear()

    def read(_):
        assert hardware.spare_threads() == 1
        return threading.get_ident(), images.read(slice(None))

    with hardware.thread_pool(2) as pool:
        reads = list(pool.map(read, range(6)))
    assert readers <= {thread for thread, _ in reads}
    assert hardware.spare_threads() == 4
    assert all((pixels == reads[0][1]).all() for _, pixels in reads)


@pytest.mark.parametrize(("workers", "threads"), [(None, 6), (1, 6), (2, 3)])
def test_workers_of_a_loader_share_the_cores(workers, threads, monkeypatch):
    monkeypatch.setenv("WINNOW_THREADS", "6")
    told = None if workers is None else SimpleNamespace(num_workers=workers)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: told)
    assert hardware.spare_threads() == threads


def test_array_images_refuse():
    for bad in (np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), np.uint8), np.zeros((2, 3, 8, 8), np.uint8)):
        with pytest.raises(BadInput, match="uint8"):
            ArrayImages(bad)


def test_statistics_are_exact_and_of_many(rng, monkeypatch):
    pixels = rng.integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
    pixels[..., 2] = 7
    mean, std = channel_statistics(ArrayImages(pixels))
    assert mean == pytest.approx((pixels / 255).mean((0, 1, 2)), abs=1e-6)
    assert std[:2] == pytest.approx((pixels / 255).std((0, 1, 2))[:2], abs=1e-6)
    assert std[2] == 1.0, "a constant channel must not divide by zero"
    monkeypatch.setattr(split, "STATISTICS_SAMPLE", 10)
    sampled = pixels[np.linspace(0, 49, 10).astype(int)]
    assert channel_statistics(ArrayImages(pixels))[0] == pytest.approx(
        (sampled / 255).mean((0, 1, 2)), abs=1e-6
    )


def test_statistics_are_remembered(tmp_path, rng, monkeypatch):
    folder = make_folder(tmp_path / "set", rng, ["a.png", "b.png"], size=(9, 7))
    make_folder(folder, rng, ["c.png"], size=(5, 5))
    read = count_reads(monkeypatch)
    first = load_split(f"imagefolder:{folder}")
    assert len(read) == 6, "a header and the pixels of each"
    again = load_split(f"imagefolder:{folder}")
    assert len(read) == 6
    assert (first.mean, first.std) == (again.mean, again.std)
    every = np.concatenate([np.asarray(image).reshape(-1, 3) for image in first.images.read(range(3))]) / 255
    assert first.mean == pytest.approx(every.mean(0), abs=1e-6)
    assert first.std == pytest.approx(every.std(0), abs=1e-6)


def make_split(count=3, **changes):
    fields = {
        "name": "toy",
        "split": "train",
        "ids": np.arange(count),
        "images": ArrayImages(np.zeros((count, 4, 4, 1), np.uint8)),
        "classes": ("a", "b"),
        "mean": (0.5,),
        "std": (0.5,),
        "truth": np.zeros(count, np.int64),
    }
    return Split(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"count": 0}, "has no images"),
        ({"ids": np.arange(2)}, "3 images but 2 ids"),
        ({"ids": np.array([0, 1, 1])}, "not unique"),
        ({"truth": np.array([0, 1, 2])}, "image 2 has label 2, there are 2 classes"),
        ({"truth": np.array([0, -1, 1])}, "image 1 has label -1"),
        ({"sources": ["a"]}, "3 images but 1 sources"),
        ({"mean": (0.5, 0.5, 0.5)}, "do not fit images"),
    ],
)
def test_split_refuses(changes, match):
    with pytest.raises(BadInput, match=match):
        make_split(**changes)


def test_split_keeps_labels_apart():
    truth = np.array([0, 1, 0])
    found = make_split(truth=truth)
    truth[0] = 1
    assert found.labels().tolist() == [0, 1, 0], "the caller's array is not shared"
    with pytest.raises(ValueError, match="read-only"):
        found.labels()[0] = 1
    assert "truth" not in repr(found)
    with pytest.raises(MissingLabels, match=r"toy/train has no labels.\n.*label-free"):
        make_split(truth=None).labels()


def test_path_share_is_uniform_and_fixed():
    shares = [folders._path_share(f"a/{i}.png") for i in range(2000)]
    assert abs(np.mean(np.array(shares) < 0.2) - 0.2) < 0.03
    assert (
        folders._path_share("a/0.png")
        == int.from_bytes(hashlib.blake2b(b"a/0.png", digest_size=8).digest(), "big") / 2**64
    )
