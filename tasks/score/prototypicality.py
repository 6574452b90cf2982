"""Prototypicality: how far a sample lies from the nearest of a few cluster centres, found without labels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from winnow.tasks.errors import BadInput

__all__ = ["euclidean_kmeans", "prototypicality", "spherical_kmeans"]

ITERATIONS = 100  # of spherical k-means, which converges earlier
ROWS = 4096  # converted at a time


def prototypicality(
    features: NDArray[Any], clusters: int, *, metric: str = "cosine", seed: int = 0
) -> NDArray[np.float32]:
    """Prototypicality: distance to the nearest k-means centre of a self-supervised embedding; far is hard.

    With x_i = h_i / ‖h_i‖ and c_1, …, c_k the unit-length centres of spherical k-means,

        s_i = 1 − max_j ⟨x_i, c_j⟩ = ½ min_j ‖x_i − c_j‖²

    Args:
        features: (N, D) float.
        clusters: k, number of centres; the paper takes the number of classes.
        metric: ``"cosine"``, or ``"euclidean"``: k-means and distance ‖h_i − c_j‖ on the features as they
            are.
        seed: of the starting centres, which also depend on the order of the rows; below 2³¹.

    Returns:
        float32 (N,).

    Raises:
        BadInput: a wrong shape, NaN or infinity, more clusters than samples, an unknown ``metric``.

    Cost:
        O(N·k·D) for each of at most 100 iterations.

    >>> prototypicality(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), 2).round(4).tolist()
    [0.0, 0.0, 0.0]

    References:
        Sorscher, Geirhos, Shekhar, Ganguli and Morcos, Beyond neural scaling laws: beating power law scaling
        via data pruning, NeurIPS 2022, section 6.
        Upstream: eltsai/elfs@089444b core/utils/misc.py find_centroid_kmeans, calculate_distances.

    Differences from upstream:
        The paper's authors published their scores, but no code. ELFS's distances are those of
        ``metric="euclidean"`` with as many clusters as classes and seed 0.
    """
    if features.ndim != 2 or len(features) < 1:
        raise BadInput(f"features: shape {features.shape}, expected (N, D).")
    if not 1 <= clusters <= len(features):
        raise BadInput(
            f"clusters = {clusters} of {len(features)} samples.", remedy=f"pass 1 to {len(features)} clusters"
        )
    if metric not in KMEANS:
        raise BadInput(f"metric = {metric!r}: it is 'cosine' or 'euclidean'.")
    points = np.empty(features.shape, np.float32)
    for start in range(0, len(features), ROWS):
        rows = features[start : start + ROWS].astype(np.float64)
        if not np.isfinite(rows).all():
            raise BadInput(
                f"features: row {start + int(np.argwhere(~np.isfinite(rows))[0][0])} is not finite."
            )
        if metric == "cosine":
            length = np.linalg.norm(rows, axis=1, keepdims=True)
            np.divide(rows, length, out=rows, where=length > 0)
        points[start : start + ROWS] = rows
    centres, nearest = KMEANS[metric](points, clusters, seed)
    squared = np.empty(len(points))
    for start in range(0, len(points), ROWS):
        # from differences: exact where a sample lies on its centre, and the same for copies of a sample
        apart = points[start : start + ROWS] - centres[nearest[start : start + ROWS]]
        squared[start : start + ROWS] = np.einsum("nd,nd->n", apart, apart, dtype=np.float64)
    return (squared / 2 if metric == "cosine" else np.sqrt(squared)).astype(np.float32)


def spherical_kmeans(
    points: NDArray[np.float32], clusters: int, seed: int, iterations: int = ITERATIONS
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Centres of unit length and each point's nearest, by faiss on all points, not a subset."""
    import faiss

    kmeans = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=iterations,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points)
    assert kmeans.centroids is not None
    return kmeans.centroids, kmeans.assign(points)[1]


def euclidean_kmeans(
    points: NDArray[np.float32], clusters: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Centres and each point's nearest, by scikit-learn."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # several OpenMP threads add partial sums in the order in which they finish
    with threadpool_limits(limits=1, user_api="openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        kmeans = KMeans(n_clusters=clusters, random_state=seed).fit(points)
        # with such points, labels_ need not be the nearest centres
        return kmeans.cluster_centers_, kmeans.predict(points)


KMEANS = {"cosine": spherical_kmeans, "euclidean": euclidean_kmeans}
