"""A selector in one file: keep the samples of middling difficulty.

WINNOW_PLUGINS=examples/median.py winnow compare digits --methods random,median,aum --fractions 0.2
"""

from __future__ import annotations

import numpy as np

from winnow.tasks.registry import selectors
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals


def median(signals: Signals, budget: int, *, generator: np.random.Generator, score: str = "aum") -> Selection:
    """Keep the samples whose score is nearest to the median.

    With s the score and m its median, the k samples of smallest |s_i − m| are kept.

    Args:
        signals: scores.
        budget: k, samples to keep.
        generator: breaks ties.
        score: name of the score.

    Returns:
        Selection from the median outwards; gains are the scores.

    >>> s = Signals(n=5, scores={"aum": np.array([0.1, 0.5, 0.3, 0.9, 0.6])})
    >>> sorted(median(s, 2, generator=np.random.default_rng(0)).indices.tolist())
    [1, 4]
    """
    values = signals.score(score).astype(np.float64)
    rows = order(np.abs(values - np.median(values)), generator.random(signals.n))[:budget]
    return Selection.of(rows, gains=values[rows])


selectors.add("median", median, needs=("scores",))
