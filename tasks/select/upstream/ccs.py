"""CCS as published: Coverage-centric-coreset-selection@b37f166 core/data/Coreset.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.ccs import draw, edges_of, pools_of
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.upstream.allocation import water_fill

__all__ = ["ccs", "strata_of"]


def ccs(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "aum",
    mis_ratio: float = 0.0,
    strata: int = 50,
) -> Selection:
    """CCS that loses the top of a score below 0, and keeps fewer than asked for if the cut is too large."""
    kept = order(signals.score("aum"), generator.random(signals.n))[int(mis_ratio * signals.n) :]
    stratum = strata_of(signals.score(score)[kept], strata)
    kept, stratum = kept[stratum >= 0], stratum[stratum >= 0]
    pools = pools_of(stratum, strata)
    rows = kept[draw(pools, water_fill(np.array([len(pool) for pool in pools]), budget), generator)]
    return Selection.of(rows, gains=signals.score(score)[rows])


def strata_of(values: NDArray[Any], strata: int) -> NDArray[np.int64]:
    """Stratum of each value, −1 for those at or above the upper edge, 1.0001 times the maximum.

    >>> strata_of(np.array([0.0, 0.5, 1.0]), 2).tolist(), strata_of(np.array([-1.0, -0.5]), 2).tolist()
    ([0, 0, 1], [0, -1])
    """
    values = values.astype(np.float32)
    edges = edges_of(values.min(), values.max() * np.float32(1.0001), strata)
    stratum = np.searchsorted(edges, values, side="right") - 1
    return np.where(stratum >= strata, -1, stratum)
