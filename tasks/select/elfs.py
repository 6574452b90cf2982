"""ELFS: double-end pruning of proxy training dynamics."""

from __future__ import annotations

import numpy as np

from winnow.tasks.select.allocation import check_fits
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["elfs"]


def elfs(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    score: str = "aum",
    mis_ratio: float = 0.0,
    higher_is: str | None = None,
    upstream: bool = False,
) -> Selection:
    """Keep the hard middle: drop the hardest samples as mislabelled, keep the next hardest, drop the easy rest.

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
        upstream: replay the published code.

    Returns:
        Selection from hard to easy; gains are the scores.

    Raises:
        BadInput: ⌊βN⌋ + k > N.

    References:
        Zheng et al., ELFS: Label-Free Coreset Selection with Proxy Training Dynamics, ICLR 2025, section 4.3.
        Upstream: eltsai/elfs@089444b core/data/Coreset.py direct_selection.

    Differences from upstream:
        ``score`` is honoured (upstream always uses AUM). A cut and a budget that fill all N samples exactly
        give k samples (upstream: none), and one that does not fit is an error (upstream: none or too few
        samples, silently).

    >>> s = Signals(n=5, scores={"aum": np.array([0.1, 0.5, 0.3, 0.9, 0.7])})
    >>> elfs(s, 2, generator=np.random.default_rng(0), mis_ratio=0.2).indices.tolist()
    [2, 1]
    """
    if upstream:
        aum = signals.score("aum")
        hard_to_easy = np.argsort(aum, kind="stable")
        dropped = int(mis_ratio * signals.n)
        chopped = signals.n - dropped - budget
        return Selection.of(rows := hard_to_easy[dropped:-chopped], gains=aum[rows])
    dropped = check_fits(signals.n, budget, mis_ratio)
    hard_to_easy = order(-signals.hardness(score, higher_is).astype(np.float64), generator.random(signals.n))
    rows = hard_to_easy[dropped : dropped + budget]
    return Selection.of(rows, gains=signals.score(score)[rows])
