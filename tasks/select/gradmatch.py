"""GradMatch: weighted samples whose last-layer gradients add up to that of all, by orthogonal matching pursuit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.score.gradients import batch_sizes
from winnow.tasks.select.badge import Gradients
from winnow.tasks.select.ranking import order
from winnow.tasks.select.signals import Selection, Signals

__all__ = ["correlation", "first", "gradients_of", "gradmatch", "mean_gradient", "of_batches", "relevant"]

ROUNDING = 4e-7  # of a float32 product, as a share of the lengths of its factors
FITTED = 1e-9  # what is left over below this share of the target is rounding
WAITING = 32  # changes of an inverse that are made together
DEPENDENT = 1e-7  # a gradient with less than this share outside the span of the picks adds nothing


def gradmatch(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    lam: float = 0.5,
    validation: Signals | None = None,
    upstream: bool = False,
    batch: int = 256,
) -> Selection:
    """Keep samples whose weighted last-layer gradients add up to the gradient of all.

    With g_i = b_i ⊗ [h_i, 1] and ḡ their mean, S and its weights approximately minimise

        E(S, w) = ‖Σ_{i∈S} w_i g_i − ḡ‖² + λ‖w‖²,   w ≥ 0, |S| ≤ k

    by orthogonal matching pursuit: the sample whose gradient has the largest inner product with what is left
    over, r = ḡ − Σ w_i g_i, comes in, then all weights are solved for anew. One whose weight falls to 0
    leaves and makes room. The weights returned are N times these, so that the weighted sum stands for the sum
    over all samples, as in the paper, and fits together over classes.

    Args:
        signals: residuals b = softmax − one-hot, features h.
        budget: k, samples to keep.
        generator: breaks ties.
        lam: λ ≥ 0, in units of ‖g‖².
        validation: match the mean gradient of these samples instead, given by residuals and features. If both
            have labels, only those count whose label occurs in ``signals``: with ``balanced=True`` each class
            is matched to its own.
        upstream: replay the published code, with λ = 1 whatever is given.
        batch: size of the batches by which upstream divides gradients.

    Returns:
        Selection in the order in which the samples came in; weights; gains are what E fell by. Once no sample
        has a positive product with r, the rest follows in the order of the products, with weight 1 and gain
        0.

    Raises:
        BadInput: ``lam`` below 0, or a validation that does not fit.

    Cost:
        O(N·C·D + k²) a pick; memory O(N·(C + D) + k·D + k²).

    References:
        Killamsetty, Sivasubramanian, Ramakrishnan, De and Iyer, GRAD-MATCH: Gradient Matching based Data
        Subset Selection for Efficient Deep Model Training, ICML 2021, algorithm 2.
        Upstream: PatrickZH/DeepCore@74ec709 deepcore/methods/gradmatch.py.

    Differences from upstream:
        Upstream divides gradients by the size of their batch, next to which its λ = 1 is so large that the
        pursuit takes the samples of largest inner product with ḡ and little else; ignores ``lam``; lets
        weights be negative until the end, then drops these samples and returns fewer than asked for; loses
        the order; writes all gradients out and solves from scratch at each pick.

    >>> s = Signals(n=3, residuals=np.array([[1.0, -1.0], [-0.5, 0.5], [0.1, -0.1]]), features=np.zeros((3, 1)))
    >>> chosen = gradmatch(s, 1, generator=np.random.default_rng(0), lam=0)
    >>> chosen.indices, chosen.weights  # the gradients add up to [0.6, -0.6]
    (array([0]), array([0.6], dtype=float32))
    """
    if not lam >= 0:
        raise BadInput(f"lam = {lam}: it must not be negative.")
    watched = relevant(signals, validation)
    if upstream:
        return _published(of_batches(signals, batch), mean_gradient(of_batches(watched, batch)), budget)
    # sums follow the order of the rows: make that the order of the ids
    rows = np.arange(signals.n)
    gradients = gradients_of(signals.rows(rows))
    target = mean_gradient(gradients if validation is None else gradients_of(watched))
    picks, weights, gains = _pursue(gradients, target, budget, float(lam), generator.random(signals.n)[rows])
    return Selection.of(rows[picks], weights=np.where(weights > 0, signals.n * weights, 1.0), gains=gains)


def gradients_of(signals: Signals) -> Gradients:
    """The factors of the last layer's gradients."""
    return Gradients.of(signals.residuals, signals.features)


def mean_gradient(gradients: Gradients) -> NDArray[np.float64]:
    """Mean of g_i = b_i ⊗ u_i, float64 (C, D + 1)."""
    total = np.zeros((gradients.b.shape[1], gradients.u.shape[1]))
    b, u = torch.from_numpy(gradients.b), torch.from_numpy(gradients.u)
    for start in range(0, len(b), 4096):  # float32 within a tile, float64 over the tiles
        total += (b[start : start + 4096].T @ u[start : start + 4096]).numpy()
    return total / len(gradients.b)


def correlation(gradients: Gradients, direction: NDArray[np.float64]) -> NDArray[np.float32]:
    """⟨g_i, G⟩ = b_iᵀ G u_i of every sample with one direction G (C, D + 1); float32 (N,)."""
    # torch multiplies such narrow matrices twice as fast as NumPy
    seen = torch.nn.functional.linear(
        torch.from_numpy(gradients.u), torch.from_numpy(direction.astype(np.float32))
    )
    return np.einsum("nc,nc->n", gradients.b, seen.numpy())


def first(values: NDArray[np.floating[Any]], keys: NDArray[np.float64], slack: float) -> int:
    """Row of the largest value; of those within ``slack`` of it, the one of the lowest key."""
    near = np.flatnonzero(values >= values.max() - slack)
    return int(near[np.argmin(keys[near])])


def of_batches(signals: Signals, batch: int) -> Gradients:
    """Gradients as the published code has them: of the mean loss of the batch that a sample falls into."""
    return gradients_of(signals.replace(residuals=signals.residuals / batch_sizes(signals.n, batch)[:, None]))


def relevant(signals: Signals, validation: Signals | None) -> Signals:
    """The validation samples that concern these; where there is no validation, these.

    Raises:
        BadInput: no residuals or features, of other widths than those of the samples, or no sample with a
            label that occurs.
    """
    if validation is None:
        return signals
    for name in ("residuals", "features"):
        given = getattr(validation, name) if validation.has(name) else None
        ours = getattr(signals, name)
        if given is None or given.shape[1] != ours.shape[1]:
            raise BadInput(
                f"validation has {'no' if given is None else given.shape[1]} {name}; the samples have "
                f"{ours.shape[1]}."
            )
    if not validation.has("labels") or not signals.has("labels"):
        return validation
    same = np.flatnonzero(np.isin(validation.labels, signals.labels))
    if not len(same):
        raise BadInput(
            f"validation has no sample of the labels {np.unique(signals.labels)[:5].tolist()} …, which the "
            "samples have."
        )
    return validation.rows(same)


def _pursue(
    gradients: Gradients, target: NDArray[np.float64], k: int, lam: float, keys: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Non-negative orthogonal matching pursuit: picks in the order in which they came in, their weights, what each lowered E by."""
    support = _Support(gradients, target, min(k, len(keys)), lam)
    lengths = np.sqrt(gradients.squared)
    nothing = FITTED * float(np.linalg.norm(target))
    closed = np.zeros(len(keys), bool)  # in the support, or found to add nothing
    while True:
        left = support.left_over()
        products = correlation(gradients, left)
        if support.size == k:
            break
        products_open = np.where(closed, -np.inf, products)
        slack = ROUNDING * float(np.linalg.norm(left))
        best = int(np.argmax(products_open))
        if not products_open[best] > lengths[best] * max(slack, nothing):
            break
        row = first(products_open, keys, slack * lengths[best])
        closed[row] = True
        closed[support.enter(row)] = False
    by_entry = np.argsort(support.entered[: support.size])
    picks = support.rows[by_entry]
    weights, gains = np.zeros(k), np.zeros(k)
    weights[: support.size], gains[: support.size] = support.weights[by_entry], support.gains[by_entry]
    rest = order(-products, keys)
    rest = rest[~np.isin(rest, picks)][: k - support.size]
    return np.concatenate([picks, rest]), weights, gains


class _Support:
    """The samples with positive weights, and the weights that minimise E on them.

    The inverse P of their Gram matrix plus λ is kept. A sample that comes in or leaves changes it by a
    product v vᵀ; these wait, as columns of ``waiting``, until there are enough of them for one matrix
    product.
    """

    def __init__(self, gradients: Gradients, target: NDArray[np.float64], k: int, lam: float) -> None:
        self.gradients, self.target, self.lam = gradients, target, lam
        self.size = self.time = self.waits = 0
        self._rows, self.entered = np.empty(k, np.int64), np.empty(k, np.int64)
        self._weights, self._gains = np.zeros(k), np.zeros(k)
        self._against = np.zeros(k)  # ⟨g_i, ḡ⟩
        self._b, self._u = np.empty((k, gradients.b.shape[1])), np.empty((k, gradients.u.shape[1]))
        self._inverse = np.zeros((64, 64))  # grows with the support
        self._waiting, self._factors = np.zeros((64, WAITING)), np.zeros(WAITING)
        self.lowered = 0.0  # by how much E is below ‖ḡ‖²

    @property
    def rows(self) -> NDArray[np.int64]:
        return self._rows[: self.size]

    @property
    def weights(self) -> NDArray[np.float64]:
        return self._weights[: self.size]

    @property
    def gains(self) -> NDArray[np.float64]:
        return self._gains[: self.size]

    def left_over(self) -> NDArray[np.float64]:
        """ḡ − Σ w_i g_i, (C, D + 1)."""
        m = self.size
        return self.target - (self._weights[:m, None] * self._b[:m]).T @ self._u[:m]

    def enter(self, row: int) -> list[int]:
        """Take a sample in and solve for the weights; the samples that thereby leave and may come back, never the one that came in."""
        m = self.size
        b, u = self.gradients.b[row].astype(np.float64), self.gradients.u[row].astype(np.float64)
        column = (self._b[:m] @ b) * (self._u[:m] @ u)
        own = (b @ b) * (u @ u) + self.lam
        v = self._waiting[:m]
        along = self._inverse[:m, :m] @ column + v @ (self._factors * (v.T @ column))
        outside = own - column @ along
        if not outside > DEPENDENT * own:
            return []
        if m == len(self._inverse):
            self._inverse, self._waiting = (
                np.pad(self._inverse, (0, m)),
                np.pad(self._waiting, ((0, m), (0, 0))),
            )
        against = b @ self.target @ u
        self._rows[m], self._b[m], self._u[m], self.entered[m], self._against[m] = (
            row,
            b,
            u,
            self.time,
            against,
        )
        self._weights[m] = 0.0
        self.size += 1
        self.time += 1
        self._update(np.append(along, -1.0), 1 / outside)
        share = (against - column @ self._weights[:m]) / outside
        gone = self._solve(np.append(self._weights[:m] - share * along, share))
        before, self.lowered = self.lowered, float(self._against[: self.size] @ self.weights)
        self._gains[np.flatnonzero(self.rows == row)] = self.lowered - before
        # without progress, which only rounding brings about, those that left stay out: no sample goes in and
        # out for ever
        return [one for one in gone if one != row] if self.lowered > before else []

    def _solve(self, goal: NDArray[np.float64]) -> list[int]:
        """Lawson and Hanson's inner loop: towards the unconstrained weights, ``goal``, as far as none is negative."""
        gone: list[int] = []
        while len(below := np.flatnonzero(goal <= 0)):
            weights = self.weights
            shares = weights[below] / np.where(
                weights[below] > goal[below], weights[below] - goal[below], 1.0
            )
            weights += shares.min() * (goal - weights)
            at = int(below[np.argmin(shares)])
            gone.append(int(self._rows[at]))
            goal = self._leave(at, goal)
        self._weights[: self.size] = goal
        return gone

    def _leave(self, at: int, goal: NDArray[np.float64]) -> NDArray[np.float64]:
        """Drop a sample: the last one takes its place. The unconstrained weights without it."""
        m, last = self.size, self.size - 1
        column = self._inverse[:m, at] + self._waiting[:m] @ (self._factors * self._waiting[at])
        goal = goal - column * (goal[at] / column[at])
        self._update(column, -1 / column[at])
        for values in (
            self._rows,
            self.entered,
            self._weights,
            self._gains,
            self._against,
            self._b,
            self._u,
            self._waiting,
            self._inverse,
        ):
            values[at] = values[last]
        self._inverse[:, at] = self._inverse[:, last]
        self._inverse[last], self._inverse[:, last], self._waiting[last] = 0.0, 0.0, 0.0
        goal[at] = goal[last]
        self.size = last
        return goal[:last]

    def _update(self, vector: NDArray[np.float64], factor: float) -> None:
        """P += factor · vector vectorᵀ."""
        if self.waits == WAITING:
            m = self.size
            v = self._waiting[:m]
            for start in range(0, m, 512):
                self._inverse[start : start + 512, :m][: m - start] += (
                    v[start : start + 512] * self._factors
                ) @ v.T
            self._waiting[:], self._factors[:], self.waits = 0.0, 0.0, 0
        self._waiting[: len(vector), self.waits] = vector
        self._factors[self.waits] = factor
        self.waits += 1


def _published(gradients: Gradients, target: NDArray[np.float64], k: int) -> Selection:
    """DeepCore's pursuit: λ = 1, weights of any sign, non-negative ones at the end, those of 0 dropped."""
    from scipy.optimize import nnls

    picks: list[int] = []
    left = target
    gram, against = np.empty((k, k)), np.empty(k)
    for m in range(k):
        products = correlation(gradients, left)
        products[picks] = -np.inf
        row = int(np.argmax(products))
        picks.append(row)
        b, u = gradients.b[picks].astype(np.float64), gradients.u[picks].astype(np.float64)
        gram[m, : m + 1] = gram[: m + 1, m] = (b @ b[m]) * (u @ u[m])
        against[m] = b[m] @ target @ u[m]
        system = gram[: m + 1, : m + 1] + np.eye(m + 1)
        weights = np.linalg.solve(system, against[: m + 1]) if m else against[:1] / gram[0, 0]
        left = target - (weights[:, None] * b).T @ u
    weights = nnls(system, against)[0] if k > 1 else np.ones(1)
    kept = np.flatnonzero(weights)
    return Selection.of(np.array(picks)[kept], weights=weights[kept])
