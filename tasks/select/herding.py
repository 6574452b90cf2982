"""Herding: picks whose running mean stays as close as possible to the mean of the data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.pool import ROWS, Pool
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals
from winnow.tasks.select.space import Points

__all__ = ["definition", "follow", "herding"]


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    metric: str = "euclidean",
) -> NDArray[np.int64]:
    """Herding's picks by the distances to the running target: the reference that tests hold the engine to."""
    x = signals.features.astype(np.float64)
    if metric == "cosine":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    mu, ties = x.mean(axis=0), generator.random(signals.n)
    S: list[int] = already.tolist()
    while len(S) < len(already) + budget:
        t = (len(S) + 1) * mu - x[S].sum(axis=0)
        apart = np.linalg.norm(t - x, axis=1)
        apart[S] = np.inf
        S.append(int(order(apart, ties)[0]))  # arg min
    return np.array(S[len(already) :])


def herding(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    metric: str = "euclidean",
) -> Selection:
    """Follow the mean: each pick moves the mean of the picks as close as possible to the mean of the data.

    With μ the mean of all features and S the picks so far, the next pick is the sample nearest to the running
    target,

        next = argmin_i ‖t − x_i‖,   t = (|S| + 1)·μ − Σ over j ∈ S of x_j

    that is, the one after which ‖mean of the picks − μ‖ is smallest. No sample is picked twice.

    Args:
        signals: features.
        budget: k, samples to keep.
        generator: breaks ties.
        already: int64 (m,), rows that count as picked before the first pick, in this order.
        metric: ``"euclidean"``, or ``"cosine"``: on features at unit length.

    Returns:
        Selection in pick order, so that a smaller one is a prefix of a larger one; gains are ‖mean of the
        picks − μ‖ after each.

    Raises:
        BadInput: an unknown ``metric``.

    Cost:
        O(N·k·D) multiplications: one pass over the features per pick, at one byte per number where they are
        large.

    References:
        Welling, Herding Dynamical Weights to Learn, ICML 2009; Rebuffi, Kolesnikov, Sperl and Lampert, iCaRL:
        Incremental Classifier and Representation Learning, CVPR 2017, algorithm 4.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/herding.py.

    Differences from upstream:
        Upstream takes argmax where the paper takes argmin: its picks' mean is farther from the data's than
        that of random ones. ``upstream=True`` replays that. Upstream also loses the order of the picks, and
        with any ``metric`` but the default it selects by raw pixels (not replayed).

    >>> s = Signals(n=4, features=np.array([[0.0], [1.0], [2.0], [9.0]]))
    >>> herding(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [2, 1]
    """
    points = Points.of(signals.features, metric)
    pool = Pool(points, generator.random(signals.n), already, searches=budget)
    return follow(pool, budget, pool.nearest)


def follow(pool: Pool, budget: int, pick: Callable[[NDArray[np.float64]], int]) -> Selection:
    """Samples picked one by one from those left in the pool, given t − μ."""
    points = pool.points
    picks, gains = np.empty(budget, np.int64), np.empty(budget)
    excess = np.zeros(points.features.shape[1])  # Σ over the picks j of x_j − μ, so that t − μ = −excess
    for part in blocks(len(pool.already), ROWS):  # one after another, as below
        excess = np.vstack([excess, pool.exact(pool.already[part])]).cumsum(axis=0)[-1]
    for step in range(budget):
        picks[step] = pick(-excess)
        pool.take(picks[step])
        excess += pool.exact(picks[step : step + 1])[0]
        gains[step] = np.linalg.norm(excess) / (len(pool.already) + step + 1)
    return Selection.of(picks, gains=gains / (points.scale if points.metric == "euclidean" else 1))
