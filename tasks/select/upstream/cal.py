"""CAL as published: DeepCore@74ec709 deepcore/methods/cal.py."""

from __future__ import annotations

import numpy as np

from winnow.tasks.select.cal import contrast
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["cal"]


def cal(signals: Signals, budget: int, *, generator: np.random.Generator, neighbours: int = 10) -> Selection:
    """CAL that keeps the samples of *smallest* s, which agree with their neighbours."""
    s = contrast(signals, neighbours)
    rows = order(s, generator.random(signals.n))[:budget]
    return Selection.of(rows, gains=s[rows])
