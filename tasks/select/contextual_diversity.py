"""Contextual diversity: k-center on a network's probabilities, by their symmetric KL divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.farthest_first import Divergence, farthest_first
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.space import slack_of
from winnow.tasks.select.uncertainty import checked_probabilities
from winnow.tasks.select.upstream.k_center import first_pick

__all__ = ["TINY", "contextual_diversity", "jeffreys"]

TINY = float(np.finfo(np.float32).tiny)  # a probability of 0 counts as the smallest that float32 has


def jeffreys(p: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float64]:
    """½ KL(p‖q) + ½ KL(q‖p) = ½ Σ_c (p_c − q_c)(log p_c − log q_c) of rows, float64; no term is negative, none cancels.

    Args:
        p: (m, C) probabilities.
        q: (m, C).

    >>> jeffreys(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]])).tolist()
    [0.0]
    """
    p, q = np.maximum(p.astype(np.float64), TINY), np.maximum(q.astype(np.float64), TINY)
    return 0.5 * np.einsum("nc,nc->n", p - q, np.log(p) - np.log(q))


def contextual_diversity(
    signals: Signals, budget: int, *, generator: np.random.Generator, upstream: bool = False
) -> Selection:
    """Cover what a network predicts: each pick's probabilities diverge most from those of all picks before it.

    The first pick is drawn; then, until there are k,

        next = argmax_i min over the picks j of J(p_i, p_j)
        J(p, q) = ½ KL(p‖q) + ½ KL(q‖p) = ½ Σ_c (p_c − q_c)(log p_c − log q_c)

    J is a matrix product of [p, log p] with [log q, q], and so takes
    :func:`~winnow.tasks.select.farthest_first.farthest_first`'s blocks.

    Args:
        signals: probabilities.
        budget: k, samples to keep.
        generator: draws the first pick and breaks ties.
        upstream: replay the published code: its first pick, of ``RandomState(0)``, and ties by the lower row.

    Returns:
        Selection in the order of the picks, so that a smaller one is a prefix of a larger one; gains are the
        divergences from the nearest pick before, that of the first being ∞.

    Raises:
        BadInput: probabilities that are negative or do not sum to one.

    Cost:
        O(N·k·C) multiplications, memory O(N·C).

    References:
        Agarwal, Arora, Anand and Arora, Contextual Diversity for Active Learning, ECCV 2020.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/contextualdiversity.py.

    Differences from upstream:
        A probability of 0 counts as 1.2·10⁻³⁸, float32's smallest; upstream's divergence is then NaN and the
        first rows are selected (not replayed). The paper measures mixtures of a class's predictions over
        regions of an image; like DeepCore, this one measures single samples' probabilities.

    >>> s = Signals(n=3, probabilities=np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]))
    >>> 2 in contextual_diversity(s, 2, generator=np.random.default_rng(0)).indices
    True
    """
    probabilities = checked_probabilities(signals)
    keys = np.arange(signals.n, dtype=float) if upstream else generator.random(signals.n)
    first = first_pick(signals.n) if upstream else int(np.argmin(keys))
    picks, gains = farthest_first(_divergences(probabilities), budget, keys, first)
    return Selection.of(picks, gains=gains)


def _divergences(probabilities: NDArray[Any]) -> Divergence:
    n, classes = probabilities.shape
    left = np.empty((n, 2 * classes), np.float32)
    offset, steepest = np.empty(n), np.empty(n)
    for start in range(0, n, 8192):
        rows = slice(start, start + 8192)
        p = np.maximum(probabilities[rows].astype(np.float64), TINY)
        logs = np.log(p)
        left[rows, :classes], left[rows, classes:] = p, logs
        offset[rows] = 0.5 * (p * logs).sum(1)
        steepest[rows] = np.abs(logs).max(1)

    def turn(part: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([part[:, classes:], part[:, :classes]], axis=1) * np.float32(0.5)

    def exact(i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        return jeffreys(probabilities[i], probabilities[j])

    # ½ Σ_c |p_c log q_c| + |q_c log p_c| is at most half the steepest logarithm of either, since
    # probabilities sum to one
    error = slack_of(2 * classes) * (np.abs(offset) + steepest)
    return Divergence(left, turn, offset, error, exact)
