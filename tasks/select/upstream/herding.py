"""Herding as published: DeepCore@74ec709 deepcore/methods/herding.py."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.herding import follow
from winnow.tasks.select.pool import Pool
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.space import Points

__all__ = ["herding"]


def herding(
    signals: Signals, budget: int, *, generator: np.random.Generator, metric: str = "euclidean"
) -> Selection:
    """Herding that takes the sample *farthest* from the target, ties to the lower row."""
    pool = Pool(Points.of(signals.features, metric), np.arange(signals.n, dtype=np.float64))
    return follow(pool, budget, partial(_farthest, pool))


def _farthest(pool: Pool, target: NDArray[np.float64]) -> int:
    estimate, error = pool.estimates(target)
    estimate[pool.empty] = -np.inf
    rows = pool.rows_of(np.flatnonzero(estimate + error >= (estimate - error).max()))
    apart = pool.exact(rows) - target
    return int(rows[order(-np.einsum("nd,nd->n", apart, apart), rows.astype(np.float64))[0]])
