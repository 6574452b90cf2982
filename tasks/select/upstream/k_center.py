"""k-center as published: DeepCore@74ec709 deepcore/methods/kcentergreedy.py."""

from __future__ import annotations

import numpy as np

from winnow.tasks.select.k_center import cover
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.space import Points

__all__ = ["first_pick", "k_center"]


def k_center(
    signals: Signals, budget: int, *, generator: np.random.Generator, metric: str = "euclidean"
) -> Selection:
    """k-center from DeepCore's first pick, ties to the lower row."""
    lower_row = np.arange(signals.n, dtype=np.float64)
    return cover(Points.of(signals.features, metric), budget, lower_row, first_pick(signals.n))


def first_pick(n: int) -> int:
    """DeepCore's first pick of n samples, with its seed 0."""
    return int(np.random.RandomState(0).randint(0, n))  # a stream of its own, and the one to be replayed
