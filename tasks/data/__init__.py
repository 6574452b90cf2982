"""Datasets by name; importing this registers them and loads nothing heavy."""

from winnow.tasks.registry import datasets

_TWO = ("train", "test")

datasets.add(
    "digits",
    ".digits:digits",
    classes=10,
    samples={"train": 1_442, "test": 355},
    size=8,
    channels=1,
    splits=_TWO,
    download=False,
)
datasets.add(
    "mnist",
    ".vision:mnist",
    classes=10,
    samples={"train": 60_000, "test": 10_000},
    size=28,
    channels=1,
    splits=_TWO,
    download=True,
)
datasets.add(
    "qmnist",
    ".vision:qmnist",
    classes=10,
    samples={"train": 60_000, "test": 60_000, "test10k": 10_000, "test50k": 50_000, "nist": 402_953},
    size=28,
    channels=1,
    splits=("train", "test", "test10k", "test50k", "nist"),
    download=True,
)
datasets.add(
    "fashion_mnist",
    ".vision:fashion_mnist",
    classes=10,
    samples={"train": 60_000, "test": 10_000},
    size=28,
    channels=1,
    splits=_TWO,
    download=True,
)
datasets.add(
    "svhn",
    ".vision:svhn",
    classes=10,
    samples={"train": 73_257, "test": 26_032, "extra": 531_131},
    size=32,
    channels=3,
    splits=("train", "test", "extra"),
    download=True,
)
datasets.add(
    "cifar10",
    ".vision:cifar10",
    classes=10,
    samples={"train": 50_000, "test": 10_000},
    size=32,
    channels=3,
    splits=_TWO,
    download=True,
)
datasets.add(
    "cifar100",
    ".vision:cifar100",
    classes=100,
    samples={"train": 50_000, "test": 10_000},
    size=32,
    channels=3,
    splits=_TWO,
    download=True,
)
datasets.add(
    "stl10",
    ".vision:stl10",
    classes=10,
    samples={"train": 5_000, "test": 8_000, "unlabeled": 100_000},
    size=96,
    channels=3,
    splits=("train", "test", "unlabeled"),
    download=True,
)
datasets.add(
    "cinic10",
    ".imagenet:cinic10",
    classes=10,
    samples={"train": 180_000, "valid": 90_000, "test": 90_000},
    size=32,
    channels=3,
    splits=("train", "test", "valid"),
    download=True,
)
datasets.add(
    "tiny_imagenet",
    ".imagenet:tiny_imagenet",
    classes=200,
    samples={"train": 100_000, "test": 10_000},
    size=64,
    channels=3,
    splits=_TWO,
    download=True,
)
datasets.add(
    "imagenet",
    ".imagenet:imagenet",
    classes=1000,
    samples={"train": 1_281_167, "test": 50_000},
    size=None,  # images of many sizes
    channels=3,
    splits=_TWO,
    download=False,
)
datasets.add("imagefolder:*", ".folders:imagefolder", size=None, splits=_TWO, download=False)
datasets.add("webdataset:*", ".shards:webdataset", size=None, splits=_TWO, download=False)
