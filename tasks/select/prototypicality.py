"""Prototypicality: keep what is far from every cluster centre of a self-supervised embedding."""

from __future__ import annotations

import numpy as np

from winnow.tasks.score import prototypicality as scoring
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["prototypicality"]


def prototypicality(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    clusters: int | None = None,
    metric: str = "cosine",
    hardest: bool = True,
) -> Selection:
    """Keep the least prototypical samples: those farthest from the nearest k-means centre of their embedding.

    With x_i the embedding at unit length and c_1, …, c_k the centres of spherical k-means on them, the
    samples of largest 1 − max_j ⟨x_i, c_j⟩ are kept. No label is needed. The paper keeps hard samples where
    data is plentiful and easy ones where it is scarce. ``balanced=True`` clusters each class on its own, by
    default around one centre.

    Args:
        signals: features of a self-supervised network.
        budget: k, samples to keep.
        generator: seeds k-means and breaks ties.
        clusters: k-means centres; default the number of classes where labels are given, else √N, rounded.
        metric: ``"cosine"``, or ``"euclidean"`` for k-means and distances on the features as they are (ELFS's
            baseline).
        hardest: False keeps the most prototypical.

    Returns:
        Selection from the most extreme sample on; gains are the distances.

    Raises:
        BadInput: more clusters than samples, another ``metric``.

    Cost:
        O(N·D·clusters) for each of at most 100 iterations of k-means.

    References:
        Sorscher, Geirhos, Shekhar, Ganguli and Morcos, Beyond neural scaling laws: beating power law scaling
        via data pruning, NeurIPS 2022, section 6.
        Upstream: eltsai/elfs@089444b core/utils/misc.py find_centroid_kmeans, calculate_distances.

    Differences from upstream:
        The paper's authors published their scores, but no code. ELFS draws the starting centres with seed 0
        in storage order; here the generator draws them, in the order of the ids.

    >>> s = Signals(n=4, features=np.array([[1.0, 0.0], [2.0, 0.1], [3.0, 0.1], [0.0, 1.0]]))
    >>> prototypicality(s, 1, generator=np.random.default_rng(0), clusters=1).indices.tolist()
    [3]
    """
    keys = generator.random(signals.n)
    seed = int(generator.integers(2**31))
    if clusters is None:
        clusters = round(signals.n**0.5) if not signals.has("labels") else len(np.unique(signals.labels))
    # the starting centres follow the order of the rows: make that the order of the ids
    rows = np.arange(signals.n)
    distances = np.empty(signals.n, np.float32)
    distances[rows] = scoring.prototypicality(signals.features[rows], clusters, metric=metric, seed=seed)
    chosen = order(-distances if hardest else distances, keys)[:budget]
    return Selection.of(chosen, gains=distances[chosen])
