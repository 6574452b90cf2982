"""Datasets by name; importing this registers them and loads nothing heavy."""

from winnow.tasks.registry import datasets

_MNIST, _CIFAR = {"train": 60_000, "test": 10_000}, {"train": 50_000, "test": 10_000}

datasets.add("digits", classes=10, samples={"train": 1_442, "test": 355}, size=8, channels=1)
datasets.add("mnist", ".vision", classes=10, samples=_MNIST, size=28, channels=1, download=True)
datasets.add(
    "qmnist",
    ".vision",
    classes=10,
    samples={"train": 60_000, "test": 60_000, "test10k": 10_000, "test50k": 50_000, "nist": 402_953},
    size=28,
    channels=1,
    download=True,
)
datasets.add("fashion_mnist", ".vision", classes=10, samples=_MNIST, size=28, channels=1, download=True)
datasets.add(
    "svhn",
    ".vision",
    classes=10,
    samples={"train": 73_257, "test": 26_032, "extra": 531_131},
    size=32,
    channels=3,
    download=True,
)
datasets.add("cifar10", ".vision", classes=10, samples=_CIFAR, size=32, channels=3, download=True)
datasets.add("cifar100", ".vision", classes=100, samples=_CIFAR, size=32, channels=3, download=True)
datasets.add(
    "stl10",
    ".vision",
    classes=10,
    samples={"train": 5_000, "test": 8_000, "unlabeled": 100_000},
    size=96,
    channels=3,
    download=True,
)
datasets.add(
    "cinic10",
    ".imagenet",
    classes=10,
    samples={"train": 180_000, "test": 90_000, "valid": 90_000},
    size=32,
    channels=3,
    download=True,
)
datasets.add(
    "tiny_imagenet",
    ".imagenet",
    classes=200,
    samples={"train": 100_000, "test": 10_000},
    size=64,
    channels=3,
    download=True,
)
datasets.add("imagenet", classes=1000, samples={"train": 1_281_167, "test": 50_000}, channels=3)
datasets.add("imagefolder:*", ".folders:imagefolder")
datasets.add("webdataset:*", ".shards:webdataset")
datasets.add("pool:*", ".pools:pool")
