"""BADGE: k-means++ seeding on the last layer's gradients, which are never written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["badge"]

BLOCK = 128  # picks that are measured against all samples in one matrix product
STALE = 8  # and at most this part of the picks so far: the distances drawn from must not be much too large
ROWS = 4096  # samples a tile
# squared distances below this share of ‖g‖² are computed anew: ‖g_i‖² + ‖g_j‖² − 2⟨g_i, g_j⟩ has lost their
# digits
CANCELS = 1e-3


@dataclass(frozen=True)
class Gradients:
    """g_i = b_i ⊗ u_i with u_i = [h_i, 1], kept as its factors.

    Args:
        b: float32 (N, C).
        u: float32 (N, D + 1).
        squared: float64 (N,), ‖g_i‖² = ‖b_i‖²‖u_i‖².
    """

    b: NDArray[np.float32]
    u: NDArray[np.float32]
    squared: NDArray[np.float64]

    @classmethod
    def of(cls, residuals: NDArray[Any], features: NDArray[Any]) -> Gradients:
        b = np.ascontiguousarray(residuals, np.float32)
        u = np.ones((len(features), features.shape[1] + 1), np.float32)
        u[:, :-1] = features
        return cls(b, u, _dot(b, b) * _dot(u, u))

    def nearest(self, start: int, stop: int, centres: NDArray[np.int64]) -> NDArray[np.float64]:
        """Squared distance of rows start to stop to the nearest of the centres, float64 (m,): one matrix product for each factor."""
        tile = self.u[start:stop] @ self.u[centres].T
        tile *= self.b[start:stop] @ (-2 * self.b[centres]).T
        tile += self.squared[centres].astype(np.float32)
        near = tile.argmin(1)
        own = self.squared[start:stop]
        found = own + tile[np.arange(len(tile)), near]
        close = np.flatnonzero(found < CANCELS * own)
        found[close] = self.apart(start + close, centres[near[close]])
        return found

    def apart(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        """‖g_i − g_j‖² = ‖Δb‖²‖u_i‖² + ‖b_j‖²‖Δu‖² + 2⟨Δb, b_j⟩⟨Δu, u_i⟩, float64 (m,): 0 where both are the same."""
        b, u = self.b[j].astype(np.float64), self.u[i].astype(np.float64)
        db, du = self.b[i] - b, u - self.u[j]
        return np.maximum(
            _dot(db, db) * _dot(u, u) + _dot(b, b) * _dot(du, du) + 2 * _dot(db, b) * _dot(du, u), 0.0
        )


def _dot(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    return np.einsum("nd,nd->n", left, right, dtype=np.float64)


def badge(signals: Signals, budget: int, *, generator: np.random.Generator) -> Selection:
    """Keep samples whose last-layer gradients are long and point in different directions, by k-means++ seeding.

    With g_i = b_i ⊗ [h_i, 1] the gradient of the loss in the last layer, the first sample is drawn uniformly
    and each further one with probability proportional to D_i² = min over the samples j picked so far of ‖g_i
    − g_j‖², where

        ‖g_i − g_j‖² = ‖b_i‖²(1 + ‖h_i‖²) + ‖b_j‖²(1 + ‖h_j‖²) − 2⟨b_i, b_j⟩(1 + ⟨h_i, h_j⟩)

    Picks are drawn from distances that may be up to a block of picks old, and accepted with probability new /
    old: that is the same distribution, and lets a whole block of picks be measured in one matrix product.
    Once every sample lies on a picked one, the rest is drawn uniformly.

    Args:
        signals: residuals b = softmax − one-hot and features h, the last layer's input. The residuals given
            decide whose loss it is: the paper has no labels yet and takes the predicted class, with true
            labels it is the training loss.
        budget: k, samples to keep.
        generator: of the draws.

    Returns:
        Selection in the order of the picks; gains are D² at the pick, of the first one ‖g‖².

    Cost:
        O(N·k·(C + D)) multiplications, in matrix products of 128 picks; memory O(N·(C + D)).

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, Deep Batch Active Learning by Diverse, Uncertain
        Gradient Lower Bounds, ICLR 2020, algorithm 1; Arthur and Vassilvitskii, k-means++: The Advantages of
        Careful Seeding, SODA 2007.
        Upstream: JordanAsh/badge@173a184 query_strategies/badge_sampling.py init_centers, strategy.py
        get_grad_embedding.

    Differences from upstream:
        Upstream picks the longest gradient first, leaves the bias out (g = b ⊗ h), writes the C·D gradients
        out, loops over all samples in Python at each pick, and stops in the debugger once every sample lies
        on a picked one.

    >>> s = Signals(n=3, residuals=np.array([[0.9, -0.9], [0.9, -0.9], [-0.2, 0.2]]), features=np.ones((3, 2)))
    >>> sorted(badge(s, 2, generator=np.random.default_rng(0)).indices.tolist()) in ([0, 2], [1, 2])
    True
    """
    keys = generator.random(signals.n)
    # draws follow the order of the rows: make that the order of the ids
    rows = np.arange(signals.n)
    gradients = Gradients.of(signals.residuals[rows], signals.features[rows])
    picks, gains = seeds(gradients, budget, keys[rows], generator)
    return Selection.of(rows[picks], gains=gains)


def seeds(
    gradients: Gradients, k: int, keys: NDArray[np.float64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """k-means++ seeding: rows in the order of their picks, and D² of each.

    Args:
        gradients: of N samples.
        k: rows to pick.
        keys: (N,) random numbers: the lowest is the first pick, and they order the rest once all distances
            are 0.
        generator: of the other draws.
    """
    n = len(keys)
    picks = [int(np.argmin(keys))]
    gains = [float(gradients.squared[picks[0]])]
    squared = np.full(n, np.inf)  # to the nearest of the picks that have been measured, …
    waiting = picks.copy()  # … which these have not
    while len(picks) < k:
        for start in range(0, n, ROWS):
            tile = slice(start, start + ROWS)
            squared[tile] = np.minimum(
                squared[tile], gradients.nearest(start, start + ROWS, np.array(waiting))
            )
        total = np.cumsum(squared)
        if total[-1] == 0:
            break
        last = int(np.searchsorted(total, total[-1]))  # rounding must not draw a row beyond it
        waiting, refused = [], 0
        block = min(BLOCK, max(1, len(picks) // STALE), k - len(picks))
        while len(waiting) < block and refused <= len(waiting):
            row = min(int(np.searchsorted(total, generator.random() * total[-1], side="right")), last)
            distance = float(squared[row])
            if waiting:
                distance = min(distance, float(gradients.nearest(row, row + 1, np.array(waiting))[0]))
                if generator.random() * squared[row] >= distance:
                    refused += 1
                    continue
            waiting.append(row)
            picks.append(row)
            gains.append(distance)
    rest = order(keys, keys)
    rest = rest[~np.isin(rest, picks)][: k - len(picks)]
    return np.concatenate([picks, rest]).astype(np.int64), np.concatenate([gains, np.zeros(len(rest))])
