"""Datasets by name; importing this registers them and loads nothing heavy."""

from winnow.tasks.registry import datasets


def _published(name: str, module: str, classes: int, size: int, channels: int, **samples: int) -> None:
    """Register a set of images of one size that can be downloaded."""
    datasets.add(name, module, classes=classes, samples=samples, size=size, channels=channels, download=True)


datasets.add("digits", classes=10, samples={"train": 1_442, "test": 355}, size=8, channels=1)
_published("mnist", ".vision", 10, 28, 1, train=60_000, test=10_000)
_published(
    "qmnist", ".vision", 10, 28, 1, train=60_000, test=60_000, test10k=10_000, test50k=50_000, nist=402_953
)
_published("fashion_mnist", ".vision", 10, 28, 1, train=60_000, test=10_000)
_published("svhn", ".vision", 10, 32, 3, train=73_257, test=26_032, extra=531_131)
_published("cifar10", ".vision", 10, 32, 3, train=50_000, test=10_000)
_published("cifar100", ".vision", 100, 32, 3, train=50_000, test=10_000)
_published("stl10", ".vision", 10, 96, 3, train=5_000, test=8_000, unlabeled=100_000)
_published("cinic10", ".imagenet", 10, 32, 3, train=180_000, test=90_000, valid=90_000)
_published("tiny_imagenet", ".imagenet", 200, 64, 3, train=100_000, test=10_000)
datasets.add("imagenet", classes=1000, samples={"train": 1_281_167, "test": 50_000}, channels=3)
datasets.add("imagefolder:*", ".folders:imagefolder")
datasets.add("webdataset:*", ".shards:webdataset")
datasets.add("pool:*", ".pools:pool")
