"""Uncertainty as published: DeepCore@74ec709 deepcore/methods/uncertainty.py."""

from __future__ import annotations

import numpy as np

from winnow.tasks.errors import MissingSignal
from winnow.tasks.select.probabilities import checked_probabilities
from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.uncertainty import measure

__all__ = ["uncertainty"]


def uncertainty(
    signals: Signals, budget: int, *, generator: np.random.Generator, kind: str = "least_confidence"
) -> Selection:
    """The *most* certain samples, unless all samples are of one class, as they are with ``balanced=True``.

    Least confidence ranks by the largest logit, the score ``max_logit``. Gains are the published scores, low
    where uncertain.

    Raises:
        MissingSignal: least confidence, and no score ``max_logit``.
    """
    u, p = measure(kind), checked_probabilities(signals).astype(np.float32)
    if kind == "least_confidence":
        if "max_logit" not in signals.scores:
            raise MissingSignal(
                "uncertainty: upstream=True ranks by the largest logit, which probabilities do not "
                "determine.",
                remedy="give it as scores['max_logit'], or choose another kind",
            )
        scores = signals.scores["max_logit"]
    elif kind == "entropy":
        scores = (np.log(p + 1e-6) * p).sum(axis=1)
    else:
        scores = 1 - u(p.astype(np.float64))
    ranked = np.argsort(scores)
    one_class = signals.has("labels") and len(np.unique(signals.labels)) == 1
    rows = (ranked if one_class else ranked[::-1])[:budget]
    return Selection.of(rows, gains=scores[rows])
