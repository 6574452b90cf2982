"""Published hyper-parameters by dataset, as plain values; a flow's own parameters win over them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.train.recipe import Recipe

__all__ = ["ElfsPreset", "elfs", "mis_ratio_grid"]


class ElfsPreset(BaseModel):
    """Everything that ELFS needs to know of a dataset.

    Attributes:
        embedder: registered name.
        embedder_options: of the embedder.
        normalise: of the embeddings: none, l2 or zscore.
        neighbours: k of the kNN graph.
        heads: of the cluster heads; what is not named has the default of ``HeadsConfig``, TEMI's.
        proxy: training on the pseudo-labels that dynamics are recorded of.
        training: of the coreset, with true labels.
        mis_ratio: share of hardest samples to drop, by fraction kept; fractions not named are searched.
        mis_ratios: values that the search tries; empty takes those usual at the fraction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedder: str
    embedder_options: dict[str, Any] = {}
    normalise: str = "none"
    neighbours: int = 50
    heads: dict[str, Any] = {}
    proxy: Recipe
    training: Recipe
    mis_ratio: dict[float, float] = {}
    mis_ratios: tuple[float, ...] = ()

    def grid(self, fraction: float) -> tuple[float, ...]:
        """Values of mis_ratio to try where this fraction is kept."""
        return tuple(value for value in self.mis_ratios if value + fraction <= 1) or mis_ratio_grid(fraction)


# elfs_temi.md 2.5: the CIFAR-10 command of the ELFS repository
_TEMI = {"heads": 50, "epochs": 200, "batch_size": 1024, "lr": 1e-4, "min_lr": 1e-4, "warmup_epochs": 20, "beta": 0.6}
_CIFAR_PROXY = Recipe(network="resnet18", epochs=200)
_CIFAR_TRAINING = Recipe(network="resnet18", iterations=40_000)
_IMAGENET = {"network": "resnet34", "weight_decay": 1e-4, "nesterov": False, "augment": "imagenet", "size": 224}

# a few hundred steps instead of ten thousand: a faster teacher, a higher rate, smaller heads
_SMALL_HEADS = {
    "heads": 16, "epochs": 100, "batch_size": 256, "hidden": 128, "bottleneck": 64, "lr": 3e-3, "min_lr": 3e-3, "warmup_epochs": 10,
    "momentum": 0.95, "momentum_end": 0.95,
}  # fmt: skip
_DIGITS_RECIPE = Recipe(network="convnet", iterations=300, batch_size=64, lr=0.1, augment="none")

_ELFS: dict[str, ElfsPreset] = {
    "digits": ElfsPreset(
        embedder="patches",
        neighbours=15,
        heads=_SMALL_HEADS,
        # crops keep the proxy from learning every sample at once
        proxy=_DIGITS_RECIPE.model_copy(update={"iterations": None, "epochs": 20, "augment": "crop", "pad": "scaled"}),
        training=_DIGITS_RECIPE,
        # chosen with labels, on a fifth of the training set, never on the test set; `-p mis_ratio=auto` searches without labels
        mis_ratio={0.1: 0.25, 0.2: 0.05, 0.3: 0.05, 0.5: 0.0},
        mis_ratios=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    ),
    "cifar10": ElfsPreset(embedder="dino_vitb16", heads=_TEMI, proxy=_CIFAR_PROXY, training=_CIFAR_TRAINING, mis_ratio={0.1: 0.4}),
    "cifar100": ElfsPreset(embedder="dino_vitb16", heads=_TEMI, proxy=_CIFAR_PROXY, training=_CIFAR_TRAINING),
    "stl10": ElfsPreset(embedder="dino_vitb16", heads=_TEMI, proxy=_CIFAR_PROXY, training=_CIFAR_TRAINING),
    "cinic10": ElfsPreset(embedder="dino_vitb16", heads=_TEMI, proxy=_CIFAR_PROXY, training=_CIFAR_TRAINING),
    "svhn": ElfsPreset(
        embedder="dino_vitb16",
        heads=_TEMI,
        proxy=_CIFAR_PROXY.model_copy(update={"augment": "none"}),
        training=_CIFAR_TRAINING.model_copy(update={"augment": "none"}),
    ),
    "fashion_mnist": ElfsPreset(
        embedder="patches",
        heads=_TEMI,
        proxy=Recipe(network="resnet18", epochs=200),
        training=Recipe(network="resnet18", iterations=40_000),
    ),
    "imagenet": ElfsPreset(
        embedder="dino_vitb16",
        heads={**_TEMI, "batch_size": 128, "epochs": 100, "normalise": "zscore"},
        neighbours=25,
        proxy=Recipe(epochs=60, **_IMAGENET),
        training=Recipe(iterations=300_000, **_IMAGENET),
        mis_ratio={0.1: 0.3},
    ),
}
# datasets without published values of their own
_ELFS["mnist"] = _ELFS["qmnist"] = _ELFS["fashion_mnist"].model_copy(
    update={
        "proxy": _ELFS["fashion_mnist"].proxy.model_copy(update={"augment": "crop"}),
        "training": _ELFS["fashion_mnist"].training.model_copy(update={"augment": "crop"}),
    }
)
_ELFS["tiny_imagenet"] = _ELFS["cifar100"]
_ANY = ElfsPreset(
    embedder="dino_vitb16",
    heads=_TEMI,
    proxy=Recipe(network="resnet18", epochs=200, augment="crop_flip", pad="scaled"),
    training=Recipe(network="resnet18", iterations=40_000, augment="crop_flip", pad="scaled"),
)


def elfs(dataset: str) -> ElfsPreset:
    """The preset of a dataset; folders and shards of one's own get CIFAR's recipe.

    >>> elfs("cifar10").mis_ratio
    {0.1: 0.4}
    """
    return _ELFS.get(dataset, _ANY)


def mis_ratio_grid(fraction: float) -> tuple[float, ...]:
    """Values of mis_ratio worth trying when this fraction is kept: more is dropped where less is kept.

    The grids that an independent re-implementation of ELFS searches (reference notes, 3.4), taken at the nearest fraction and cut to
    what fits.

    >>> mis_ratio_grid(0.1)
    (0.4, 0.5, 0.6, 0.7, 0.8)
    >>> mis_ratio_grid(0.75)
    (0.0, 0.1, 0.2)
    """
    grids = {
        0.7: (0.0, 0.1, 0.2, 0.3),
        0.5: (0.1, 0.2, 0.3, 0.4, 0.5),
        0.3: (0.2, 0.3, 0.4, 0.5, 0.6),
        0.2: (0.3, 0.4, 0.5, 0.6, 0.7),
        0.1: (0.4, 0.5, 0.6, 0.7, 0.8),
    }
    nearest = min(grids, key=lambda known: abs(known - fraction))
    return tuple(value for value in grids[nearest] if value + fraction <= 1 + 1e-9) or (0.0,)
