"""CAL: samples that a network predicts differently from their neighbours in its feature space."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.graphs import checked_graph, rescaled
from winnow.tasks.select.jeffreys import TINY, jeffreys
from winnow.tasks.select.probabilities import checked_probabilities
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["cal", "contrast", "definition"]

PAIRS = 1 << 20  # probabilities compared at a time


def definition(
    signals: Signals, budget: int, *, generator: np.random.Generator, neighbours: int = 10
) -> NDArray[np.int64]:
    """CAL's picks from all distances and divergences: the reference that tests hold the engine to."""
    x, p = signals.features.astype(np.float64), np.maximum(signals.probabilities.astype(np.float64), TINY)
    d = np.linalg.norm(x[:, None] - x, axis=2)
    np.fill_diagonal(d, np.inf)
    N = d.argsort(axis=1, kind="stable")[:, :neighbours]
    J = 0.5 * ((p[:, None] - p) * (np.log(p)[:, None] - np.log(p))).sum(axis=2)
    s = np.take_along_axis(J, N, axis=1).mean(axis=1)
    return order(-s.round(12), generator.random(signals.n))[:budget]  # rounding makes equals tie


def cal(signals: Signals, budget: int, *, generator: np.random.Generator, neighbours: int = 10) -> Selection:
    """Keep contrastive samples: near others in feature space, but with different predictions.

    With N(i) the nearest neighbours of sample i among the features, by Euclidean distance, the samples of
    largest

        s_i = mean over j ∈ N(i) of J(p_i, p_j),   J(p, q) = ½ KL(p‖q) + ½ KL(q‖p)

    are kept: those on a decision boundary.

    Args:
        signals: features and probabilities; the neighbours are those of ``graph`` where it is given.
            ``balanced=True`` looks for neighbours within each class.
        budget: k, samples to keep.
        generator: breaks ties.
        neighbours: of a sample; all others where there are fewer.

    Returns:
        Selection, most contrastive sample first; gains are s.

    Raises:
        BadInput: fewer than one neighbour, a graph that lists fewer or cannot be used, probabilities that
            are negative or do not sum to one.

    Cost:
        The kNN graph, O(N²·D) multiplications (a tenth of that in ten classes), and O(N·neighbours·C).

    References:
        Margatina, Vernikos, Barrault and Aletras, Active Learning by Acquiring Contrastive Examples, EMNLP
        2021, algorithm 1.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/cal.py.

    Differences from upstream:
        Upstream keeps the smallest s, the samples that agree with their neighbours; ``upstream=True`` replays
        that. It drops the first neighbour as being the sample itself, which it need not be where there are
        copies; a probability of 0 makes s NaN (here it counts as 1.2·10⁻³⁸); and it fails on classes of 10
        samples or fewer. None of this is replayed. The paper takes neighbours among the labelled samples, and
        KL(p_j‖p_i); with no labelled set, both here and upstream take them among all samples, and the
        symmetric divergence.

    >>> features = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]])
    >>> probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    >>> s = Signals(n=5, features=features, probabilities=probabilities)
    >>> cal(s, 1, generator=np.random.default_rng(0), neighbours=2).indices.tolist()
    [1]
    """
    s = contrast(signals, neighbours)
    rows = order(-s, generator.random(signals.n))[:budget]
    return Selection.of(rows, gains=s[rows])


def contrast(signals: Signals, neighbours: int) -> NDArray[np.float64]:
    """s, the mean divergence of each sample's prediction from those of its neighbours; 0 where it has none.

    Raises:
        BadInput: as :func:`cal`.
    """
    if neighbours < 1:
        raise BadInput(f"neighbours = {neighbours}: there must be at least 1.")
    p, s = checked_probabilities(signals), np.zeros(signals.n)
    k = min(neighbours, signals.n - 1)
    if k == 0:
        return s
    near = _nearest(signals, k)
    step = max(1, PAIRS // (k * p.shape[1]))
    for rows in blocks(signals.n, step):
        j = near[rows]
        i = np.repeat(np.arange(rows.start, rows.stop), k)
        s[rows] = jeffreys(p[i], p[j.ravel()]).reshape(j.shape).mean(axis=1)
    return s


def _nearest(signals: Signals, k: int) -> NDArray[np.integer[Any]]:
    """The k nearest neighbours of each sample, (N, k)."""
    if signals.graph is not None:
        return checked_graph(signals.graph, k).neighbours
    from winnow.tasks.embed.knn import knn

    return knn(rescaled(signals.features)[0], k, metric="euclidean").neighbours
