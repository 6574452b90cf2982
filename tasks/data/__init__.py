"""Datasets by name; importing this registers them and loads nothing heavy."""

from tasks.registry import datasets

_TWO = ("train", "test")

datasets.add(
    "digits",
    "tasks.data.digits:digits",
    classes=10,
    samples={"train": 1_442, "test": 355},
    size=8,
    channels=1,
    splits=_TWO,
    download=False,
)
datasets.add(
    "mnist",
    "tasks.data.vision:mnist",
    classes=10,
    samples={"train": 60_000, "test": 10_000},
    size=28,
    channels=1,
    splits=_TWO,
    download=True,
)
datasets.add(
    "qmnist",
    "tasks.data.vision:qmnist",
    classes=10,
    samples={"train": 60_000, "test": 60_000, "test10k": 10_000, "test50k": 50_000, "nist": 402_953},
    size=28,
    channels=1,
    splits=("train", "test", "test10k", "test50k", "nist"),
    download=True,
)
datasets.add(
    "fashion_mnist",
    "tasks.data.vision:fashion_mnist",
    classes=10,
    samples={"train": 60_000, "test": 10_000},
    size=28,
    channels=1,
    splits=_TWO,
    download=True,
)
datasets.add(
    "svhn",
    "tasks.data.vision:svhn",
    classes=10,
    samples={"train": 73_257, "test": 26_032, "extra": 531_131},
    size=32,
    channels=3,
    splits=("train", "test", "extra"),
    download=True,
)
datasets.add(
    "cifar10",
    "tasks.data.vision:cifar10",
    classes=10,
    samples={"train": 50_000, "test": 10_000},
    size=32,
    channels=3,
    splits=_TWO,
    download=True,
)
datasets.add(
    "cifar100",
    "tasks.data.vision:cifar100",
    classes=100,
    samples={"train": 50_000, "test": 10_000},
    size=32,
    channels=3,
    splits=_TWO,
    download=True,
)
datasets.add(
    "stl10",
    "tasks.data.vision:stl10",
    classes=10,
    samples={"train": 5_000, "test": 8_000, "unlabeled": 100_000},
    size=96,
    channels=3,
    splits=("train", "test", "unlabeled"),
    download=True,
)
datasets.add(
    "cinic10",
    "tasks.data.folders:cinic10",
    classes=10,
    samples={"train": 180_000, "valid": 90_000, "test": 90_000},
    size=32,
    channels=3,
    splits=("train", "test", "valid"),
    download=True,
)
datasets.add(
    "tiny_imagenet",
    "tasks.data.folders:tiny_imagenet",
    classes=200,
    samples={"train": 100_000, "test": 10_000},
    size=64,
    channels=3,
    splits=_TWO,
    download=True,
)
datasets.add(
    "imagenet",
    "tasks.data.folders:imagenet",
    classes=1000,
    samples={"train": 1_281_167, "test": 50_000},
    size=None,  # images of many sizes
    channels=3,
    splits=_TWO,
    download=False,
)
datasets.add("imagefolder:*", "tasks.data.folders:imagefolder", size=None, splits=_TWO, download=False)
datasets.add("webdataset:*", "tasks.data.shards:webdataset", size=None, splits=_TWO, download=False)
