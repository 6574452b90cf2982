"""Uncertainty: the samples that a network is least sure of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput, MissingSignal
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["checked_probabilities", "uncertainty"]

ROWS = 8192  # samples at a time
OFF_BY = 1e-3  # what a row's sum may differ from 1: float16 rounds by half of it


def checked_probabilities(signals: Signals) -> NDArray[np.floating[Any]]:
    """The probabilities of the signals.

    Raises:
        BadInput: a negative one, or a row that does not sum to one; names the row.

    >>> checked_probabilities(Signals(n=2, probabilities=np.array([[0.5, 0.5], [0.5, 0.6]])))
    Traceback (most recent call last):
    winnow.BadInput: probabilities: row 1 sums to 1.1.
      next: give softmax outputs, not logits
    """
    probabilities = signals.probabilities
    assert probabilities is not None
    for start in range(0, signals.n, ROWS):
        part = probabilities[start : start + ROWS]
        negative = (part < 0).any(1)
        if negative.any():
            row = int(negative.argmax())
            raise BadInput(
                f"probabilities: row {start + row} holds {part[row].min():g}.",
                remedy="give softmax outputs, not logits",
            )
        total = part.sum(1, dtype=np.float64)
        off = np.abs(total - 1) > OFF_BY
        if off.any():
            row = int(off.argmax())
            raise BadInput(
                f"probabilities: row {start + row} sums to {total[row]:g}.",
                remedy="give softmax outputs, not logits",
            )
    return probabilities


def _least_confidence(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 - p.max(1)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(1)


def _margin(p: NDArray[np.float64]) -> NDArray[np.float64]:
    if p.shape[1] < 2:
        return np.zeros(len(p))
    top = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:]
    return 1 - (top[:, 1] - top[:, 0])


KINDS = {"least_confidence": _least_confidence, "entropy": _entropy, "margin": _margin}


def uncertainty(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    kind: str = "least_confidence",
    upstream: bool = False,
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
        upstream: replay the published code: the *most* certain samples, unless all samples given are of one
            class, as they are with ``balanced=True``; least confidence by the largest logit, which is read
            from the score ``max_logit``.

    Returns:
        Selection from the least certain sample on; gains are u (the published scores with ``upstream``).

    Raises:
        BadInput: another ``kind``; probabilities that are negative or do not sum to one.
        MissingSignal: ``upstream`` with least confidence, and no score ``max_logit``.

    Cost:
        O(N·C + N log N).

    References:
        Coleman et al., Selection via Proxy: Efficient Data Selection for Deep Learning, ICLR 2020; Settles,
        Active Learning Literature Survey, 2009, section 3.1.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/uncertainty.py.

    Differences from upstream:
        Without class balance, upstream sorts the wrong way round and keeps the most certain samples. Its
        least confidence is the largest logit instead of the largest probability.

    >>> s = Signals(n=3, probabilities=np.array([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]]))
    >>> uncertainty(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [1, 2]
    """
    if kind not in KINDS:
        raise BadInput(f"kind = {kind!r}: it is 'least_confidence', 'entropy' or 'margin'.")
    probabilities = checked_probabilities(signals)
    if upstream:
        return _published(signals, budget, kind)
    values = np.empty(signals.n)
    for start in range(0, signals.n, ROWS):
        values[start : start + ROWS] = KINDS[kind](probabilities[start : start + ROWS].astype(np.float64))
    rows = order(-values, generator.random(signals.n))[:budget]
    return Selection.of(rows, gains=values[rows])


def _published(signals: Signals, budget: int, kind: str) -> Selection:
    """DeepCore's scores, low where uncertain, and its order."""
    p = signals.probabilities.astype(np.float32)
    if kind == "least_confidence":
        if "max_logit" not in signals.scores:
            raise MissingSignal(
                "uncertainty: upstream=True ranks by the largest logit, which probabilities do not "
                "determine.",
                remedy="give it as scores['max_logit'], or choose another kind",
            )
        scores = signals.scores["max_logit"]
    elif kind == "entropy":
        scores = (np.log(p + 1e-6) * p).sum(1)
    else:
        scores = 1 - _margin(p.astype(np.float64))
    ranked = np.argsort(scores)
    one_class = signals.has("labels") and len(np.unique(signals.labels)) == 1
    rows = (ranked if one_class else ranked[::-1])[:budget]
    return Selection.of(rows, gains=scores[rows])
