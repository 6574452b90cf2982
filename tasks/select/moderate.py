"""Moderate coreset: the samples neither near nor far from the centre of their class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.graphs import rescaled
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals

__all__ = ["centre_distances", "definition", "moderate"]

ROWS = 4096  # samples at a time
CENTRES = {"mean": lambda h: h.mean(axis=0, dtype=np.float64), "median": lambda h: np.median(h, axis=0)}


def definition(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    centre: str = "mean",
) -> NDArray[np.int64]:
    """Moderate's picks, one class and one rank at a time: the reference that tests hold the engine to."""
    h, y, N = signals.features.astype(np.float64), signals.labels, signals.n
    c = {label: getattr(np, centre)(h[y == label], axis=0) for label in np.unique(y)}
    d = np.array([np.sqrt(((h[i] - c[y[i]]) ** 2).sum()) for i in range(N)], np.float32)
    ranked = order(d, generator.random(N))
    outwards = sorted(range(N), key=lambda rank: abs(rank - (N - 1) / 2))  # from the median rank
    return np.array([row for row in ranked[outwards] if row not in already][:budget])


def moderate(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    centre: str = "mean",
) -> Selection:
    """Keep the samples whose distance to their class's centre is closest to the median distance.

    With d_i = ‖h_i − c_{y_i}‖₂, c_y the centre of class y, and the samples sorted by d, the coreset is the
    middle k of the order: ranks a + 1 to N − a, a = (N − k) / 2. It is one order for all classes;
    ``balanced=True`` takes the middle of each class instead.

    Args:
        signals: features, penultimate ones of a trained network in the paper, and labels.
        budget: k, samples to keep.
        generator: breaks ties.
        already: int64 (m,), rows that are kept already: they keep their ranks.
        centre: of a class: ``"mean"`` as in the paper, or ``"median"`` of each dimension as in its authors'
            code.

    Returns:
        Selection from the median outwards, so that a smaller one is a prefix of a larger one; gains are the
        distances.

    Raises:
        BadInput: an unknown ``centre``.

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
        roundings add up. d2pruning also inverts the ratio and so keeps what the original prunes, the nearest
        and the farthest: ``upstream=True`` replays that; its count may differ by one.

    >>> s = Signals(n=5, features=np.array([[0.0], [9.0], [4.0], [1.0], [6.0]]), labels=np.zeros(5, int))
    >>> moderate(s, 3, generator=np.random.default_rng(0)).indices.tolist()
    [3, 4, 0]
    """
    features, exponent = rescaled(signals.features)
    distances = centre_distances(features, signals.labels, centre=centre)
    ranked = order(distances, generator.random(signals.n))
    off_centre = np.abs(2 * np.arange(signals.n) - (signals.n - 1))
    off_centre[np.isin(ranked, already)] = signals.n  # behind all others
    rows = ranked[np.argsort(off_centre, kind="stable")[:budget]]
    return Selection.of(rows, gains=np.ldexp(distances[rows], exponent))


def centre_distances(
    features: NDArray[Any], labels: NDArray[np.int64], *, centre: str = "mean"
) -> NDArray[np.float32]:
    """Euclidean distance of each sample to the centre of its class, float32 (N,).

    Summed row by row in float64: copies of a sample tie, whatever the order of storage.

    Args:
        features: (N, D) float.
        labels: (N,) int.
        centre: ``"mean"``, or ``"median"`` of each dimension.

    Raises:
        BadInput: an unknown ``centre``.

    >>> centre_distances(np.array([[0.0], [2.0], [7.0]]), np.array([0, 0, 1])).tolist()
    [1.0, 1.0, 0.0]
    """
    if centre not in CENTRES:
        raise BadInput(f"centre = {centre!r}: it is 'mean' or 'median'.")
    distances = np.empty(len(labels), np.float32)
    _, sizes = np.unique(labels, return_counts=True)
    for members in np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1]):
        middle = CENTRES[centre](features[members])
        for rows in np.split(members, range(ROWS, len(members), ROWS)):
            apart = features[rows] - middle
            distances[rows] = np.sqrt(np.einsum("nd,nd->n", apart, apart, dtype=np.float64))
    return distances
