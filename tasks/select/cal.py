"""CAL: samples that a network predicts otherwise than their neighbours in its feature space."""

from __future__ import annotations

import numpy as np

from winnow.tasks.embed.graph import Graph
from winnow.tasks.errors import BadInput
from winnow.tasks.select.jeffreys import jeffreys
from winnow.tasks.select.probabilities import checked_probabilities
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["cal"]

PAIRS = 1 << 20  # probabilities compared at a time


def cal(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    neighbours: int = 10,
    upstream: bool = False,
) -> Selection:
    """Keep contrastive samples: near to others in feature space, but with different predictions.

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
        upstream: replay the published code, which keeps the samples of *smallest* s.

    Returns:
        Selection from the most extreme sample on; gains are s.

    Raises:
        BadInput: fewer than one neighbour, a graph that lists fewer or does not fit, probabilities that are
            negative or do not sum to one.

    Cost:
        The kNN graph, O(N²·D) multiplications (a tenth of it in ten classes), and O(N·neighbours·C).

    References:
        Margatina, Vernikos, Barrault and Aletras, Active Learning by Acquiring Contrastive Examples, EMNLP
        2021, algorithm 1.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/cal.py.

    Differences from upstream:
        Upstream keeps the smallest s, the samples that agree with their neighbours. Its first neighbour is
        dropped as being the sample itself, which it need not be where there are copies; a probability of 0
        makes it NaN (here it counts as 1.2·10⁻³⁸); and it fails on classes of 10 samples or fewer. None of
        these is replayed. The paper has the neighbours among the labelled samples and takes KL(p_j‖p_i); with
        no labelled set, both here and upstream have them among all samples, and the symmetric divergence.

    >>> features = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]])
    >>> probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    >>> s = Signals(n=5, features=features, probabilities=probabilities)
    >>> cal(s, 1, generator=np.random.default_rng(0), neighbours=2).indices.tolist()
    [1]
    """
    if neighbours < 1:
        raise BadInput(f"neighbours = {neighbours}: there must be at least 1.")
    probabilities = checked_probabilities(signals)
    near = _neighbours(signals, min(neighbours, signals.n - 1))
    values = np.zeros(signals.n)
    if near.size:
        step = max(1, PAIRS // (near.shape[1] * probabilities.shape[1]))
        for start in range(0, signals.n, step):
            listed = near[start : start + step]
            own = np.repeat(np.arange(start, start + len(listed)), near.shape[1])
            values[start : start + step] = (
                jeffreys(probabilities[own], probabilities[listed.ravel()]).reshape(listed.shape).mean(1)
            )
    rows = order(values if upstream else -values, generator.random(signals.n))[:budget]
    return Selection.of(rows, gains=values[rows])


def _neighbours(signals: Signals, k: int) -> np.ndarray:
    """(N, k) rows of the nearest neighbours, nearest first."""
    graph: Graph | None = signals.graph
    if graph is None:
        if k == 0:
            return np.empty((signals.n, 0), np.int64)
        from winnow.tasks.embed.knn import knn

        return knn(signals.features, k, metric="euclidean").neighbours
    listed = graph.neighbours
    if listed.shape[1] < k:
        raise BadInput(
            f"neighbours = {k}, but the graph lists {listed.shape[1]}.",
            remedy=f"pass neighbours={listed.shape[1]}, or a graph of at least {k}",
        )
    listed = listed[:, :k]
    wrong = ((listed < 0) | (listed >= signals.n) | (listed == np.arange(signals.n)[:, None])).any(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise BadInput(
            f"graph.neighbours: row {row} lists {listed[row].tolist()}: itself, or none of the {signals.n} "
            "samples."
        )
    return listed
