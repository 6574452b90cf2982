"""k-center: the greedy farthest point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.farthest_first import Divergence, farthest_first
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals
from winnow.tasks.select.space import Points, slack_of

__all__ = ["cover", "definition", "k_center"]


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    metric: str = "euclidean",
) -> NDArray[np.int64]:
    """k-center's picks from all distances: the reference that tests hold the engine to."""
    x = signals.features.astype(np.float64)
    if metric == "cosine":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    d = np.linalg.norm(x[:, None] - x, axis=2)
    ties = generator.random(signals.n)
    S = already.tolist() or [int(ties.argmin())]
    while len(S) < len(already) + budget:
        to_nearest = d[:, S].min(axis=1)
        to_nearest[S] = -np.inf
        S.append(int(order(-to_nearest, ties)[0]))  # arg max
    return np.array(S[len(already) :])


def k_center(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    metric: str = "euclidean",
) -> Selection:
    """Cover the features: each pick is the sample farthest from all earlier picks.

    The first pick is drawn; then, until there are k,

        next = argmax_i min over the picks j of d(x_i, x_j)

    The covering radius max_i min_j d(x_i, x_j) is within a factor 2 of the smallest possible.

    Args:
        signals: features.
        budget: k, samples to keep.
        generator: draws the first pick and breaks ties.
        already: int64 (m,), rows that count as picked before the first pick, in this order.
        metric: ``"euclidean"``, or ``"cosine"``: d = 1 − cos (a row of zeros is at ½ from every direction).

    Returns:
        Selection in pick order, so that a smaller one is a prefix of a larger one; gains are the distances to
        the nearest earlier pick, ∞ for the first.

    Raises:
        BadInput: an unknown ``metric``.

    Cost:
        O(N·k·D) multiplications, in matrix products of whole blocks of picks; memory: one float32 copy of the
        features.

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018,
        algorithm 1; Gonzalez, Clustering to minimize the maximum intercluster distance, 1985.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/kcentergreedy.py k_center_greedy.

    Differences from upstream:
        Upstream writes out the k × N distances, copies the features at each pick, loses the order of the
        picks, starts each class from the same draw, and fails on a budget of 1. None of this changes the set:
        ``upstream=True`` differs in the first pick, from ``RandomState(0)``, and in ties, which go to the
        lower row.

    >>> s = Signals(n=4, features=np.array([[0.0], [1.0], [4.0], [9.0]]))
    >>> sorted(k_center(s, 3, generator=np.random.default_rng(0)).indices.tolist())
    [0, 2, 3]
    """
    ties = generator.random(signals.n)
    return cover(Points.of(signals.features, metric), budget, ties, int(ties.argmin()), already)


def cover(
    points: Points, budget: int, ties: NDArray[np.float64], first: int, already: NDArray[np.int64] = NO_ROWS
) -> Selection:
    """The greedy farthest points, starting from ``first``; gains are distances in the metric."""
    picks, squared = farthest_first(_squared_distances(points), budget, ties, first, already)
    return Selection.of(
        picks, gains=squared / 2 if points.metric == "cosine" else np.sqrt(squared) / points.scale
    )


def _squared_distances(points: Points) -> Divergence:
    """‖x_i − x_j‖² = ‖x_i‖² + ‖x_j‖² − ⟨x_i, 2x_j⟩ of points less their mean; at unit length 2 − 2 cos."""
    x = points.centred(points.mean())
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float64)

    def exact(i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        apart = points[i] - points[j]
        return np.einsum("nd,nd->n", apart, apart)

    # Σ_d |x_id · 2x_jd| is at most ‖x_i‖² + ‖x_j‖²; below the last term, float32 has no digits left
    error = 2 * slack_of(x.shape[1]) * squares + x.shape[1] * 2.0**-126
    return Divergence(x, lambda left: 2 * left, squares, error, exact)
