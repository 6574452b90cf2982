"""The greedy farthest point, exact, with whole blocks of picks measured in one matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.ranking import best, order
from winnow.tasks.select.signals import NO_ROWS

__all__ = ["Divergence", "farthest_first"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]

BLOCK = (32, 1024)  # fewest and most samples that contend for the next picks
ROWS = 4096  # samples per tile
TILE = 1 << 22  # numbers per tile of contenders × picks
PAIRS = 1024  # pairs measured exactly at a time


@dataclass(frozen=True)
class Divergence:
    """A symmetric δ_ij = a_i + a_j − ⟨l_i, r_j⟩ ≥ 0: by products in float32, or exactly in float64 by pairs.

    Args:
        left: float32 (N, F), l.
        turn: turns rows of l into those of r.
        offset: float64 (N,), a.
        error: float64 (N,), e: no estimate is off by more than e_i + e_j.
        exact: δ of pairs (i, j), float64 (m,), which must not depend on which other pairs are asked for.
    """

    left: NDArray[np.float32]
    turn: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    offset: Values
    error: Values
    exact: Callable[[Rows, Rows], Values]

    def between(self, i: Rows, j: Rows) -> Values:
        """δ of pairs, a few at a time."""
        pairs = blocks(len(i), PAIRS)
        return np.concatenate([self.exact(i[some], j[some]) for some in pairs] or [np.empty(0)])

    def lower_to(self, upper: Values, picks: Rows) -> None:
        """Lower the samples' upper bounds of δ to the nearest pick, given more picks; in place."""
        right = self.turn(self.left[picks]).T
        high = (self.offset + self.error)[picks].astype(np.float32)
        for rows in blocks(len(upper), ROWS):
            tile = self.left[rows] @ right
            np.subtract(high, tile, out=tile)
            bound = np.maximum(tile.min(axis=1) + (self.offset[rows] + self.error[rows]), 0)
            np.minimum(upper[rows], bound, out=upper[rows])

    def to_nearest(self, rows: Rows, picks: Rows) -> Values:
        """Exact δ of the rows to their nearest picks; only pairs that estimates leave open are measured."""
        right = self.turn(self.left[picks]).T
        offset, error = self.offset[picks].astype(np.float32), self.error[picks].astype(np.float32)
        nearest = np.empty(len(rows))
        step = max(1, TILE // len(picks))
        for block in blocks(len(rows), step):
            part = rows[block]
            tile = offset - self.left[part] @ right
            most = (tile + error).min(axis=1).astype(np.float64) + 2 * self.error[part]
            bar = np.nextafter(most.astype(np.float32), np.float32(np.inf))
            row, column = np.nonzero(tile - error <= bar[:, None])
            first = np.searchsorted(row, np.arange(len(part)))
            pairs = self.between(part[row], picks[column])
            nearest[block] = np.minimum.reduceat(pairs, first)
        return nearest

    def at_least(self, rows: Rows) -> Values:
        """Lower bounds of δ among some rows, (m, m)."""
        low = self.offset[rows] - self.error[rows]
        return low[:, None] + low - self.left[rows] @ self.turn(self.left[rows]).T


def farthest_first(
    divergence: Divergence, budget: int, ties: Values, first: int, already: Rows = NO_ROWS
) -> tuple[Rows, Values]:
    """Pick the sample farthest from all picks, again and again: exact, a block of picks at a time.

    Each sample has an upper bound on its δ to the nearest pick. For a block of those with the highest bounds,
    δ is measured; the farthest of them is the next pick as long as it is ahead of the bound of every sample
    outside, since δ only falls. Then the block's picks lower the bounds of all, in one matrix product. The
    final comparisons are of δ in float64, so blocks, tiles and threads decide nothing.

    Args:
        divergence: of N samples.
        budget: picks.
        ties: (N,), all different; of equal δ, the lowest is picked first.
        first: the first pick, where nothing is there already.
        already: int64 (m,), rows that count as picked before the first pick, in this order.

    Returns:
        int64 (budget,) picks in order, and float64 (budget,) δ of each to the nearest pick before it, ∞ for
        the first.
    """
    there, total = len(already), len(already) + budget
    picks = already.tolist() or [first]
    gains = [np.inf] * len(picks)
    upper = np.full(len(ties), np.inf)
    upper[picks] = -np.inf
    latest = picks.copy()
    block = BLOCK[0]
    while len(picks) < total:
        for part in blocks(len(latest), BLOCK[1]):
            divergence.lower_to(upper, np.array(latest[part]))
        leading = best(upper, ties, min(block + 1, len(ties) - len(picks)))
        leading = leading[order(-upper[leading], ties[leading])]
        rows, rest = leading[:block], leading[block:]
        bar = (upper[rest[0]], -ties[rest[0]]) if len(rest) else (-np.inf, -np.inf)
        rows = rows[np.argsort(ties[rows])]  # argmax takes the first of equals
        nearest = divergence.to_nearest(rows, np.array(picks))
        apart = divergence.at_least(rows)
        latest = []
        while len(picks) < total:
            i = int(np.argmax(nearest))
            row, delta = int(rows[i]), float(nearest[i])
            if (delta, -ties[row]) < bar or delta == -np.inf:
                break
            if delta == 0:  # all that remain lie on picks
                left = np.setdiff1d(np.flatnonzero(upper > -np.inf), latest)
                left = left[np.argsort(ties[left])][: total - len(picks)]
                picks += left.tolist()
                gains += [0.0] * len(left)
                break
            latest.append(row)
            picks.append(row)
            gains.append(delta)
            nearest[i] = -np.inf
            nearer = np.flatnonzero(apart[:, i] < nearest)
            to_pick = divergence.between(rows[nearer], np.full(len(nearer), row))
            nearest[nearer] = np.minimum(nearest[nearer], to_pick)
        upper[rows] = nearest
        block = int(np.clip(2 * len(latest) or 2 * block, *BLOCK))
    return np.array(picks[there:], np.int64), np.array(gains[there:])
