"""Keep the hardest, or the easiest, samples by one score; the scores that papers select by have a name of their own."""

from __future__ import annotations

import numpy as np

from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["aum", "el2n", "forgetting", "grand", "top"]


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
        Selection from the most extreme sample on; gains are the scores.

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


def aum(signals: Signals, budget: int, *, generator: np.random.Generator, hardest: bool = True) -> Selection:
    """Keep the samples of smallest area under the margin.

    :func:`top` with score ``"aum"`` of ``winnow.tasks.score``; low is hard.

    Args:
        signals: score ``aum``.
        budget: k, samples to keep.
        generator: breaks ties.
        hardest: False keeps the easiest.

    Returns:
        Selection from the most extreme sample on; gains are the scores.

    References:
        Pleiss, Zhang, Elenberg and Weinberger, Identifying Mislabeled Data using the Area Under the Margin
        Ranking, NeurIPS 2020.
        Upstream: Coverage-centric-coreset-selection@b37f166 core/data/Coreset.py score_monotonic_selection
        (accumulated_margin).

    >>> s = Signals(n=3, scores={"aum": np.array([3.0, 1.0, 2.0])})
    >>> aum(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [1, 2]
    """
    return top(signals, budget, generator=generator, score="aum", hardest=hardest)


def el2n(signals: Signals, budget: int, *, generator: np.random.Generator, hardest: bool = True) -> Selection:
    """Keep the samples of longest error vector.

    :func:`top` with score ``"el2n"`` of ``winnow.tasks.score``; high is hard.

    Args:
        signals: score ``el2n``.
        budget: k, samples to keep.
        generator: breaks ties.
        hardest: False keeps the easiest.

    Returns:
        Selection from the most extreme sample on; gains are the scores.

    References:
        Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet: Finding Important Examples Early in
        Training, NeurIPS 2021.

    >>> s = Signals(n=3, scores={"el2n": np.array([3.0, 1.0, 2.0])})
    >>> el2n(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [0, 2]
    """
    return top(signals, budget, generator=generator, score="el2n", hardest=hardest)


def forgetting(
    signals: Signals, budget: int, *, generator: np.random.Generator, hardest: bool = True
) -> Selection:
    """Keep the samples that were forgotten most often.

    :func:`top` with score ``"forgetting"`` of ``winnow.tasks.score``; high is hard.

    Args:
        signals: score ``forgetting``.
        budget: k, samples to keep.
        generator: breaks ties.
        hardest: False keeps the easiest.

    Returns:
        Selection from the most extreme sample on; gains are the scores.

    References:
        Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR
        2019.

    >>> s = Signals(n=3, scores={"forgetting": np.array([3.0, 1.0, 2.0])})
    >>> forgetting(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [0, 2]
    """
    return top(signals, budget, generator=generator, score="forgetting", hardest=hardest)


def grand(
    signals: Signals, budget: int, *, generator: np.random.Generator, hardest: bool = True
) -> Selection:
    """Keep the samples of longest gradient.

    :func:`top` with score ``"grand"`` of ``winnow.tasks.score``; high is hard.

    Args:
        signals: score ``grand``.
        budget: k, samples to keep.
        generator: breaks ties.
        hardest: False keeps the easiest.

    Returns:
        Selection from the most extreme sample on; gains are the scores.

    References:
        Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet: Finding Important Examples Early in
        Training, NeurIPS 2021.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/grand.py.

    >>> s = Signals(n=3, scores={"grand": np.array([3.0, 1.0, 2.0])})
    >>> grand(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [0, 2]
    """
    return top(signals, budget, generator=generator, score="grand", hardest=hardest)
