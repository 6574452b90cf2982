"""Herding: picks whose running mean stays as close as possible to the mean of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.select.signals import Selection, Signals
from winnow.tasks.select.space import Points, slack_of

__all__ = ["herding"]

# numbers in the features from which one byte each is scanned first: fewer stay in the processor's cache anyway
SCAN_FROM = 1 << 22
LISTED = (64, 2048)  # fewest and most samples that such a scan lists
WIDE = 0.001  # share of samples of largest entries, which one byte would resolve badly


def herding(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    metric: str = "euclidean",
    upstream: bool = False,
) -> Selection:
    """Follow the mean: each pick moves the mean of the picks as close as possible to the mean of the data.

    With μ the mean of all features and S the picks so far, the next pick is the sample nearest to the running
    target,

        next = argmin_i ‖t − x_i‖,   t = (|S| + 1)·μ − Σ over j ∈ S of x_j

    that is, the one after which ‖mean of the picks − μ‖ is smallest. No sample is picked twice.

    Args:
        signals: features.
        budget: k, samples to keep.
        generator: breaks ties.
        metric: ``"euclidean"``, or ``"cosine"``: on features at unit length.
        upstream: replay the published code, which takes the sample *farthest* from the target.

    Returns:
        Selection in the order of the picks, so that a smaller one is a prefix of a larger one; gains are
        ‖mean of the picks − μ‖ after each.

    Raises:
        BadInput: another ``metric``.

    Cost:
        O(N·k·D) multiplications: one pass over the features a pick, at one byte a number where they are
        large.

    References:
        Welling, Herding Dynamical Weights to Learn, ICML 2009; Rebuffi, Kolesnikov, Sperl and Lampert, iCaRL:
        Incremental Classifier and Representation Learning, CVPR 2017, algorithm 4.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/herding.py.

    Differences from upstream:
        Upstream takes argmax where the paper takes argmin: its picks' mean is farther from the data's than
        that of random ones. It also loses the order of the picks, and with any ``metric`` but the default it
        selects by raw pixels (not replayed).

    >>> s = Signals(n=4, features=np.array([[0.0], [1.0], [2.0], [9.0]]))
    >>> herding(s, 2, generator=np.random.default_rng(0)).indices.tolist()
    [2, 1]
    """
    keys = np.arange(signals.n, dtype=float) if upstream else generator.random(signals.n)
    rows = Points.of(signals.features, metric)
    targets = _Targets(rows, farthest=upstream)
    if not upstream and targets.points.size >= SCAN_FROM and 4 * budget >= targets.points.shape[1]:
        targets.scan = _ByteScan(targets.points)
    # of several copies, the one whose turn it is by its key stands for all
    queue = np.lexsort((keys, targets.group))
    ends = np.bincount(targets.group).cumsum()
    turn = np.append(0, ends[:-1])
    excess = np.zeros(
        signals.features.shape[1]
    )  # of the picks' sum over |S|·μ; t − x_i = −(excess + x_i − μ)
    picks, lengths = np.empty(budget, np.int64), np.empty(budget)
    for step in range(budget):
        found = targets.candidates(excess)
        reach = targets.exact(found) + excess
        squared = np.einsum("nd,nd->n", reach, reach)
        best = np.lexsort((keys[queue[turn[found]]], -squared if upstream else squared))[0]
        excess = reach[best]
        point = found[best]
        picks[step], lengths[step] = queue[turn[point]], squared[best]
        turn[point] += 1
        if turn[point] == ends[point]:
            targets.remove(point)
    return Selection.of(
        picks,
        gains=np.sqrt(lengths) / np.arange(1, budget + 1) / (rows.scale if metric == "euclidean" else 1),
    )


def _distinct(
    points: NDArray[np.float32], features: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A row for each distinct one of the features, and for each row which of these it equals; points are a function of the features."""
    words = np.random.default_rng(1).integers(-(2**63), 2**63, points.shape[1], dtype=np.int64) | 1
    code = np.empty(len(points), np.int64)
    for start in range(0, len(points), 4096):
        code[start : start + 4096] = (
            points[start : start + 4096].view(np.int32).astype(np.int64) * words
        ).sum(1)
    _, first, group = np.unique(code, return_index=True, return_inverse=True)
    alone = np.ones(len(points), bool)
    for start in range(0, len(points), 4096):
        rows = slice(start, start + 4096)
        alone[rows] = (features[rows] != features[first[group[rows]]]).any(1)
    group[alone] = len(first) + np.arange(alone.sum())
    return np.concatenate([first, np.flatnonzero(alone)]), group


class _Targets:
    """Finds the few distinct points among which the one nearest to (or farthest from) a target must be.

    Attributes:
        first: int64 (P,), a row of each distinct point.
        group: int64 (N,), the point of each row.
    """

    def __init__(self, rows: Points, *, farthest: bool) -> None:
        self.rows = rows
        self.centre = rows.mean()
        points = rows.centred(self.centre)
        self.first, self.group = _distinct(points, rows.features)
        self.points = points if len(self.first) == len(points) else points[self.first]
        if len(self.first) == len(points):
            self.first = self.group = np.arange(len(points))
        squares = np.einsum("nd,nd->n", self.points, self.points, dtype=np.float64)
        self.squares, self.lengths = squares.astype(np.float32), np.sqrt(squares).astype(np.float32)
        self.sign = np.float32(-1 if farthest else 1)
        self.slack = np.float32(slack_of(self.points.shape[1]))
        self.taken = np.zeros(len(self.points), bool)
        self.scan: _ByteScan | None = None

    def exact(self, points: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.rows[self.first[points]] - self.centre

    def remove(self, point: int) -> None:
        self.taken[point] = True
        if self.scan is not None:
            self.scan.remove(point)

    def candidates(self, excess: NDArray[np.float64]) -> NDArray[np.int64]:
        """Points with the smallest ‖excess + x_i − μ‖ among them (the largest if ``farthest``), by float32 products and their error."""
        listed = None
        if self.scan is not None:
            listed = self.scan.candidates(excess, self.exact)
            if listed is None and self.scan.useless():
                self.scan = None
        some: Any = slice(None) if listed is None else listed
        short = excess.astype(np.float32)
        value = self.points[some] @ short
        value *= 2
        value += self.squares[some]
        value *= self.sign
        value[self.taken[some]] = np.inf
        error = self.lengths[some] + np.float32(np.linalg.norm(excess))
        error *= error
        error *= self.slack
        error += np.float32(len(short) * 2.0**-126)
        found = np.flatnonzero(value - error <= (value + error).min())
        return found if listed is None else listed[found]


class _ByteScan:
    """The points rotated at random, so that no dimension stands out, and rounded to a byte a number: a first look at a quarter of the size.

    Distances to rounded points are off by at most the rounding of a point, so that the nearest is among those
    listed if the last of the list is farther than the best by more than that. The few points of largest
    entries are left out of the rounding and always looked at.
    """

    def __init__(self, points: NDArray[np.float32]) -> None:
        import faiss

        n, dim = points.shape
        self.rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0].astype(np.float32)
        largest = np.empty(n, np.float32)
        for start in range(0, n, 4096):
            largest[start : start + 4096] = np.abs(points[start : start + 4096] @ self.rotation).max(1)
        widest = np.partition(largest, int((1 - WIDE) * (n - 1)))[int((1 - WIDE) * (n - 1))]
        self.wide = np.flatnonzero(largest > widest)
        # not QT_8bit_direct_signed, although it is faster: it rounds the target to a byte a number, too, and
        # clips it
        self.index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_L2)
        self.index.train(
            np.full((2, dim), max(widest, 1e-30), np.float32) * np.array([[-1], [1]], np.float32)
        )
        self.rounding = 0.0  # at most, of the points that are scanned
        self.longest = float(np.sqrt(np.einsum("nd,nd->n", points, points, dtype=np.float64).max()))
        for start in range(0, n, 4096):
            turned = points[start : start + 4096] @ self.rotation
            codes = self.index.sa_encode(turned)
            self.index.add_sa_codes(codes)
            turned -= self.index.sa_decode(codes)
            inside = largest[start : start + 4096] <= widest
            rounding = np.einsum("nd,nd->n", turned, turned, dtype=np.float64)[inside]
            self.rounding = max(self.rounding, float(np.sqrt(rounding.max(initial=0.0))))
        self.slack = 4 * slack_of(dim)  # of the rotation, of the target in it, and of the scan's own sums
        self.left = np.full(-(-n // 8), 255, np.uint8)
        self.left[-1] = 255 if n % 8 == 0 else (1 << n % 8) - 1
        for row in self.wide:
            self._clear(int(row))
        # faiss keeps a pointer to the bits, which change as samples are taken
        self.selector = faiss.IDSelectorBitmap(len(self.left), faiss.swig_ptr(self.left))
        self.parameters = faiss.SearchParameters()
        self.parameters.sel = self.selector
        self.listed = LISTED[0]
        self.scans = self.misses = 0

    def _clear(self, row: int) -> None:
        self.left[row >> 3] &= 255 ^ (1 << (row & 7))

    def remove(self, row: int) -> None:
        self._clear(row)
        self.wide = self.wide[self.wide != row]

    def useless(self) -> bool:
        return self.misses > 8 + self.scans // 4

    def candidates(self, excess: NDArray[np.float64], exact: Any) -> NDArray[np.int64] | None:
        """Points with the nearest to −excess among them, or None where the list is too short to be sure."""
        self.scans += 1
        squared, ids = self.index.search(
            (-excess.astype(np.float32) @ self.rotation)[None], self.listed, params=self.parameters
        )
        listed = np.flatnonzero(ids[0] >= 0)
        apart, found = np.sqrt(squared[0, listed].astype(np.float64)), ids[0, listed].astype(np.int64)
        error = self.rounding + self.slack * (self.longest + float(np.linalg.norm(excess)))
        best = apart.min(initial=np.inf) + error
        if len(self.wide):
            reach = exact(self.wide) + excess
            best = min(best, np.sqrt(np.einsum("nd,nd->n", reach, reach).min()) * (1 + self.slack))
        if len(listed) == self.listed and apart[-1] - error <= best:
            self.misses += self.listed == LISTED[1]
            self.listed = min(2 * self.listed, LISTED[1])
            return None
        return np.concatenate([found[apart - error <= best], self.wide])
