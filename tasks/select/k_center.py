"""k-center: the greedy farthest point, exact, with whole blocks of picks measured in one matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["Divergence", "Rows", "farthest_first", "k_center", "published_start", "slack_of"]

BLOCK = (32, 1024)  # fewest and most samples that contend for the next picks
ROWS = 4096  # samples a tile
TILE = 1 << 22  # numbers a tile of contenders × picks
PAIRS = 1024  # pairs measured exactly at a time


def slack_of(dim: int) -> float:
    """Relative error of a float32 dot product of that length, rounded inputs included (Higham and Mary, 2019, theorem 3.1)."""
    return (min(dim, 8.0 * dim**0.5) + 12.0) * 2.0**-24


@dataclass(frozen=True)
class Rows:
    """Features as points in float64, any rows at a time: scaled to at most 1, or each at unit length.

    Attributes:
        features: (N, D).
        metric: "euclidean" or "cosine".
        scale: power of two, which rounds nothing.
    """

    features: NDArray[Any]
    metric: str
    scale: float

    @classmethod
    def of(cls, features: NDArray[Any], metric: str) -> Rows:
        if metric not in ("euclidean", "cosine"):
            raise BadInput(f"metric = {metric!r}: it is 'euclidean' or 'cosine'.")
        largest = float(
            max(np.abs(features[i : i + ROWS]).max(initial=0) for i in range(0, len(features), ROWS))
        )
        scale = 1.0 if largest == 0 else 2.0 ** -np.clip(np.ceil(np.log2(largest)), -1000, 1000)
        return cls(features, metric, scale)

    def __getitem__(self, rows: Any) -> NDArray[np.float64]:
        points = self.features[rows].astype(np.float64) * self.scale
        if self.metric == "cosine":
            # row by row in a fixed order: copies of a sample stay copies; zeros stay zeros
            points /= np.maximum(np.sqrt(np.einsum("nd,nd->n", points, points)), 1e-150)[:, None]
        return points

    def centred(self, centre: NDArray[np.float64]) -> NDArray[np.float32]:
        """All of them less their centre, float32 (N, D)."""
        points = np.empty(self.features.shape, np.float32)
        for start in range(0, len(points), ROWS):
            points[start : start + ROWS] = self[start : start + ROWS] - centre
        return points

    def mean(self) -> NDArray[np.float64]:
        """Their mean, float64 (D,): rounded to a grid on which float64 adds exactly, so that it depends on no order."""
        grid = 2.0 ** (np.ceil(np.log2(len(self.features))) - 52)
        total = np.zeros(self.features.shape[1])
        for start in range(0, len(self.features), ROWS):
            total += (np.rint(self[start : start + ROWS] / grid) * grid).sum(0)
        return total / len(self.features)


@dataclass(frozen=True)
class Divergence:
    """A symmetric δ_ij = a_i + a_j − ⟨l_i, r_j⟩ ≥ 0: estimated in float32 by matrix products, exact in float64 a pair at a time.

    Attributes:
        left: float32 (N, F), l.
        turn: makes rows of r of those of l.
        offset: float64 (N,), a.
        error: float64 (N,), e: no estimate is off by more than e_i + e_j.
        exact: δ of pairs (i, j), float64 (m,), which must not depend on which other pairs are asked for.
    """

    left: NDArray[np.float32]
    turn: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    offset: NDArray[np.float64]
    error: NDArray[np.float64]
    exact: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]

    def between(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        """δ of pairs, a few at a time."""
        cuts = [slice(start, start + PAIRS) for start in range(0, len(i), PAIRS)]
        return np.concatenate([self.exact(i[cut], j[cut]) for cut in cuts]) if cuts else np.empty(0)

    def lower_to(self, upper: NDArray[np.float64], picks: NDArray[np.int64]) -> None:
        """Lower each sample's upper bound on its δ to the nearest pick, given some more picks; in place."""
        right = self.turn(self.left[picks]).T
        high = (self.offset + self.error)[picks].astype(np.float32)
        for start in range(0, len(upper), ROWS):
            rows = slice(start, start + ROWS)
            tile = self.left[rows] @ right
            np.subtract(high, tile, out=tile)
            np.minimum(
                upper[rows],
                np.maximum(tile.min(1) + (self.offset[rows] + self.error[rows]), 0),
                out=upper[rows],
            )

    def nearest(self, rows: NDArray[np.int64], picks: NDArray[np.int64]) -> NDArray[np.float64]:
        """δ of each of the rows to the nearest pick, exact: of all pairs, those whose estimates leave it open are measured."""
        right = self.turn(self.left[picks]).T
        found = np.empty(len(rows))
        step = max(1, TILE // len(picks))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            tile = self.offset[picks].astype(np.float32) - self.left[part] @ right
            wide = self.error[picks].astype(np.float32)
            least = (tile + wide).min(1).astype(np.float64) + 2 * self.error[part]
            row, column = np.nonzero(
                tile - wide <= np.nextafter(least.astype(np.float32), np.float32(np.inf))[:, None]
            )
            values = self.between(part[row], picks[column])
            found[start : start + step] = np.minimum.reduceat(
                values, np.searchsorted(row, np.arange(len(part)))
            )
        return found

    def at_least(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Lower bounds of δ among some rows, (m, m)."""
        low = self.offset[rows] - self.error[rows]
        return low[:, None] + low - self.left[rows] @ self.turn(self.left[rows]).T


def farthest_first(
    space: Divergence, budget: int, keys: NDArray[np.floating[Any]], first: int
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Greedy farthest-point picks from ``first`` on, exact, and the δ of each to the nearest pick before it (∞ for the first).

    Each sample has an upper bound on its δ to the nearest pick. Of the samples that lead by it, a block's δ
    is measured; the farthest of them is the next pick as long as it is ahead of the bound of every sample
    outside, for δ only falls. Then the block's picks lower the bounds of all, in one matrix product. What is
    compared in the end is δ in float64, so that blocks, tiles and threads decide nothing.

    Args:
        space: of N samples.
        budget: picks.
        keys: (N,), all different: of equal δ, the lowest is picked first.
        first: the first pick.
    """
    n = len(keys)
    picks, gains = [first], [np.inf]
    upper = np.full(n, np.inf)
    upper[first] = -np.inf
    taken = [first]
    block = BLOCK[0]
    while len(picks) < budget:
        if taken:
            space.lower_to(upper, np.array(taken))
        leading = _leading(upper, keys, min(block + 1, n - len(picks)))
        rows, rest = leading[:block], leading[block:]
        bar = (upper[rest[0]], -keys[rest[0]]) if len(rest) else (-np.inf, -np.inf)
        rows = rows[np.argsort(keys[rows])]  # argmax takes the first of equals
        own = space.nearest(rows, np.array(picks))
        apart = space.at_least(rows)
        taken = []
        while len(picks) < budget:
            i = int(np.argmax(own))
            row, value = int(rows[i]), float(own[i])
            if (value, -keys[row]) < bar or value == -np.inf:
                break
            if value == 0:  # all that are left lie on picks
                left = np.flatnonzero(upper > -np.inf)
                left = left[~np.isin(left, taken)]
                left = left[np.argsort(keys[left])][: budget - len(picks)]
                return np.concatenate([picks, left]).astype(np.int64), np.concatenate(
                    [gains, np.zeros(len(left))]
                )
            taken.append(row)
            picks.append(row)
            gains.append(value)
            own[i] = -np.inf
            near = np.flatnonzero(apart[:, i] < own)
            own[near] = np.minimum(own[near], space.between(rows[near], np.full(len(near), row)))
        upper[rows] = own
        block = int(np.clip(2 * len(taken) or 2 * block, *BLOCK))
    return np.array(picks, np.int64), np.array(gains)


def _leading(upper: NDArray[np.float64], keys: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """The rows of largest ``upper``, ties by the keys; best first."""
    least = np.partition(upper, len(upper) - count)[len(upper) - count]
    above, level = np.flatnonzero(upper > least), np.flatnonzero(upper == least)
    need = count - len(above)
    if need < len(level):
        level = level[np.argpartition(keys[level], need - 1)[:need]]
    rows = np.concatenate([above, level])
    return rows[np.lexsort((keys[rows], -upper[rows]))]


def published_start(n: int) -> int:
    """DeepCore's first pick of n samples, with its seed 0."""
    return int(np.random.RandomState(0).randint(0, n))  # a stream of its own, and the one to be replayed


def k_center(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    metric: str = "euclidean",
    upstream: bool = False,
) -> Selection:
    """Cover the features: each pick is the sample farthest from all picks before it.

    The first pick is drawn; then, until there are k,

        next = argmax_i min over the picks j of d(x_i, x_j)

    which is within a factor 2 of the smallest possible covering radius max_i min_j d(x_i, x_j).

    Args:
        signals: features.
        budget: k, samples to keep.
        generator: draws the first pick and breaks ties.
        metric: ``"euclidean"``, or ``"cosine"``: d = 1 − cos (a row of zeros is at ½ from every direction).
        upstream: replay the published code: its first pick, of ``RandomState(0)``, and ties by the lower row.

    Returns:
        Selection in the order of the picks, so that a smaller one is a prefix of a larger one; gains are the
        distances to the nearest pick before, that of the first being ∞.

    Raises:
        BadInput: another ``metric``.

    Cost:
        O(N·k·D) multiplications, in matrix products of whole blocks of picks; memory one float32 copy of the
        features.

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018,
        algorithm 1; Gonzalez, Clustering to minimize the maximum intercluster distance, 1985.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/kcentergreedy.py k_center_greedy.

    Differences from upstream:
        Upstream writes out the k × N distances, copies the features at each pick, loses the order of the
        picks, starts each class from the same draw, and fails on a budget of 1. None of this changes the set,
        so ``upstream=True`` differs by the start alone.

    >>> s = Signals(n=4, features=np.array([[0.0], [1.0], [4.0], [9.0]]))
    >>> sorted(k_center(s, 3, generator=np.random.default_rng(0)).indices.tolist())
    [0, 2, 3]
    """
    keys = np.arange(signals.n, dtype=float) if upstream else generator.random(signals.n)
    rows = Rows.of(signals.features, metric)
    first = published_start(signals.n) if upstream else int(np.argmin(keys))
    picks, squared = farthest_first(squared_distances(rows), budget, keys, first)
    return Selection.of(picks, gains=squared / 2 if metric == "cosine" else np.sqrt(squared) / rows.scale)


def squared_distances(rows: Rows) -> Divergence:
    """‖x_i − x_j‖² = ‖x_i‖² + ‖x_j‖² − ⟨x_i, 2x_j⟩, estimated on points less their mean; for the cosine it is 2 − 2 cos."""
    points = rows.centred(rows.mean())
    squares = np.einsum("nd,nd->n", points, points, dtype=np.float64)

    def exact(i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        apart = rows[i] - rows[j]
        return np.einsum("nd,nd->n", apart, apart)

    # Σ_d |x_id · 2x_jd| is at most ‖x_i‖² + ‖x_j‖²; below the last term, float32 has no digits left
    error = 2 * slack_of(points.shape[1]) * squares + points.shape[1] * 2.0**-126
    return Divergence(points, lambda part: 2 * part, squares, error, exact)
