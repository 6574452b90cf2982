"""The kNN graph as data, apart from its computation: readers of a graph need not load torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Graph", "spans"]


@dataclass(frozen=True)
class Graph:
    """Neighbours of each sample, nearest first.

    Attributes:
        neighbours: (N, k) int32, rows of the features.
        similarity: (N, k) float32, descending; the cosine, or minus the Euclidean distance.

    >>> graph = Graph(np.array([[1], [0]], np.int32), np.array([[0.9], [0.9]], np.float32))
    >>> len(graph), graph.neighbours.shape[1]
    (2, 1)
    """

    neighbours: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.neighbours)


def spans(
    starts: NDArray[np.integer], rows: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the entries of some rows, and how many each row has.

    Row i has the entries from starts[i] up to starts[i + 1].

    >>> positions, counts = spans(np.array([0, 2, 2, 5]), np.array([2, 0]))
    >>> positions.tolist(), counts.tolist()
    ([2, 3, 4, 0, 1], [3, 2])
    """
    counts = (starts[rows + 1] - starts[rows]).astype(np.int64)
    return np.repeat(starts[rows] - (counts.cumsum() - counts), counts) + np.arange(counts.sum()), counts
