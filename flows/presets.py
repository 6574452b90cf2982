"""Published hyper-parameters by dataset, as plain values; a flow's own parameters win over them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from winnow.tasks.registry import datasets
from winnow.tasks.train.recipe import Recipe

__all__ = [
    "DeepcorePreset",
    "ElfsPreset",
    "SelectionPreset",
    "ccs",
    "d2",
    "deepcore",
    "elfs",
    "mis_ratio_grid",
    "sparse",
]


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
_TEMI = {
    "heads": 50,
    "epochs": 200,
    "batch_size": 1024,
    "lr": 1e-4,
    "min_lr": 1e-4,
    "warmup_epochs": 20,
    "beta": 0.6,
}
_CIFAR_PROXY = Recipe(network="resnet18", epochs=200)
_CIFAR_TRAINING = Recipe(network="resnet18", iterations=40_000)
_IMAGENET = {
    "network": "resnet34",
    "weight_decay": 1e-4,
    "nesterov": False,
    "augment": "imagenet",
    "size": 224,
}

# a few hundred steps instead of ten thousand: a faster teacher, a higher rate, smaller heads
_SMALL_HEADS = {
    "heads": 16,
    "epochs": 100,
    "batch_size": 256,
    "hidden": 128,
    "bottleneck": 64,
    "lr": 3e-3,
    "min_lr": 3e-3,
    "warmup_epochs": 10,
    "momentum": 0.95,
    "momentum_end": 0.95,
}
_DIGITS_RECIPE = Recipe(network="convnet", iterations=300, batch_size=64, lr=0.1, augment="none")

_ELFS: dict[str, ElfsPreset] = {
    "digits": ElfsPreset(
        embedder="patches",
        neighbours=15,
        heads=_SMALL_HEADS,
        # crops keep the proxy from learning every sample at once
        proxy=_DIGITS_RECIPE.model_copy(
            update={"iterations": None, "epochs": 20, "augment": "crop", "pad": "scaled"}
        ),
        training=_DIGITS_RECIPE,
        # chosen with labels, on a fifth of the training set, never on the test set; `-p mis_ratio=auto`
        # searches without labels
        mis_ratio={0.1: 0.25, 0.2: 0.05, 0.3: 0.05, 0.5: 0.0},
        mis_ratios=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    ),
    "cifar10": ElfsPreset(
        embedder="dino_vitb16",
        heads=_TEMI,
        proxy=_CIFAR_PROXY,
        training=_CIFAR_TRAINING,
        mis_ratio={0.1: 0.4},
    ),
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

    The grids that an independent re-implementation of ELFS searches (reference notes, 3.4), taken at the
    nearest fraction and cut to what fits.

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


class SelectionPreset(BaseModel):
    """What a method that selects with labels needs to know of a dataset.

    Attributes:
        proxy: training on the whole set that dynamics, final scores and features are recorded of.
        training: of the coreset.
        score: selected by.
        params: of the selector, by fraction kept; what a fraction does not name is searched.
        grid: values that the search tries of each parameter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    proxy: Recipe
    training: Recipe
    score: str
    params: dict[float, dict[str, Any]] = {}
    grid: dict[str, tuple[Any, ...]]


# beta of CCS by fraction kept (d2_ccs.md 1.5). Its README has CIFAR-10 and ImageNet at 10 %, ImageNet at 20
# %; the rest of the table is quoted from memory of the paper's appendix and agrees with these. digits: what
# the search finds with five trainings a value.
_CCS_BETA = {
    "digits": {0.1: 0.1, 0.2: 0.0, 0.3: 0.0, 0.5: 0.0},
    "cifar10": {0.7: 0.0, 0.5: 0.0, 0.3: 0.1, 0.2: 0.1, 0.1: 0.3},
    "cifar100": {0.7: 0.1, 0.5: 0.2, 0.3: 0.2, 0.2: 0.4, 0.1: 0.5},
    "imagenet": {0.7: 0.0, 0.5: 0.1, 0.3: 0.2, 0.2: 0.2, 0.1: 0.3},
}
_CCS_GRID = {"mis_ratio": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)}

# D2's README (d2_ccs.md 2.6); the paper's table of the other rates could not be had, so these are searched.
# digits: what the search finds with five trainings a setting.
_D2_PARAMS: dict[str, dict[float, dict[str, Any]]] = {
    "digits": {
        0.1: {"neighbours": 5, "gamma_reverse": 0.0, "mis_ratio": 0.2},
        **{
            fraction: {"neighbours": 10, "gamma_reverse": 1.0, "mis_ratio": 0.0}
            for fraction in (0.2, 0.3, 0.5)
        },
    },
    "cifar10": {0.1: {"neighbours": 5, "gamma_reverse": 0.1, "mis_ratio": 0.4}},
    "imagenet": {0.1: {"neighbours": 5, "gamma_reverse": 0.1, "mis_ratio": 0.4}},
}
_D2_GRID = {"neighbours": (5, 10), "gamma_reverse": (0.0, 0.1, 1.0), "mis_ratio": (0.0, 0.2, 0.4)}


def ccs(dataset: str) -> SelectionPreset:
    """CCS's preset of a dataset.

    >>> ccs("imagenet").params[0.2]
    {'mis_ratio': 0.2}
    """
    base = elfs(dataset)
    params = {fraction: {"mis_ratio": beta} for fraction, beta in _CCS_BETA.get(dataset, {}).items()}
    return SelectionPreset(
        proxy=base.proxy, training=base.training, score="aum", params=params, grid=_CCS_GRID
    )


def d2(dataset: str) -> SelectionPreset:
    """D2's preset of a dataset; ImageNet's README command selects by AUM, CIFAR's by forgetting.

    >>> d2("cifar10").params[0.1]["neighbours"]
    5
    """
    base = elfs(dataset)
    score = "aum" if dataset == "imagenet" else "forgetting"
    return SelectionPreset(
        proxy=base.proxy,
        training=base.training,
        score=score,
        params=_D2_PARAMS.get(dataset, {}),
        grid=_D2_GRID,
    )


# selectors that can do without the dense kernel, and the neighbours that they then look at
_SPARSE = dict.fromkeys(("facility_location", "graph_cut", "craig"), 100)
_DENSE_SAMPLES = 32_768  # a dense kernel of more takes over 4 GiB


def sparse(dataset: str, *, balanced: bool, upstream: bool) -> dict[str, dict[str, Any]]:
    """Parameters, by selector, that make it do without the dense kernel where the dataset is too large for one.

    With ``balanced`` each class has a kernel of its own, and the published kernels are dense.

    >>> sparse("cifar10", balanced=False, upstream=False)["craig"], sparse("digits", balanced=False, upstream=False)
    ({'neighbours': 100}, {})
    """
    samples = datasets.get(dataset).samples.get("train", 0)
    if balanced or upstream or samples <= _DENSE_SAMPLES:
        return {}
    return {name: {"neighbours": neighbours} for name, neighbours in _SPARSE.items()}


class DeepcorePreset(BaseModel):
    """How DeepCore trains on a dataset.

    Attributes:
        proxy: training on the whole set before the selection.
        training: of the coreset.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    proxy: Recipe
    training: Recipe


# deepcore.md 5: the authors' command for their table (issue 9) has 10 epochs of selection and batches of 128
_DEEPCORE_PROXY = Recipe(network="resnet18", epochs=10, batch_size=128, scheduler="constant", augment="none")
_DEEPCORE_TRAINING = Recipe(network="resnet18", epochs=200, batch_size=128, augment="none")
_DEEPCORE_AUGMENT = {"cifar10": "crop_flip", "cifar100": "crop_flip", "imagenet": "imagenet"}


def deepcore(dataset: str, *, upstream: bool = False) -> DeepcorePreset:
    """DeepCore's preset of a dataset: CIFAR and ImageNet are augmented in training, nothing is while selecting.

    With ``upstream`` as the published driver has it: a cosine that is an epoch late, a test every epoch, Tiny
    ImageNet at 32 pixels.

    >>> deepcore("cifar10").training.augment, deepcore("svhn").training.augment
    ('crop_flip', 'none')
    >>> deepcore("tiny_imagenet", upstream=True).proxy.size
    32
    """
    if dataset == "digits":
        proxy = _DIGITS_RECIPE.model_copy(update={"iterations": None, "epochs": 10, "scheduler": "constant"})
        return DeepcorePreset(proxy=proxy, training=_DIGITS_RECIPE)
    sides = (
        {"size": 224}
        if dataset == "imagenet"
        else {"size": 32}
        if dataset == "tiny_imagenet" and upstream
        else {}
    )
    augment = {
        "augment": _DEEPCORE_AUGMENT.get(dataset, "none"),
        **({"scheduler": "deepcore", "test_interval": 1} if upstream else {}),
    }
    return DeepcorePreset(
        proxy=_DEEPCORE_PROXY.model_copy(update=sides),
        training=_DEEPCORE_TRAINING.model_copy(update={**sides, **augment}),
    )
