"""ELFS: double-end pruning of proxy training dynamics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.allocation import check_fits
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["definition", "elfs"]


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "aum",
    mis_ratio: float = 0.0,
) -> NDArray[np.int64]:
    """S = order[⌊βN⌋ : ⌊βN⌋ + k], from hard to easy: the reference that tests hold the selector to."""
    ties = generator.random(signals.n)
    hard_to_easy = np.lexsort((ties, -signals.hardness(score).astype(np.float64)))
    return hard_to_easy[int(mis_ratio * signals.n) :][:budget]


def elfs(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "aum",
    mis_ratio: float = 0.0,
    higher_is: str | None = None,
) -> Selection:
    """Keep the hard middle: drop the hardest as mislabelled, keep the next hardest, drop the easy rest.

    With the samples ordered from hard to easy, β the ``mis_ratio`` and k the budget, S = order[⌊βN⌋ : ⌊βN⌋ +
    k]. On pseudo-labels the hardest samples are mostly wrongly labelled, and the easiest say little; both
    ends are pruned.

    Args:
        signals: scores from training dynamics on pseudo-labels.
        budget: k, samples to keep.
        generator: breaks ties.
        score: name of the score.
        mis_ratio: β in [0, 1), share of hardest samples to drop.
        higher_is: ``"harder"`` or ``"easier"`` for a score of your own.

    Returns:
        Selection from hard to easy; gains are the scores.

    Raises:
        BadInput: ⌊βN⌋ + k > N.

    References:
        Zheng et al., ELFS: Label-Free Coreset Selection with Proxy Training Dynamics, ICLR 2025, section 4.3.
        Upstream: eltsai/elfs@089444b core/data/Coreset.py direct_selection.

    Differences from upstream:
        ``score`` is honoured (upstream always uses AUM). A cut and a budget that add up to exactly N give k
        samples (upstream: none), and ones that do not fit are an error (upstream: none or too few samples,
        silently).

    >>> s = Signals(n=5, scores={"aum": np.array([0.1, 0.5, 0.3, 0.9, 0.7])})
    >>> elfs(s, 2, generator=np.random.default_rng(0), mis_ratio=0.2).indices.tolist()
    [2, 1]
    """
    dropped = check_fits(signals.n, budget, mis_ratio)
    hard_to_easy = order(-signals.hardness(score, higher_is).astype(np.float64), generator.random(signals.n))
    rows = hard_to_easy[dropped : dropped + budget]
    return Selection.of(rows, gains=signals.score(score)[rows])
