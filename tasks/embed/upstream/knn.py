"""The kNN graph of TEMI's published code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from winnow.tasks.embed.graph import Graph
from winnow.tasks.embed.knn import neighbours_except

if TYPE_CHECKING:
    from winnow.tasks.progress import Callback

__all__ = ["CHUNK", "CHUNK_ABOVE", "knn"]

CHUNK = 64  # rows of a chunk in the published code, …
CHUNK_ABOVE = 80_000  # … which it cuts the matrix into above this number of samples


def knn(
    features: np.ndarray,
    k: int,
    *,
    metric: str = "cosine",
    device: torch.device | None = None,
    progress: Callback | None = None,
) -> Graph:
    """The published k nearest neighbours: above 80,000 samples, sample i mod 64 is left out instead of i.

    There, the published code works on chunks of 64 rows and masks entry (r, r) of each chunk, not of the
    whole matrix: from row 64 on, every sample is its own nearest neighbour, and the unrelated sample i mod 64
    can never be one.

    Args:
        features: (N, D) float16, float32 or any real dtype.
        k: neighbours per sample, at most N − 1.
        metric: "cosine" or "euclidean".
        device: where to compute; None takes the first GPU, else the CPU.
        progress: called with (rows done, rows, note).

    Returns:
        Graph with neighbours (N, k) int32 and similarity (N, k) float32, descending.

    Raises:
        BadInput: as :func:`winnow.tasks.embed.knn.knn`.

    >>> knn(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), 1).neighbours.tolist()  # few samples: no fault
    [[1], [0], [0]]

    References:
        HHU-MMBS/TEMI-official-BMVC2023 gen_embeds.py, compute_neighbors.

    Differences from upstream:
        Zero vectors have cosine 0 with everything (published: NaN, ranked first). Ties go to the lower index
        (published: any order).
    """
    rows = np.arange(len(features))
    left_out = rows % CHUNK if len(rows) > CHUNK_ABOVE else rows
    return neighbours_except(left_out, features, k, metric=metric, device=device, progress=progress)
