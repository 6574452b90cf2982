"""Prototypicality: keep what is far from every cluster centre of a self-supervised embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.score import prototypicality as scoring
from winnow.tasks.select.graphs import rescaled
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["definition", "prototypicality"]


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    clusters: int | None = None,
    metric: str = "cosine",
    hardest: bool = True,
) -> NDArray[np.int64]:
    """The picks by all distances to all k-means centres: the reference that tests hold the engine to."""
    x = signals.features.astype(np.float64)
    ties, seed = generator.random(signals.n), int(generator.integers(2**31))
    k = clusters or len(np.unique(signals.labels))
    if metric == "cosine":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        c, _ = scoring.spherical_kmeans(x.astype(np.float32), k, seed)
        s = 1 - (x @ c.T).max(axis=1)
    else:
        c, _ = scoring.euclidean_kmeans(x.astype(np.float32), k, seed)
        s = np.linalg.norm(x[:, None] - c, axis=2).min(axis=1)
    s = s.round(12)  # rounding makes equals tie
    return order(-s if hardest else s, ties)[:budget]


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
        Selection, most extreme sample first; gains are the distances.

    Raises:
        BadInput: more clusters than samples, an unknown ``metric``.

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
    ties = generator.random(signals.n)
    seed = int(generator.integers(2**31))
    if clusters is None:
        clusters = len(np.unique(signals.labels)) if signals.has("labels") else round(signals.n**0.5)
    features, exponent = rescaled(signals.features)
    distances = scoring.prototypicality(features, clusters, metric=metric, seed=seed)
    rows = order(-distances if hardest else distances, ties)[:budget]
    return Selection.of(rows, gains=np.ldexp(distances[rows], exponent if metric == "euclidean" else 0))
