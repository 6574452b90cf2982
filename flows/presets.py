"""Published hyper-parameters by dataset: what a flow's parameters are where the user gives none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from winnow.flows.forms import At, merged
from winnow.tasks.registry import datasets

__all__ = [
    "PRESETS",
    "as_json",
    "ccs",
    "compare",
    "d2",
    "deepcore",
    "elfs",
    "grid",
    "kernels_of",
    "select",
    "selectors_of",
]

Values = dict[str, Any]  # parameters of a flow by name

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
_CIFAR: Values = {
    "embedder": "dino_vitb16",
    "normalisation": "none",
    "neighbours": 50,
    "heads": _TEMI,
    "proxy": {"network": "resnet18", "epochs": 200},
    "training": {"network": "resnet18", "iterations": 40_000},
}
_IMAGENET = {
    "network": "resnet34",
    "weight_decay": 1e-4,
    "nesterov": False,
    "augment": "imagenet",
    "size": 224,
}
_DIGITS = {"network": "convnet", "iterations": 300, "batch_size": 64, "lr": 0.1, "augment": "none"}


def _augmented(base: Values, **how: Any) -> Values:
    return merged(base, {"proxy": how, "training": how})


def _by_fraction(values: Mapping[float, Any]) -> list[At[Any]]:
    return [At(fraction=fraction, value=value) for fraction, value in values.items()]


_FASHION = {**_augmented(_CIFAR, augment="crop_flip"), "embedder": "patches"}
_ELFS: dict[str, Values] = {
    "digits": {
        **_CIFAR,
        "embedder": "patches",
        "neighbours": 15,
        # a few hundred steps instead of ten thousand: a faster teacher, a higher rate, smaller heads
        "heads": {
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
        },
        # crops keep the proxy from learning every sample at once
        **merged(
            {"proxy": _DIGITS, "training": _DIGITS},
            {"proxy": {"epochs": 20, "augment": "crop", "pad": "scaled"}},
        ),
        # chosen with labels, on a fifth of the training set, never on the test set; `-p mis_ratio=auto`
        # searches without labels
        "mis_ratio": _by_fraction({0.1: 0.25, 0.2: 0.05, 0.3: 0.05, 0.5: 0.0}),
    },
    "cifar10": {**_CIFAR, "mis_ratio": _by_fraction({0.1: 0.4})},
    "svhn": _augmented(_CIFAR, augment="none"),
    "fashion_mnist": _FASHION,
    "mnist": _augmented(_FASHION, augment="crop"),
    "qmnist": _augmented(_FASHION, augment="crop"),
    "imagenet": {
        **_CIFAR,
        "heads": {**_TEMI, "batch_size": 128, "epochs": 100, "normalise": "zscore"},
        "neighbours": 25,
        "proxy": {"epochs": 60, **_IMAGENET},
        "training": {"iterations": 300_000, **_IMAGENET},
        "mis_ratio": _by_fraction({0.1: 0.3}),
    },
}
_ELFS |= dict.fromkeys(("cifar100", "stl10", "cinic10", "tiny_imagenet"), _CIFAR)
_ANY = _augmented(_CIFAR, augment="crop_flip", pad="scaled")  # the user's own folders and shards


def elfs(dataset: str) -> Values:
    """Preset of ``elfs``; datasets without published values, and the user's own, get CIFAR's recipe.

    >>> elfs("cifar10")["mis_ratio"][0].value
    0.4
    """
    return {"score": "aum", **_ELFS.get(dataset, _ANY)}


# beta of CCS by fraction kept (d2_ccs.md 1.5). Its README has CIFAR-10 and ImageNet at 10 %, and ImageNet at
# 20 %; the rest of the table is quoted from memory of the paper's appendix and agrees with these. digits:
# what the search finds with five trainings per value.
_CCS_BETA = {
    "digits": {0.1: 0.1, 0.2: 0.0, 0.3: 0.0, 0.5: 0.0},
    "cifar10": {0.7: 0.0, 0.5: 0.0, 0.3: 0.1, 0.2: 0.1, 0.1: 0.3},
    "cifar100": {0.7: 0.1, 0.5: 0.2, 0.3: 0.2, 0.2: 0.4, 0.1: 0.5},
    "imagenet": {0.7: 0.0, 0.5: 0.1, 0.3: 0.2, 0.2: 0.2, 0.1: 0.3},
}


def ccs(dataset: str) -> Values:
    """Preset of ``ccs``.

    >>> [at.value for at in ccs("imagenet")["mis_ratio"] if at.fraction == 0.2]
    [0.2]
    """
    return {"score": "aum", **compare(dataset), "mis_ratio": _by_fraction(_CCS_BETA.get(dataset, {}))}


# D2's README (d2_ccs.md 2.6); the paper's table of the other rates was not available, so these are searched.
# digits: what the search finds with five trainings per setting.
_PUBLISHED_D2: dict[str, dict[float, Any]] = {
    "neighbours": {0.1: 5},
    "gamma_reverse": {0.1: 0.1},
    "mis_ratio": {0.1: 0.4},
}
_D2: dict[str, dict[str, dict[float, Any]]] = {
    "digits": {
        "neighbours": {0.1: 5, 0.2: 10, 0.3: 10, 0.5: 10},
        "gamma_reverse": {0.1: 0.0, 0.2: 1.0, 0.3: 1.0, 0.5: 1.0},
        "mis_ratio": {0.1: 0.2, 0.2: 0.0, 0.3: 0.0, 0.5: 0.0},
    },
    "cifar10": _PUBLISHED_D2,
    "imagenet": _PUBLISHED_D2,
}


def d2(dataset: str) -> Values:
    """Preset of ``d2``; the README's command for ImageNet selects by AUM, that for CIFAR by forgetting.

    >>> d2("cifar10")["neighbours"][0].value
    5
    """
    tables = {name: _by_fraction(values) for name, values in _D2.get(dataset, {}).items()}
    return {"score": "aum" if dataset == "imagenet" else "forgetting", **compare(dataset), **tables}


# deepcore.md 5: the authors' command for their table (issue 9) has 10 epochs of selection and batches of 128
_DEEPCORE_AUGMENT = {"cifar10": "crop_flip", "cifar100": "crop_flip", "imagenet": "imagenet"}


def deepcore(dataset: str, *, upstream: bool = False) -> Values:
    """Preset of ``deepcore``: CIFAR and ImageNet are augmented in training, nothing is for selection.

    With ``upstream``, as in the published driver: a cosine schedule one epoch late, a test every epoch, whole
    epochs, Tiny ImageNet at 32 pixels.

    >>> deepcore("cifar10")["training"]["augment"], deepcore("svhn")["training"]["augment"]
    ('crop_flip', 'none')
    >>> deepcore("tiny_imagenet", upstream=True)["proxy"]["size"]
    32
    """
    driver: Values = {"whole_epochs": True} if upstream else {}
    if dataset == "digits":
        shorter = {"epochs": 10, "scheduler": "constant"}
        return merged({"proxy": _DIGITS, "training": _DIGITS}, {"proxy": shorter, "training": driver})
    base: Values = {"network": "resnet18", "batch_size": 128}
    if dataset == "imagenet":
        base["size"] = 224
    elif dataset == "tiny_imagenet" and upstream:
        base["size"] = 32
    if upstream:
        driver |= {"scheduler": "deepcore", "test_interval": 1}
    augment = _DEEPCORE_AUGMENT.get(dataset, "none")
    return {
        "proxy": {**base, "epochs": 10, "scheduler": "constant", "augment": "none"},
        "training": {**base, "epochs": 200, "augment": augment, **driver},
    }


def compare(dataset: str) -> Values:
    """Preset of ``compare``: the trainings of ELFS, CCS and D2.

    >>> compare("cifar10")["training"]["iterations"]
    40000
    """
    return {name: elfs(dataset)[name] for name in ("proxy", "training")}


def select(dataset: str) -> Values:
    """Preset of ``select``: ELFS's, without what depends on how much is kept.

    >>> sorted(select("digits"))
    ['embedder', 'heads', 'neighbours', 'normalisation', 'proxy', 'score']
    """
    return {name: value for name, value in elfs(dataset).items() if name not in ("training", "mis_ratio")}


PRESETS: dict[str, Callable[..., Values]] = {
    "elfs": elfs,
    "select": select,
    "ccs": ccs,
    "d2": d2,
    "deepcore": deepcore,
    "compare": compare,
}


def as_json(flow: str, dataset: str) -> Values:
    """A preset as a deployment has it: plain values.

    >>> as_json("elfs", "cifar10")["mis_ratio"]
    [{'fraction': 0.1, 'value': 0.4}]
    """
    return {
        name: [at.model_dump() for at in value] if isinstance(value, list) else value
        for name, value in PRESETS[flow](dataset).items()
        if value
    }


def grid(method: str, dataset: str, fraction: float) -> dict[str, tuple[Any, ...]]:
    """The values that the search tries for a method's parameters at this fraction.

    Those of ELFS are the grids that an independent re-implementation searches (reference notes, 3.4), taken
    at the nearest fraction and cut to what fits: more is dropped where less is kept.

    >>> grid("elfs", "cifar10", 0.1)["mis_ratio"], grid("elfs", "cifar10", 0.75)["mis_ratio"]
    ((0.4, 0.5, 0.6, 0.7, 0.8), (0.0, 0.1, 0.2))
    """
    if method == "d2":
        return {"neighbours": (5, 10), "gamma_reverse": (0.0, 0.1, 1.0), "mis_ratio": (0.0, 0.2, 0.4)}
    cuts: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    if method == "elfs" and dataset != "digits":
        grids = {
            0.7: (0.0, 0.1, 0.2, 0.3),
            0.5: (0.1, 0.2, 0.3, 0.4, 0.5),
            0.3: (0.2, 0.3, 0.4, 0.5, 0.6),
            0.2: (0.3, 0.4, 0.5, 0.6, 0.7),
            0.1: (0.4, 0.5, 0.6, 0.7, 0.8),
        }
        cuts = grids[min(grids, key=lambda kept: abs(kept - fraction))]
    return {"mis_ratio": tuple(cut for cut in cuts if cut + fraction <= 1 + 1e-9) or (0.0,)}


DENSE_SAMPLES = 32_768  # a dense kernel of more takes over 4 GiB


def kernels_of(samples: int, *, balanced: bool, upstream: bool) -> dict[str, Values]:
    """Parameters of the selectors whose kernel, of so many samples, is kNN-sparse instead of dense.

    With ``balanced`` each class has its own kernel, and the published kernels (``upstream``) are dense.

    >>> kernels_of(50_000, balanced=False, upstream=False)["craig"]
    {'neighbours': 100}
    """
    sparse = samples > DENSE_SAMPLES and not (balanced or upstream)
    names = ("facility_location", "graph_cut", "craig") if sparse else ()
    return {name: {"neighbours": 100} for name in names}


def selectors_of(dataset: str, *, balanced: bool, upstream: bool) -> dict[str, Values]:
    """Parameters of selectors in a comparison, by name: a number, or a table by fraction.

    >>> selectors_of("cifar10", balanced=False, upstream=False)["craig"]
    {'neighbours': 100}
    >>> "craig" in selectors_of("digits", balanced=False, upstream=False)
    False
    """
    samples = datasets.get(dataset).samples.get("train", 0)
    searched = {"elfs": elfs(dataset), "ccs": ccs(dataset), "d2": d2(dataset)}
    return kernels_of(samples, balanced=balanced, upstream=upstream) | {
        name: {key: values[key] for key in grid(name, dataset, 0.1) if key in values}
        for name, values in searched.items()
    }
