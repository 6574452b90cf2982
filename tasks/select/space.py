"""Features as points: exact in float64 for any rows, estimated in float32 with a bound on the error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.blocks import blocks

__all__ = ["Points", "slack_of"]

ROWS = 4096  # samples handled together, which bounds temporary memory


def slack_of(dim: int) -> float:
    """Relative error of a float32 dot product of that length, rounded inputs included.

    References:
        Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019, theorem 3.1.
    """
    return (min(dim, 8.0 * dim**0.5) + 12.0) * 2.0**-24


@dataclass(frozen=True)
class Points:
    """Features as points in float64, any rows at a time: scaled to at most 1, or each of unit length.

    Args:
        features: (N, D).
        metric: ``"euclidean"`` or ``"cosine"``.
        scale: power of two, which rounds nothing.

    >>> Points.of(np.array([[3.0, 4.0], [0.0, 2.0]]), "cosine")[:].tolist()
    [[0.6, 0.8], [0.0, 1.0]]
    """

    features: NDArray[Any]
    metric: str
    scale: float

    @classmethod
    def of(cls, features: NDArray[Any], metric: str) -> Points:
        """Features of any magnitude.

        Raises:
            BadInput: an unknown ``metric``.
        """
        if metric not in ("euclidean", "cosine"):
            raise BadInput(f"metric = {metric!r}: it is 'euclidean' or 'cosine'.")
        largest = max(float(features.max(initial=0)), -float(features.min(initial=0)))
        exponent = np.clip(np.ceil(np.log2(largest)), -1000, 1000) if largest else 0.0
        return cls(features, metric, 2.0**-exponent)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> NDArray[np.float64]:
        points = self.features[rows].astype(np.float64) * self.scale
        if self.metric == "cosine":
            # row by row in a fixed order: copies of a sample stay copies; zeros stay zeros
            points /= np.maximum(np.sqrt(np.einsum("nd,nd->n", points, points)), 1e-150)[:, None]
        return points

    def mean(self) -> NDArray[np.float64]:
        """Their mean, float64 (D,), summed on a grid on which float64 adds exactly, whatever the blocks."""
        grid = 2.0 ** (np.ceil(np.log2(len(self))) - 52)
        total = np.zeros(self.features.shape[1])
        for rows in blocks(len(self), ROWS):
            total += (np.rint(self[rows] / grid) * grid).sum(axis=0)
        return total / len(self)

    def centred(self, centre: NDArray[np.float64]) -> NDArray[np.float32]:
        """All points less a centre, float32 (N, D): the smaller they are, the better the estimates."""
        moved = np.empty(self.features.shape, np.float32)
        for rows in blocks(len(self), ROWS):
            moved[rows] = self[rows] - centre
        return moved
