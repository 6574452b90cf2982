"""Keep the hardest, or the easiest, samples by one score; the registry lists those from papers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["definition", "top"]


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "el2n",
    hardest: bool = True,
) -> NDArray[np.int64]:
    """The k hardest, ties at random: the reference that tests hold the selector to."""
    ties, h = generator.random(signals.n), signals.hardness(score).astype(np.float64)
    return np.lexsort((ties, -h if hardest else h))[:budget]


def top(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "el2n",
    hardest: bool = True,
    higher_is: str | None = None,
) -> Selection:
    """Keep the hardest samples by one score (or the easiest).

    Args:
        signals: scores.
        budget: k, samples to keep.
        generator: breaks ties.
        score: name of the score.
        hardest: False keeps the easiest.
        higher_is: ``"harder"`` or ``"easier"`` for a score of your own.

    Returns:
        Selection, most extreme sample first; gains are the scores.

    References:
        Toneva et al., ICLR 2019 (forgetting); Paul, Ganguli and Dziugaite, NeurIPS 2021 (EL2N, GraNd); Pleiss
        et al., NeurIPS 2020 (AUM).
        Upstream: Coverage-centric-coreset-selection@b37f166 core/data/Coreset.py score_monotonic_selection.

    Differences from upstream:
        The direction follows from the score's meaning instead of a flag; ties are broken by the generator
        instead of by sort order.

    >>> s = Signals(n=3, scores={"aum": np.array([3.0, 1.0, 2.0])})
    >>> top(s, 2, generator=np.random.default_rng(0), score="aum").indices.tolist()
    [1, 2]
    """
    hardness = signals.hardness(score, higher_is)
    rows = order(-hardness.astype(np.float64) if hardest else hardness, generator.random(signals.n))[:budget]
    return Selection.of(rows, gains=signals.score(score)[rows])
