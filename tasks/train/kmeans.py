"""k-means clusters of embeddings: the baseline that cluster heads must beat."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.train.heads import checked_features

__all__ = ["kmeans_labels"]

ITERATIONS = 100
RESTARTS = 10
LARGE = (
    10**10
)  # N·classes·D beyond which one start must do (ImageNet: minutes each on a GPU, an hour on a CPU)


def kmeans_labels(
    features: NDArray[np.floating],
    classes: int,
    *,
    seed: int = 0,
    restarts: int | None = None,
    device: torch.device | None = None,
) -> NDArray[np.int32]:
    """Clusters of the embeddings by faiss's k-means from k-means++; of ``restarts``, the best by inertia.

    Args:
        features: (N, D) float32 or float16.
        classes: number of clusters, at most N.
        seed: for the initial centres.
        restarts: runs; default 10, or 1 if N·classes·D is above 10¹⁰.
        device: where distances are computed; default the CPU.

    Returns:
        (N,) int32.

    Raises:
        BadInput: more clusters than samples, NaN or infinite rows.

    >>> kmeans_labels(np.array([[0.0], [0.1], [5.0], [5.1]]), 2).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    True
    """
    import faiss

    points = np.ascontiguousarray(checked_features("features", features), np.float32)
    if not 1 <= classes <= len(points):
        raise BadInput(f"classes={classes}, but there are {len(points)} samples.")
    parameters = faiss.ClusteringParameters()
    parameters.niter, parameters.seed = ITERATIONS, seed
    parameters.nredo = restarts or (RESTARTS if points.size * classes <= LARGE else 1)
    parameters.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    parameters.min_points_per_centroid = 1
    parameters.max_points_per_centroid = len(points)  # all count
    index: Any = faiss.IndexFlatL2(points.shape[1])
    if device is not None and device.type == "cuda":
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, device.index or 0, index)
    faiss.Clustering(points.shape[1], classes, parameters).train(points, index)
    return index.search(points, 1)[1][:, 0].astype(np.int32)
