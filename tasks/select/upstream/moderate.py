"""Moderate coreset as published by d2pruning: d2pruning@bf1ea46 core/data/Coreset.py moderate_selection."""

from __future__ import annotations

import numpy as np

from winnow.tasks.select.moderate import centre_distances
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["moderate"]


def moderate(signals: Signals, budget: int, *, generator: np.random.Generator) -> Selection:
    """The two tails: the nearest to the medians of their classes and the farthest, half the budget each.

    Two roundings add up, so the count may differ from the budget by one. Gains are the distances.
    """
    distances = centre_distances(signals.features, signals.labels, centre="median")
    pruned = 1 - budget / signals.n
    low, high = round(signals.n * (0.5 - pruned / 2)), round(signals.n * (0.5 + pruned / 2))
    ranked = np.argsort(distances, kind="stable")
    rows = np.concatenate([ranked[:low], ranked[high:]])
    return Selection.of(rows, gains=distances[rows])
