"""Winnow: keep the training data worth keeping.

The public names; each is loaded when it is first used, so that ``import winnow`` costs next to nothing. All
other modules follow the repository's folders: ``winnow.tasks.select.d2``, ``winnow.flows.elfs``.

>>> import numpy as np
>>> signals = Signals(n=1000, scores={"aum": np.random.default_rng(0).normal(size=1000)})
>>> len(select(signals, method="elfs", budget=0.1, mis_ratio=0.2).indices)
100
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from winnow.api import cluster, embed, select
    from winnow.tasks.embed.graph import Graph
    from winnow.tasks.embed.knn import knn
    from winnow.tasks.errors import (
        ArtifactCorrupt,
        BadInput,
        DeviceUnavailable,
        MissingData,
        MissingLabels,
        MissingSignal,
        StoreUnusable,
        TooLarge,
        UnknownName,
        WinnowError,
    )
    from winnow.tasks.registry import datasets, embedders, networks, policies, scores, selectors
    from winnow.tasks.score.dynamics import DynamicsAccumulator, scores_from_log_probs
    from winnow.tasks.select.signals import Selection, Signals

# In a checkout the folders of this package lie beside it, where a reader looks for them; in a wheel they
# lie inside.
_HERE = Path(__file__).resolve().parent
if not (_HERE / "tasks").is_dir():
    __path__.append(str(_HERE.parent))

_PLACES = {
    "winnow.api": ("cluster", "embed", "select"),
    "winnow.tasks.embed.graph": ("Graph",),
    "winnow.tasks.embed.knn": ("knn",),
    "winnow.tasks.errors": (
        "ArtifactCorrupt",
        "BadInput",
        "DeviceUnavailable",
        "MissingData",
        "MissingLabels",
        "MissingSignal",
        "StoreUnusable",
        "TooLarge",
        "UnknownName",
        "WinnowError",
    ),
    "winnow.tasks.registry": ("datasets", "embedders", "networks", "policies", "scores", "selectors"),
    "winnow.tasks.score.dynamics": ("DynamicsAccumulator", "scores_from_log_probs"),
    "winnow.tasks.select.signals": ("Selection", "Signals"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "ArtifactCorrupt",
    "BadInput",
    "DeviceUnavailable",
    "DynamicsAccumulator",
    "Graph",
    "MissingData",
    "MissingLabels",
    "MissingSignal",
    "Selection",
    "Signals",
    "StoreUnusable",
    "TooLarge",
    "UnknownName",
    "WinnowError",
    "cluster",
    "datasets",
    "embed",
    "embedders",
    "knn",
    "networks",
    "policies",
    "scores",
    "scores_from_log_probs",
    "select",
    "selectors",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'winnow' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
