"""ELFS as published: eltsai/elfs@089444b core/data/Coreset.py direct_selection."""

from __future__ import annotations

import numpy as np

from winnow.tasks.select.signals import Selection, Signals

__all__ = ["elfs"]


def elfs(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "aum",
    mis_ratio: float = 0.0,
) -> Selection:
    """ELFS by AUM, whatever ``score`` says; none or too few where the cut leaves no easy samples to drop."""
    aum = signals.score("aum")
    dropped = int(mis_ratio * signals.n)
    easiest = signals.n - dropped - budget
    rows = np.argsort(aum, kind="stable")[dropped:-easiest]
    return Selection.of(rows, gains=aum[rows])
