"""CRAIG as published: DeepCore@74ec709 deepcore/methods/craig.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.score.gradients import batch_sizes
from winnow.tasks.select.craig import Gradients, nearest_pick
from winnow.tasks.select.greedy import greedy
from winnow.tasks.select.set_functions import FacilityLocation
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.similarity import UNIT, check_dense, dense, refuse_above
from winnow.tasks.select.upstream.submodular import check_optimizer

__all__ = ["craig", "gradients_of"]

_OFFSET = 1e-3  # added to every similarity


def craig(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    optimizer: str = "lazy",
    batch: int = 256,
) -> Selection:
    """CRAIG with weights that start from 1, on gradients divided by the size of their batch.

    The balanced code runs where all labels are the same or there are none (so with ``balanced=True``), else
    the unbalanced one. Gains are on its own scale.
    """
    check_optimizer(optimizer)
    if signals.has("labels") and (signals.labels != signals.labels[0]).any():
        return _unbalanced(signals, budget, optimizer, generator, batch)
    gradients = gradients_of(signals, np.arange(signals.n), batch)
    check_dense(signals.n, budget, upstream=True)
    first = np.arange(signals.n, dtype=np.float64)
    picks, gains = greedy(FacilityLocation(dense(gradients)), budget, optimizer, first, generator)
    weights = np.bincount(nearest_pick(gradients, picks), minlength=budget) + 1
    reach = float(np.ldexp(gradients.reach, gradients.exponent))
    return Selection.of(picks, weights=weights, gains=gains / UNIT * reach)


def gradients_of(signals: Signals, rows: NDArray[np.int64], batch: int) -> Gradients:
    """Gradients of one class's rows, each divided by the size of its batch."""
    sizes = batch_sizes(len(rows), batch)
    return Gradients.of(signals.residuals[rows] / sizes[:, None].astype(np.float32), signals.features[rows])


def _unbalanced(
    signals: Signals, budget: int, optimizer: str, generator: np.random.Generator, batch: int
) -> Selection:
    """Similarities within classes only; gains count one batch in ``batch`` and, by mistake, skip the rest."""
    n = signals.n
    rows = np.arange(n)
    items = rows[rows // batch % batch == 0]
    what = f"craig: the published matrix of {len(items):,} × {n:,} samples"
    refuse_above(8 * n * len(items), what, "pass balanced=True")
    parts = []
    matrix = np.zeros((n, len(items)), np.float32)
    for label in np.unique(signals.labels):
        members = np.flatnonzero(signals.labels == label)
        gradients = gradients_of(signals, members, batch)
        parts.append((members, gradients))
        longest = max(
            float(gradients.distances(block, slice(None)).max())
            for block in np.array_split(np.arange(len(members)), len(members) // 512 + 1)
        )
        counted = np.flatnonzero(np.isin(members, items))
        similarity = longest + _OFFSET - gradients.distances(slice(None), counted)
        matrix[np.ix_(members, np.searchsorted(items, members[counted]))] = similarity
    scale = UNIT / float(matrix.max())
    columns = np.rint(matrix * np.float32(scale)).astype(np.int32)
    function = FacilityLocation(np.ascontiguousarray(columns.T), columns)
    picks, gains = greedy(function, budget, optimizer, np.arange(n, dtype=np.float64), generator)

    weights = np.ones(budget)
    lowest = int(np.argmin(picks))  # where the samples of a class without picks go
    for members, gradients in parts:
        here = np.flatnonzero(np.isin(picks, members))
        if not len(here):
            weights[lowest] += len(members)
            continue
        here = here[np.argsort(picks[here])]  # ties to the first row
        nearest = gradients.distances(np.searchsorted(members, picks[here]), slice(None)).argmin(0)
        np.add.at(weights, here[nearest], 1)
    return Selection.of(picks, weights=weights, gains=gains / scale)
