"""Uncertainty: the samples that a network is least sure of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.probabilities import checked_probabilities
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["definition", "measure", "uncertainty"]

Floats = NDArray[np.float64]

ROWS = 8192  # samples at a time


def definition(
    signals: Signals, budget: int, *, generator: np.random.Generator, kind: str = "least_confidence"
) -> NDArray[np.int64]:
    """The least certain samples, by sorted probabilities: the reference that tests hold the engine to."""
    p = -np.sort(-signals.probabilities.astype(np.float64), axis=1)  # p₁ ≥ p₂ ≥ …
    u = {
        "least_confidence": 1 - p[:, 0],
        "entropy": -(p * np.log(p.clip(1e-300))).sum(axis=1),  # 0 log 0 = 0
        "margin": 1 - (p[:, 0] - p[:, 1]),
    }
    return order(-u[kind], generator.random(signals.n))[:budget]


def _least_confidence(p: Floats) -> Floats:
    return 1 - p.max(axis=1)


def _entropy(p: Floats) -> Floats:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)


def _margin(p: Floats) -> Floats:
    if p.shape[1] < 2:
        return np.zeros(len(p))
    second, first = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:].T
    return 1 - (first - second)


_MEASURES = {"least_confidence": _least_confidence, "entropy": _entropy, "margin": _margin}


def measure(kind: str) -> Callable[[Floats], Floats]:
    """u of probabilities (N, C), high where a network is unsure.

    Raises:
        BadInput: an unknown ``kind``.

    >>> measure("margin")(np.array([[0.5, 0.25, 0.25]])).tolist()
    [0.75]
    """
    if kind not in _MEASURES:
        raise BadInput(f"kind = {kind!r}: it is 'least_confidence', 'entropy' or 'margin'.")
    return _MEASURES[kind]


def uncertainty(
    signals: Signals, budget: int, *, generator: np.random.Generator, kind: str = "least_confidence"
) -> Selection:
    """Keep the samples that a network is least sure of.

    With p the probabilities of a sample, in descending order p₁ ≥ p₂ ≥ …, the samples of largest u are kept:

        least_confidence   u = 1 − p₁
        entropy            u = −Σ p_c log p_c
        margin             u = 1 − (p₁ − p₂)

    Args:
        signals: probabilities.
        budget: k, samples to keep.
        generator: breaks ties.
        kind: ``"least_confidence"``, ``"entropy"`` or ``"margin"``.

    Returns:
        Selection, least certain sample first; gains are u.

    Raises:
        BadInput: an unknown ``kind``; probabilities that are negative or do not sum to one.

    Cost:
        O(N·C + N log N).

    References:
        Coleman et al., Selection via Proxy: Efficient Data Selection for Deep Learning, ICLR 2020; Settles,
        Active Learning Literature Survey, 2009, section 3.1.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/uncertainty.py.

    Differences from upstream:
        Without class balance, upstream sorts the wrong way round and keeps the most certain samples. Its
        least confidence uses the largest logit, not the largest probability. ``upstream=True`` replays both;
        it reads the largest logit from the score ``max_logit``.

    >>> s = Signals(n=3, probabilities=np.array([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]]))
    >>> uncertainty(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [1, 2]
    """
    u, probabilities = measure(kind), checked_probabilities(signals)
    values = np.empty(signals.n)
    for rows in blocks(signals.n, ROWS):
        values[rows] = u(probabilities[rows].astype(np.float64))
    kept = order(-values, generator.random(signals.n))[:budget]
    return Selection.of(kept, gains=values[kept])
