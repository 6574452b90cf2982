"""Moderate coreset: the samples that are neither near to nor far from the centre of their class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["centre_distances", "moderate"]


def centre_distances(
    features: NDArray[Any], labels: NDArray[np.int64], *, centre: str = "mean"
) -> NDArray[np.float32]:
    """Euclidean distance of each sample to the centre of its class, float32 (N,).

    Args:
        features: (N, D) float.
        labels: (N,) int.
        centre: ``"mean"``, or ``"median"`` of each dimension.

    >>> centre_distances(np.array([[0.0], [2.0], [7.0]]), np.array([0, 0, 1])).tolist()
    [1.0, 1.0, 0.0]
    """
    if centre not in ("mean", "median"):
        raise BadInput(f"centre = {centre!r}: it is 'mean' or 'median'.")
    distances = np.empty(len(labels), np.float32)
    _, sizes = np.unique(labels, return_counts=True)
    for members in np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1]):
        middle = (
            features[members].mean(0, dtype=np.float64)
            if centre == "mean"
            else np.median(features[members], axis=0)
        )
        for rows in np.split(members, range(4096, len(members), 4096)):
            apart = features[rows] - middle
            # summed row by row in float64, kept as float32: copies of a sample are tied whatever the order of
            # storage
            distances[rows] = np.sqrt(np.einsum("nd,nd->n", apart, apart, dtype=np.float64))
    return distances


def moderate(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    centre: str = "mean",
    upstream: bool = False,
) -> Selection:
    """Keep the samples whose distance to their class's centre is closest to the median distance.

    With d_i = ‖h_i − c_{y_i}‖₂, c_y the centre of class y, and the samples sorted by d, the coreset is the
    middle k of the order: ranks a + 1 to N − a, a = (N − k) / 2. It is one order for all classes;
    ``balanced=True`` takes the middle of each class instead.

    Args:
        signals: features, penultimate ones of a trained network in the paper, and labels.
        budget: k, samples to keep.
        generator: breaks ties.
        centre: of a class: ``"mean"`` as the paper has it, or ``"median"`` of each dimension as its authors'
            code has it.
        upstream: replay d2pruning's code, which keeps the two tails.

    Returns:
        Selection from the median outwards, so that a smaller one is a prefix of a larger one; gains are the
        distances.

    Raises:
        BadInput: another ``centre``.

    Cost:
        O(N·D + N log N).

    References:
        Xia, Liu, Yu, Shen, Han and Liu, Moderate Coreset: A Universal Method of Data Selection for Real-world
        Data-efficient Deep Learning, ICLR 2023, section 3.2.
        Upstream: tmllab/2023_ICLR_Moderate-DS@7f64d31 selection.py; adymaharana/d2pruning@bf1ea46
        core/data/Coreset.py moderate_selection.

    Differences from upstream:
        Both repositories take medians as centres, where the paper has means; give a class of one sample one
        number as the centre of all dimensions (not replayed); and miss the budget by a sample where two
        roundings meet. d2pruning moreover turns the ratio round and so keeps what the original prunes, the
        nearest and the farthest: ``upstream=True``, whose count may differ by one.

    >>> s = Signals(n=5, features=np.array([[0.0], [9.0], [4.0], [1.0], [6.0]]), labels=np.zeros(5, int))
    >>> moderate(s, 3, generator=np.random.default_rng(0)).indices.tolist()
    [3, 4, 0]
    """
    if upstream:
        return _tails(centre_distances(signals.features, signals.labels, centre="median"), budget / signals.n)
    distances = centre_distances(signals.features, signals.labels, centre=centre)
    ranked = order(distances, generator.random(signals.n))
    off_centre = np.abs(2 * np.arange(signals.n) - (signals.n - 1))
    rows = ranked[np.argsort(off_centre, kind="stable")[:budget]]
    return Selection.of(rows, gains=distances[rows])


def _tails(distances: NDArray[np.float32], ratio: float) -> Selection:
    """What d2pruning keeps: the nearest and the farthest, ratio / 2 each, with its roundings."""
    pruned = 1 - ratio
    low, high = round(len(distances) * (0.5 - pruned / 2)), round(len(distances) * (0.5 + pruned / 2))
    ranked = np.argsort(distances, kind="stable")
    rows = np.concatenate([ranked[:low], ranked[high:]])
    return Selection.of(rows, gains=distances[rows])
