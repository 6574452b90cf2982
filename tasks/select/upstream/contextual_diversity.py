"""Contextual diversity as published: DeepCore@74ec709 deepcore/methods/contextualdiversity.py."""

from __future__ import annotations

import numpy as np

from winnow.tasks.select.contextual_diversity import cover
from winnow.tasks.select.probabilities import checked_probabilities
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.upstream.k_center import first_pick

__all__ = ["contextual_diversity"]


def contextual_diversity(signals: Signals, budget: int, *, generator: np.random.Generator) -> Selection:
    """Contextual diversity from DeepCore's first pick, ties to the lower row."""
    lower_row = np.arange(signals.n, dtype=np.float64)
    return cover(checked_probabilities(signals), budget, lower_row, first_pick(signals.n))
