"""BADGE: k-means++ seeding on the last layer's gradients, which are never written out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.score.gradients import LastLayer
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.last_layer import rescaled_gradients
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals

__all__ = ["badge", "definition"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

BLOCK = 128  # picks that are measured against all samples in one matrix product
STALE = 8  # and at most 1/STALE of the picks so far: the distances drawn from must not be far too large
ROWS = 4096  # samples per tile
# squared distances below this share of ‖g‖² are recomputed: ‖g_i‖² + ‖g_j‖² − 2⟨g_i, g_j⟩ has lost their
# digits
CANCELS = 1e-3


def definition(
    signals: Signals, budget: int, *, generator: np.random.Generator, already: Rows = NO_ROWS
) -> Rows:
    """BADGE's picks on gradients written out: the reference that tests hold the engine to.

    The engine makes the same draws up to 2 · ``STALE`` − 1 picks; then it draws in blocks, from the same
    distribution.
    """
    h, b = signals.features.astype(np.float64), signals.residuals.astype(np.float64)
    g = np.einsum("nc,nd->ncd", b, np.column_stack([h, np.ones(signals.n)])).reshape(signals.n, -1)
    ties = generator.random(signals.n)
    S, D2 = already[:1].tolist() or [int(ties.argmin())], np.full(signals.n, np.inf)
    while len(S) < len(already) + budget:
        D2 = np.minimum(D2, ((g - g[S[-1]]) ** 2).sum(axis=1))
        if D2.any():
            total = D2.cumsum()
            drawn = int(np.searchsorted(total, generator.random() * total[-1], side="right"))
            S.append([*already, drawn][min(len(S), len(already))])  # what is there takes the place of a draw
        else:  # only copies of picks are left
            rest = np.where(np.isin(np.arange(signals.n), [*already, *S]), np.inf, ties)
            S = [*S, *already[len(S) :], int(rest.argmin())]
    return np.array(S[len(already) :])


def badge(
    signals: Signals, budget: int, *, generator: np.random.Generator, already: Rows = NO_ROWS
) -> Selection:
    """Keep samples with long last-layer gradients in different directions, by k-means++ seeding.

    With g_i = b_i ⊗ [h_i, 1] the gradient of the loss in the last layer, the first sample is drawn uniformly
    and each further one with probability proportional to D_i² = min over the samples j picked so far of ‖g_i
    − g_j‖², where

        ‖g_i − g_j‖² = ‖b_i‖²(1 + ‖h_i‖²) + ‖b_j‖²(1 + ‖h_j‖²) − 2⟨b_i, b_j⟩(1 + ⟨h_i, h_j⟩)

    Picks are drawn from distances that may be up to a block of picks old, and accepted with probability new /
    old: this gives the same distribution and lets a whole block of picks be measured in one matrix product.
    Once every sample lies on a picked one, the rest is drawn uniformly.

    Args:
        signals: residuals b = softmax − one-hot and features h, the last layer's input. The residuals decide
            which loss it is: the paper has no labels yet and takes the predicted class; with true labels it
            is the training loss.
        budget: k, samples to keep.
        generator: of the draws.
        already: int64 (m,), rows that count as picked before the first pick, in this order: each takes the
            place of what its draws give.

    Returns:
        Selection in pick order; gains are D² at the pick, ‖g‖² for the first.

    Raises:
        BadInput: gradients so long that D² may exceed float32.

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

    >>> b = np.array([[0.9, -0.9], [0.9, -0.9], [-0.2, 0.2]])
    >>> s = Signals(n=3, residuals=b, features=np.ones((3, 2)))
    >>> sorted(badge(s, 2, generator=np.random.default_rng(0)).indices.tolist()) in ([0, 2], [1, 2])
    True
    """
    ties = generator.random(signals.n)
    layer = LastLayer.of(signals.residuals, signals.features)
    longest = float(np.sqrt(layer.squared.max()))
    if 4 * longest**2 > float(np.finfo(np.float32).max):
        raise BadInput(
            f"features and residuals: squared distances of gradients of length {longest:.0e} exceed float32.",
            remedy="divide the features by their largest value",
        )
    layer, exponent = rescaled_gradients(layer)
    picks, squared = seeds(layer, budget, ties, generator, already)
    return Selection.of(picks, gains=np.ldexp(squared, 2 * exponent))


def seeds(
    layer: LastLayer, k: int, ties: Floats, generator: np.random.Generator, already: Rows = NO_ROWS
) -> tuple[Rows, Floats]:
    """k-means++ seeding: rows in the order of their picks, and D² of each.

    Args:
        layer: gradients of N samples.
        k: rows to pick.
        ties: (N,) random numbers: the lowest is the first pick, and they order the rest once all distances
            are 0.
        generator: of the other draws.
        already: int64 (m,), rows that are there, in this order; the same draws are made as if they had been
            picked.
    """
    n = len(ties)
    there = already.tolist()
    k += len(there)
    picks = there[:1] or [int(np.argmin(ties))]
    gains = [float(layer.squared[picks[0]])]
    squared = np.full(n, np.inf)  # to the nearest of the picks that have been measured, …
    waiting = picks.copy()  # … which these have not
    while len(picks) < k:
        for tile in blocks(n, ROWS):
            squared[tile] = np.minimum(squared[tile], _to_nearest(layer, tile, np.array(waiting)))
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
                to_waiting = _to_nearest(layer, slice(row, row + 1), np.array(waiting))
                distance = min(distance, float(to_waiting[0]))
                if generator.random() * squared[row] >= distance:
                    refused += 1
                    continue
            if len(picks) < len(there):
                row = there[len(picks)]
            waiting.append(row)
            picks.append(row)
            gains.append(distance)
    gains += [0.0] * (k - len(gains))
    picks += there[len(picks) :]
    rest = order(ties, ties)
    picks += rest[~np.isin(rest, picks)][: k - len(picks)].tolist()
    return np.array(picks[len(there) :], np.int64), np.array(gains[len(there) :])


def _to_nearest(layer: LastLayer, rows: slice, centres: Rows) -> Floats:
    """Squared distance of each of the rows to the nearest centre: one matrix product for each factor."""
    tile = layer.u[rows] @ layer.u[centres].T
    tile *= layer.b[rows] @ (-2 * layer.b[centres]).T
    tile += layer.squared[centres].astype(np.float32)
    near = tile.argmin(1)
    squared = layer.squared[rows] + tile[np.arange(len(tile)), near]
    close = np.flatnonzero(squared < CANCELS * layer.squared[rows])
    squared[close] = _apart(layer, rows.start + close, centres[near[close]])
    return squared


def _apart(layer: LastLayer, i: Rows, j: Rows) -> Floats:
    """‖g_i − g_j‖² = ‖Δb‖²‖u_i‖² + ‖b_j‖²‖Δu‖² + 2⟨Δb, b_j⟩⟨Δu, u_i⟩: 0 where both are the same."""
    b, u = layer.b[j].astype(np.float64), layer.u[i].astype(np.float64)
    db, du = layer.b[i] - b, u - layer.u[j]
    squared = _dot(db, db) * _dot(u, u) + _dot(b, b) * _dot(du, du) + 2 * _dot(db, b) * _dot(du, u)
    return np.maximum(squared, 0.0)


def _dot(left: NDArray[Any], right: NDArray[Any]) -> Floats:
    return np.einsum("nd,nd->n", left, right, dtype=np.float64)
