"""Contextual diversity: k-center on a network's probabilities, by Jeffreys' divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.farthest_first import Divergence, farthest_first
from winnow.tasks.select.jeffreys import TINY, jeffreys
from winnow.tasks.select.probabilities import checked_probabilities
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals
from winnow.tasks.select.space import slack_of

__all__ = ["contextual_diversity", "cover", "definition"]

ROWS = 8192  # samples handled together, which bounds temporary memory


def definition(
    signals: Signals, budget: int, *, generator: np.random.Generator, already: NDArray[np.int64] = NO_ROWS
) -> NDArray[np.int64]:
    """Contextual diversity's picks from all divergences: the reference in tests of the engine."""
    p = np.maximum(signals.probabilities.astype(np.float64), TINY)
    J = 0.5 * ((p[:, None] - p) * (np.log(p)[:, None] - np.log(p))).sum(axis=2)
    ties = generator.random(signals.n)
    S = already.tolist() or [int(ties.argmin())]
    while len(S) < len(already) + budget:
        to_nearest = J[:, S].min(axis=1)
        to_nearest[S] = -np.inf
        S.append(int(order(-to_nearest, ties)[0]))  # arg max
    return np.array(S[len(already) :])


def contextual_diversity(
    signals: Signals, budget: int, *, generator: np.random.Generator, already: NDArray[np.int64] = NO_ROWS
) -> Selection:
    """Cover what a network predicts: each pick's probabilities are farthest from those of all earlier picks.

    The first pick is drawn; then, until there are k,

        next = argmax_i min over the picks j of J(p_i, p_j)
        J(p, q) = ½ KL(p‖q) + ½ KL(q‖p) = ½ Σ_c (p_c − q_c)(log p_c − log q_c)

    J is a matrix product of [p, log p] with [log q, q], so whole blocks of picks are measured at once.

    Args:
        signals: probabilities.
        budget: k, samples to keep.
        generator: draws the first pick and breaks ties.
        already: int64 (m,), rows that count as picked before the first pick, in this order.

    Returns:
        Selection in pick order, so that a smaller one is a prefix of a larger one; gains are the divergences
        from the nearest earlier pick, ∞ for the first.

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
        regions of an image; like DeepCore, this measures single samples' probabilities. ``upstream=True``
        replays the first pick, from ``RandomState(0)``, and ties, which go to the lower row.

    >>> s = Signals(n=3, probabilities=np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]))
    >>> 2 in contextual_diversity(s, 2, generator=np.random.default_rng(0)).indices
    True
    """
    ties = generator.random(signals.n)
    return cover(checked_probabilities(signals), budget, ties, int(ties.argmin()), already)


def cover(
    probabilities: NDArray[Any],
    budget: int,
    ties: NDArray[np.float64],
    first: int,
    already: NDArray[np.int64] = NO_ROWS,
) -> Selection:
    """The greedy farthest samples, starting from ``first``."""
    picks, gains = farthest_first(_divergences(probabilities), budget, ties, first, already)
    return Selection.of(picks, gains=gains)


def _divergences(probabilities: NDArray[Any]) -> Divergence:
    """J(p_i, p_j) = a_i + a_j − ⟨[p_i, log p_i], ½ [log p_j, p_j]⟩ with a = ½ Σ_c p_c log p_c."""
    n, classes = probabilities.shape
    left = np.empty((n, 2 * classes), np.float32)
    offset, steepest = np.empty(n), np.empty(n)
    for rows in blocks(n, ROWS):
        p = np.maximum(probabilities[rows].astype(np.float64), TINY)
        log_p = np.log(p)
        left[rows, :classes], left[rows, classes:] = p, log_p
        offset[rows] = 0.5 * (p * log_p).sum(axis=1)
        steepest[rows] = np.abs(log_p).max(axis=1)

    def turn(part: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([part[:, classes:], part[:, :classes]], axis=1) * np.float32(0.5)

    def exact(i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        return jeffreys(probabilities[i], probabilities[j])

    # ½ Σ_c |p_c log q_c| + |q_c log p_c| is at most half the steepest logarithm of either, since
    # probabilities sum to one
    error = slack_of(2 * classes) * (np.abs(offset) + steepest)
    return Divergence(left, turn, offset, error, exact)
