"""The kNN graph as data, apart from its computation: who only reads one loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Graph"]


@dataclass(frozen=True)
class Graph:
    """Neighbours of each sample, nearest first.

    Attributes:
        neighbours: (N, k) int32, rows of the features.
        similarity: (N, k) float32, descending; the cosine, or minus the Euclidean distance.
    """

    neighbours: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.neighbours)
