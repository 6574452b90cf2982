"""Non-negative orthogonal matching pursuit on the last layer's gradients, which are never written out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.score.gradients import LastLayer
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.last_layer import ROUNDING, arg_max, correlation
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import NO_ROWS

__all__ = ["pursue"]

FITTED = 1e-9  # what is left over below this share of the target is rounding
WAITING = 32  # changes to an inverse that are made together
DEPENDENT = 1e-7  # a gradient with less than this share outside the span of the picks adds nothing

_ROWS = 512  # rows of the inverse changed together, which fit a core's cache

Vector = NDArray[np.float64]


def pursue(
    gradients: LastLayer,
    target: Vector,
    k: int,
    lam: float,
    ties: Vector,
    already: NDArray[np.int64] = NO_ROWS,
) -> tuple[NDArray[np.int64], Vector, Vector]:
    """Lower E(S, w) = ‖Σ_{i∈S} w_i g_i − t‖² + λ‖w‖² with w ≥ 0 and |S| ≤ k, one sample at a time.

    Args:
        gradients: g, of N samples.
        target: t, float64 (C, D + 1).
        k: samples to pick.
        lam: λ ≥ 0.
        ties: (N,), all different: of products that rounding cannot tell apart, the lowest enters first.
        already: int64 (m,), rows that enter before all others, and are not among the picks.

    Returns:
        int64 (k,) picks in order of entry, and float64 (k,) their weights and what each took off E. Once no
        sample has a positive product with what is left over, the rest follow in the order of their products,
        with weight 0.

    >>> layer = LastLayer.of(np.array([[1.0], [0.5], [-1.0]]), np.zeros((3, 0)))
    >>> picks, weights, gains = pursue(layer, np.array([[0.6]]), 2, 0.0, np.arange(3.0))
    >>> picks.tolist(), weights.tolist(), gains.round(6).tolist()
    ([0, 1], [0.6, 0.0], [0.36, 0.0])
    """
    support = _Support(gradients, target, min(len(already) + k, len(ties)), lam)
    there = np.zeros(len(ties), bool)
    there[already] = True
    lengths = np.sqrt(gradients.squared)
    rounding_of_target = FITTED * float(np.linalg.norm(target))
    closed = np.zeros(len(ties), bool)  # in the support, seen to add nothing, or not to enter yet
    closed[~there] = waiting = len(already) > 0
    while True:
        left_over = support.left_over()
        products = correlation(gradients, left_over)
        if np.count_nonzero(~there[support.rows[: support.size]]) == k:
            break
        products_of_open = np.where(closed, -np.inf, products)
        rounding = ROUNDING * float(np.linalg.norm(left_over))
        highest = int(np.argmax(products_of_open))
        if not products_of_open[highest] > lengths[highest] * max(rounding, rounding_of_target):
            if not waiting:
                break
            closed[~there] = waiting = False
            continue
        row = arg_max(products_of_open, ties, rounding * lengths[highest])
        closed[row] = True
        closed[support.enter(row)] = False
    picks, weights, gains = support.by_entry()
    new = ~there[picks]
    there[picks] = True
    picks, weights, gains = picks[new], weights[new], gains[new]
    rest = order(-products, ties)
    rest = rest[~there[rest]][: k - len(picks)]
    nothing = np.zeros(len(rest))
    return np.concatenate([picks, rest]), np.append(weights, nothing), np.append(gains, nothing)


class _Support:
    """The samples with positive weights, and the weights that minimise E on them."""

    def __init__(self, gradients: LastLayer, target: Vector, k: int, lam: float) -> None:
        self.gradients, self.target, self.lam = gradients, target, lam
        self.size = self.time = 0
        self.lowered = 0.0  # by how much E is below ‖t‖²
        self.inverse = _Inverse()  # of the samples' Gram matrix plus λ
        # per sample of the support; the first ``size`` are in use: …
        self.rows, self.entered = np.empty(k, np.int64), np.empty(k, np.int64)
        self.weights, self.gains, self.against = np.zeros(k), np.zeros(k), np.zeros(k)  # …, ⟨g_i, t⟩, …
        self.b, self.u = np.empty((k, gradients.b.shape[1])), np.empty((k, gradients.u.shape[1]))

    def left_over(self) -> Vector:
        """t − Σ w_i g_i, (C, D + 1)."""
        m = self.size
        return self.target - (self.weights[:m, None] * self.b[:m]).T @ self.u[:m]

    def by_entry(self) -> tuple[NDArray[np.int64], Vector, Vector]:
        """Rows in order of entry, their weights and gains."""
        first_in = np.argsort(self.entered[: self.size])
        return self.rows[first_in], self.weights[first_in], self.gains[first_in]

    def enter(self, row: int) -> list[int]:
        """Add a sample and solve for the weights; returns those that leave, never the one added."""
        m = self.size
        b, u = self.gradients.b[row].astype(np.float64), self.gradients.u[row].astype(np.float64)
        products = (self.b[:m] @ b) * (self.u[:m] @ u)
        squared = (b @ b) * (u @ u) + self.lam
        along = self.inverse.times(products)
        outside = squared - products @ along
        if not outside > DEPENDENT * squared:
            return []
        against = b @ self.target @ u
        share = (against - products @ self.weights[:m]) / outside
        goal = np.append(self.weights[:m] - share * along, share)
        self.rows[m], self.entered[m], self.weights[m], self.against[m] = row, self.time, 0.0, against
        self.b[m], self.u[m] = b, u
        self.size, self.time = m + 1, self.time + 1
        self.inverse.add(np.append(along, -1.0), 1 / outside)
        gone = self._solve(goal)
        before, self.lowered = self.lowered, float(self.against[: self.size] @ self.weights[: self.size])
        self.gains[np.flatnonzero(self.rows[: self.size] == row)] = self.lowered - before
        # without progress, which only rounding can cause, those that left stay out: no sample goes in and out
        # for ever
        return [other for other in gone if other != row] if self.lowered > before else []

    def _solve(self, goal: Vector) -> list[int]:
        """Lawson and Hanson's inner loop: towards the unconstrained ``goal``, until one would be negative."""
        gone: list[int] = []
        while len(below := np.flatnonzero(goal <= 0)):
            weights = self.weights[: self.size]
            falls = weights[below] > goal[below]
            shares = weights[below] / np.where(falls, weights[below] - goal[below], 1.0)
            weights += shares.min() * (goal - weights)
            at = int(below[np.argmin(shares)])
            gone.append(int(self.rows[at]))
            goal = self._leave(at, goal)
        self.weights[: self.size] = goal
        return gone

    def _leave(self, at: int, goal: Vector) -> Vector:
        """Drop a sample: the last one takes its place. Returns the unconstrained weights without it."""
        last = self.size - 1
        column = self.inverse.column(at, self.size)
        goal = goal - column * (goal[at] / column[at])
        self.inverse.add(column, -1 / column[at])
        self.inverse.move(last, at)
        for values in (self.rows, self.entered, self.weights, self.gains, self.against, self.b, self.u, goal):
            values[at] = values[last]
        self.size = last
        return goal[:last]


class _Inverse:
    """A symmetric matrix P that changes by products f v vᵀ, as the inverse of a Gram matrix does.

    With P = G⁻¹, a sample with products c to the others and s with itself adds (P c, −1)(P c, −1)ᵀ / (s − cᵀ
    P c); one that leaves takes away p pᵀ / p_i, with p its column. The changes wait, as columns of
    ``waiting``, until there are enough of them for one matrix product.
    """

    def __init__(self) -> None:
        self.matrix = np.zeros((64, 64))  # grows
        self.waiting, self.factors, self.waits = np.zeros((64, WAITING)), np.zeros(WAITING), 0

    def times(self, x: Vector) -> Vector:
        """P x, with P's first len(x) rows and columns."""
        m = len(x)
        v = self.waiting[:m]
        return self.matrix[:m, :m] @ x + v @ (self.factors * (v.T @ x))

    def column(self, at: int, m: int) -> Vector:
        """The first m numbers of a column of P."""
        return self.matrix[:m, at] + self.waiting[:m] @ (self.factors * self.waiting[at])

    def add(self, vector: Vector, factor: float) -> None:
        """P += factor · vector vectorᵀ; entries beyond the vector's length stay."""
        m = len(vector)
        if m > len(self.matrix):
            self.matrix = np.pad(self.matrix, (0, m - 1))
            self.waiting = np.pad(self.waiting, ((0, m - 1), (0, 0)))
        if self.waits == WAITING:
            v = self.waiting[:m]
            for rows in blocks(m, _ROWS):
                self.matrix[rows, :m] += (v[rows] * self.factors) @ v.T
            self.waiting[:], self.factors[:], self.waits = 0.0, 0.0, 0
        self.waiting[:m, self.waits] = vector
        self.factors[self.waits] = factor
        self.waits += 1

    def move(self, last: int, at: int) -> None:
        """The last row and column take the place of others, whose numbers are 0 by now."""
        self.waiting[at], self.waiting[last] = self.waiting[last], 0.0
        self.matrix[at] = self.matrix[last]
        self.matrix[:, at] = self.matrix[:, last]
        self.matrix[last], self.matrix[:, last] = 0.0, 0.0
