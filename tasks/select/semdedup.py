"""SemDeDup: drop semantic duplicates, found by cosine within k-means clusters of an embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.score.prototypicality import spherical_kmeans
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals
from winnow.tasks.select.space import Points

__all__ = ["definition", "semdedup"]

ITERATIONS = 50  # of k-means, which converges earlier
TILE = 2048  # members of a cluster that are compared with all before them
GRID = 2.0**-40  # cosines are rounded to it: coarser than the rounding of a product, so that copies tie


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    clusters: int | None = None,
) -> NDArray[np.int64]:
    """SemDeDup's picks from all cosines within clusters: the reference that tests hold the engine to."""
    ties, seed = generator.random(signals.n), int(generator.integers(2**31))
    rows = ties.argsort()
    unit = Points.of(signals.features[rows], "cosine")
    to_centre, cluster = _clusters(unit, clusters or round(signals.n**0.5), seed)
    x, m = unit[:], np.empty(signals.n)
    to_centre[np.isin(rows, already)] = -np.inf  # before all others
    for c in np.unique(cluster):
        members = np.flatnonzero(cluster == c)
        members = members[to_centre[members].argsort(kind="stable")]  # farthest first
        before = np.tri(len(members), k=-1, dtype=bool)
        m[rows[members]] = np.where(before, x[members] @ x[members].T, -1.0).max(axis=1)
    m[already] = np.inf
    return order(m.round(12), ties)[:budget]  # rounding makes equals tie


def semdedup(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    clusters: int | None = None,
) -> Selection:
    """Keep the samples that are least similar to any before them in their cluster.

    The embedding at unit length is cut into clusters by spherical k-means. In a cluster, samples are ordered
    from the farthest from its centre to the nearest, and

        m_i = max over the samples j before i of ⟨x_i, x_j⟩

    (−1 for the first). The paper drops the samples of m_i > 1 − ε; here ε follows from the budget: the k
    samples of smallest m are kept.

    Args:
        signals: features of a pre-trained network.
        budget: k, samples to keep.
        generator: seeds k-means and breaks ties.
        already: int64 (m,), rows that are kept already: they come before all others of their clusters.
        clusters: of k-means; default √N, rounded. ``balanced=True`` clusters each class on its own.

    Returns:
        Selection from the least to the most redundant, so that a smaller one is a prefix of a larger one;
        gains are m.

    Raises:
        BadInput: ``clusters`` not between 1 and N.

    Cost:
        O(N·D·clusters) for each iteration of k-means and O(N²·D / clusters) multiplications in clusters of
        equal size.

    References:
        Abbas, Tirumala, Simig, Ganguli and Morcos, SemDeDup: Data-efficient learning at web-scale through
        semantic deduplication, 2023 (arXiv 2303.09540), section 3.
        Upstream: facebookresearch/SemDeDup@6b41945 semdedup.py, clustering/sort_clusters.py.

    Differences from upstream:
        An exact budget in place of ε. As in upstream, the maximum is over all samples before i, including
        dropped ones, which is what makes coresets nest. Upstream's defaults suit 440 million images (50,000
        clusters); its maximum is at least 0.

    >>> s = Signals(n=4, features=np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [-1.0, 1.0]]))
    >>> chosen = semdedup(s, 3, generator=np.random.default_rng(0), clusters=1)
    >>> sorted(chosen.indices.tolist()) in ([0, 2, 3], [1, 2, 3])
    True
    """
    if clusters is None:
        clusters = max(1, round(signals.n**0.5))
    if not 1 <= clusters <= signals.n:
        remedy = f"pass 1 to {signals.n} clusters"
        raise BadInput(f"clusters = {clusters} of {signals.n} samples.", remedy=remedy)
    ties, seed = generator.random(signals.n), int(generator.integers(2**31))
    rows = np.argsort(ties)  # of copies, the lowest tie comes first
    m = np.empty(signals.n)
    points = Points.of(signals.features[rows], "cosine")
    m[rows] = _redundancy(points, clusters, seed, np.isin(rows, already))
    m[already] = np.inf
    kept = order(m, ties)[:budget]
    return Selection.of(kept, gains=m[kept])


def _redundancy(x: Points, clusters: int, seed: int, there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """m of each sample; of samples equally far from the centre, the first counts as before."""
    to_centre, cluster = _clusters(x, clusters, seed)
    to_centre[there] = -np.inf  # before all others
    m = np.empty(len(x))
    ends = np.bincount(cluster, minlength=clusters).cumsum()
    for members in np.split(np.argsort(cluster, kind="stable"), ends[:-1]):
        outermost = members[np.argsort(to_centre[members], kind="stable")]
        m[outermost] = _most_similar_before(x[outermost])
    return np.rint(m / GRID) * GRID


def _most_similar_before(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest product of each row with one before it; −1 for the first."""
    largest = np.full(len(x), -1.0)
    for rows in blocks(len(x), TILE):
        for other in range(0, rows.start + 1, TILE):
            products = x[rows] @ x[other : other + TILE].T
            if other == rows.start:
                products[np.triu_indices(len(products))] = -1.0
            largest[rows] = np.maximum(largest[rows], products.max(axis=1))
    return largest


def _clusters(x: Points, clusters: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cosine of each sample to the centre of its cluster, and that cluster; trained on all samples."""
    points = x.centred(np.zeros(x.features.shape[1]))
    centres, cluster = spherical_kmeans(points, clusters, seed, ITERATIONS)
    cosine = np.empty(len(x))
    for rows in blocks(len(x), TILE):
        cosine[rows] = np.einsum("nd,nd->n", x[rows], centres[cluster[rows]].astype(np.float64))
    return np.rint(cosine / GRID) * GRID, cluster
