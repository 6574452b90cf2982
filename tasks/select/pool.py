"""The samples left to pick from, and which of them is nearest to a target: exact, after estimates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS
from winnow.tasks.select.space import Points, slack_of

__all__ = ["Pool"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]

ROWS = 4096  # samples handled together, which bounds temporary memory
# from this many numbers on, a byte of each is scanned first: fewer fit in the processor's cache anyway
SCAN_FROM = 1 << 22
LISTED = (64, 2048)  # fewest and most samples that such a scan lists
WIDE = 0.001  # share of samples with the largest entries, which one byte would resolve badly


class Pool:
    """Samples to pick from, as points less their mean; copies of one another are one distinct point.

    Args:
        points: of N samples.
        ties: (N,), all different; of samples at the same distance, the lowest comes first.
        already: int64 (m,), rows that are taken, in this order.
        searches: number of searches for the nearest to come; many pay for a scan by bytes.
    """

    def __init__(self, points: Points, ties: Values, already: Rows = NO_ROWS, *, searches: int = 0) -> None:
        self.points, self.already, self._ties, self._mean = points, already, ties.copy(), points.mean()
        self._ties[already] = -np.inf  # first of their copies, before the turn of any that is left
        x = points.centred(self._mean)
        first, self._distinct = distinct(x, points.features)
        self._x = x if len(first) == len(x) else x[first]
        squares = np.einsum("pd,pd->p", self._x, self._x, dtype=np.float64)
        self._squares, self._lengths = squares.astype(np.float32), np.sqrt(squares).astype(np.float32)
        self._slack = np.float32(slack_of(x.shape[1]))
        # of several copies, the one whose turn it is stands for all
        self._queue = order(self._distinct, self._ties)
        self._end = np.bincount(self._distinct).cumsum()
        self._turn = np.append(0, self._end[:-1]) + np.bincount(self._distinct[already], minlength=len(first))
        self.empty = self._turn == self._end  # distinct points of which no copy is left
        pays = x.size >= SCAN_FROM and 4 * searches >= x.shape[1]
        self._scan = ByteScan(self._x) if pays else None
        if self._scan is not None and len(already):
            self._scan.remove(np.flatnonzero(self.empty))

    def exact(self, rows: Rows) -> Values:
        """Samples less the mean of all, float64 (m, D)."""
        return self.points[rows] - self._mean

    def rows_of(self, distinct_points: Rows) -> Rows:
        """The rows whose turn it is."""
        return self._queue[self._turn[distinct_points]]

    def take(self, row: int) -> None:
        """Remove a sample, whose turn it is, from the pool."""
        point = self._distinct[row]
        self._turn[point] += 1
        if self._turn[point] == self._end[point]:
            self.empty[point] = True
            if self._scan is not None:
                self._scan.remove(point)

    def nearest(self, target: Values) -> int:
        """The row of the sample nearest to a target, itself given less the mean."""
        rows = self.rows_of(self._candidates(target))
        apart = self.exact(rows) - target
        return int(rows[order(np.einsum("nd,nd->n", apart, apart), self._ties[rows])[0]])

    def _candidates(self, target: Values) -> Rows:
        """Distinct points, one of which is the nearest."""
        listed = None
        if self._scan is not None:
            listed = self._scan.nearest(target, lambda points: self.exact(self.rows_of(points)))
            if listed is None and self._scan.useless():
                self._scan = None
        part: Any = slice(None) if listed is None else listed
        estimate, error = self.estimates(target, part)
        estimate[self.empty[part]] = np.inf
        near = np.flatnonzero(estimate - error <= (estimate + error).min())
        return near if listed is None else listed[near]

    def estimates(
        self, target: Values, part: Any = slice(None)
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """‖x_p − t‖² − ‖t‖² of distinct points p, and a bound on each one's error."""
        estimate = self._x[part] @ target.astype(np.float32)
        estimate *= -2
        estimate += self._squares[part]
        error = self._lengths[part] + np.float32(np.linalg.norm(target))
        error *= error
        error *= self._slack
        error += np.float32(len(target) * 2.0**-126)
        return estimate, error


def distinct(x: NDArray[np.float32], features: NDArray[Any]) -> tuple[Rows, Rows]:
    """The first row of each distinct row of the features, and which of these each row equals.

    Args:
        x: (N, D), a function of the features.
        features: (N, D).

    >>> x = np.array([[1.0], [2.0], [1.0]], np.float32)
    >>> [rows.tolist() for rows in distinct(x, x)]
    [[0, 1], [0, 1, 0]]
    """
    words = np.random.default_rng(1).integers(-(2**63), 2**63, x.shape[1], dtype=np.int64) | 1
    tiles = list(blocks(len(x), ROWS))
    code = np.concatenate([(x[rows].view(np.int32).astype(np.int64) * words).sum(axis=1) for rows in tiles])
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    equals = first[inverse]
    for rows in tiles:  # rows that share a code but differ stand alone
        alone = rows.start + np.flatnonzero((features[rows] != features[equals[rows]]).any(axis=1))
        equals[alone] = alone
    return np.unique(equals, return_inverse=True)


class ByteScan:
    """A first look at a quarter of the size: points randomly rotated and rounded to one byte per number.

    The rotation lets no dimension stand out. Distances to rounded points are off by at most a point's
    rounding error, so the nearest is among those listed if the last one listed is farther than the best by
    more than that. The few points with the largest entries are not rounded and always looked at.

    Args:
        x: float32 (P, D).
    """

    def __init__(self, x: NDArray[np.float32]) -> None:
        import faiss

        n, dim = x.shape
        tiles = list(blocks(n, ROWS))
        self._rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0].astype(np.float32)
        largest = np.concatenate([np.abs(x[rows] @ self._rotation).max(axis=1) for rows in tiles])
        widest = np.partition(largest, int((1 - WIDE) * (n - 1)))[int((1 - WIDE) * (n - 1))]
        self._wide = np.flatnonzero(largest > widest)
        # not QT_8bit_direct_signed, although it is faster: it also rounds the target to bytes, and clips it
        self._index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_L2)
        ends = np.array([[-1], [1]], np.float32)
        self._index.train(np.full((2, dim), max(widest, 1e-30), np.float32) * ends)
        self._rounding = 0.0  # the largest among the points scanned
        self._longest = float(np.sqrt(np.einsum("pd,pd->p", x, x, dtype=np.float64).max()))
        for rows in tiles:
            turned = x[rows] @ self._rotation
            codes = self._index.sa_encode(turned)
            self._index.add_sa_codes(codes)
            turned -= self._index.sa_decode(codes)
            squared = np.einsum("pd,pd->p", turned, turned, dtype=np.float64)[largest[rows] <= widest]
            self._rounding = max(self._rounding, float(np.sqrt(squared.max(initial=0.0))))
        self._slack = 4 * slack_of(dim)  # of the rotation, of the target in it, and of the scan's own sums
        self._left = np.packbits(np.isin(np.arange(n), self._wide, invert=True), bitorder="little")
        # faiss keeps a pointer to the bits, which change as points are removed
        self._selector = faiss.IDSelectorBitmap(len(self._left), faiss.swig_ptr(self._left))
        self._parameters = faiss.SearchParameters()
        self._parameters.sel = self._selector
        self._listed = LISTED[0]
        self._scans = self._misses = 0

    def remove(self, points: Rows) -> None:
        """Leave points out of all later lists."""
        np.bitwise_and.at(self._left, points >> 3, (255 ^ (1 << (points & 7))).astype(np.uint8))
        self._wide = self._wide[~np.isin(self._wide, points)]

    def useless(self) -> bool:
        """Whether even the longest lists are often too short."""
        return self._misses > 8 + self._scans // 4

    def nearest(self, target: Values, exact: Callable[[Rows], Values]) -> Rows | None:
        """Points that include the nearest to the target, or None where the list is too short to be sure."""
        self._scans += 1
        query = (target.astype(np.float32) @ self._rotation)[None]
        squared, ids = self._index.search(query, self._listed, params=self._parameters)
        listed = ids[0][ids[0] >= 0].astype(np.int64)
        apart = np.sqrt(squared[0, : len(listed)].astype(np.float64))
        error = self._rounding + self._slack * (self._longest + float(np.linalg.norm(target)))
        best = apart.min(initial=np.inf) + error
        if len(self._wide):
            away = exact(self._wide) - target
            best = min(best, np.sqrt(np.einsum("pd,pd->p", away, away).min()) * (1 + self._slack))
        if len(listed) == self._listed and apart[-1] - error <= best:
            self._misses += self._listed == LISTED[1]
            self._listed = min(2 * self._listed, LISTED[1])
            return None
        return np.concatenate([listed[apart - error <= best], self._wide])
