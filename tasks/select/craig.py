"""CRAIG: medoids of the last-layer gradients, each weighted by the samples that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.tasks.errors import BadInput
from winnow.tasks.score.gradients import LastLayer
from winnow.tasks.select.blocks import blocks
from winnow.tasks.select.greedy import check, greedy
from winnow.tasks.select.last_layer import rescaled_gradients
from winnow.tasks.select.ranking import order
from winnow.tasks.select.set_functions import FacilityLocation, Function, SparseFacilityLocation
from winnow.tasks.select.signals import NO_ROWS, Selection, Signals
from winnow.tasks.select.similarity import UNIT, check_dense, dense, nearest, sparse_kernel, whole

__all__ = ["Gradients", "check_size", "craig", "definition", "nearest_pick"]

_CANCELS = 2.0**-18  # squared distances below this share of ‖g_i‖² + ‖g_j‖² are float32 rounding, hence 0
_TILE = 1 << 22  # similarities of samples with picks that are handled together


def definition(
    signals: Signals, budget: int, *, generator: np.random.Generator, already: NDArray[np.int64] = NO_ROWS
) -> NDArray[np.int64]:
    """CRAIG's picks on gradients written out: the reference that tests hold the engine to."""
    inputs = np.column_stack([signals.features, np.ones(signals.n)]).astype(np.float64)
    g = (signals.residuals[:, :, None] * inputs[:, None]).reshape(signals.n, -1)
    apart = np.linalg.norm(g[:, None] - g, axis=2)
    s = np.rint((1 - apart / (2 * np.linalg.norm(g, axis=1).max())) * UNIT) / UNIT
    ties = generator.random(signals.n)
    S: list[int] = already.tolist()
    while len(S) < len(already) + budget:
        represented = s[:, S].max(axis=1, initial=0.0, keepdims=True)
        gain = np.maximum(s - represented, 0.0).sum(axis=0)
        gain[S] = -np.inf
        S.append(int(order(-gain.round(9), ties)[0]))  # arg max; rounding makes equals tie
    return np.array(S[len(already) :])


@dataclass(frozen=True)
class Gradients:
    """Last-layer gradients g_i = r_i ⊗ [h_i, 1] as factors, with similarities 1 − ‖g_i − g_j‖ / reach.

    Args:
        b: float32 (N, C), r times a power of two.
        u: float32 (N, D + 1), [h, 1] times a power of two.
        squared: float32 (N,), ‖b_i ⊗ u_i‖².
        reach: 2·max ‖b_i ⊗ u_i‖; no distance is longer.
        exponent: g = b ⊗ u · 2^exponent; 0 for gradients of ordinary length.
    """

    b: NDArray[np.float32]
    u: NDArray[np.float32]
    squared: NDArray[np.float32]
    reach: float
    exponent: int

    @classmethod
    def of(cls, residuals: NDArray[Any], features: NDArray[Any]) -> Gradients:
        layer, exponent = rescaled_gradients(LastLayer.of(residuals, features))
        reach = 2 * float(np.sqrt(layer.squared.max()))
        return cls(layer.b, layer.u, layer.squared.astype(np.float32), reach, exponent)

    def __len__(self) -> int:
        return len(self.squared)

    def distances(self, rows: Any, columns: Any) -> NDArray[np.float32]:
        """‖g_i − g_j‖ between some rows and columns."""
        return np.ldexp(self._distances(rows, columns), self.exponent)

    def tile(self, rows: Any, columns: Any) -> NDArray[np.int32]:
        """Their similarities, in units."""
        tile = self._distances(rows, columns)
        tile *= np.float32(-UNIT / self.reach if self.reach else 0)
        tile += UNIT
        return whole(tile)

    def _distances(self, rows: Any, columns: Any) -> NDArray[np.float32]:
        """‖g_i − g_j‖² = ‖g_i‖² + ‖g_j‖² − 2⟨r_i, r_j⟩(1 + ⟨h_i, h_j⟩), before scaling."""
        tile = self.u[rows] @ self.u[columns].T
        tile *= self.b[rows] @ (-2 * self.b[columns]).T
        both = self.squared[rows][:, None] + self.squared[columns]
        tile += both
        both *= np.float32(_CANCELS)
        tile[tile < both] = 0
        return np.sqrt(tile, out=tile)


def check_size(n: int, budget: int, *, upstream: bool = False, **params: Any) -> None:
    """Refuse a dense kernel that is too large, before anything is computed; upstream's has few columns.

    Raises:
        BadInput: with its size, and what to do instead.
    """
    if not upstream:
        check_dense(n, budget, **params)


def craig(
    signals: Signals,
    budget: int,
    *,
    generator: np.random.Generator,
    already: NDArray[np.int64] = NO_ROWS,
    neighbours: int | None = None,
    optimizer: str = "lazy",
) -> Selection:
    """Keep samples whose weighted gradients add up to nearly the gradient of all: medoids of the gradients.

    With g_i = r_i ⊗ [h_i, 1] the gradient of the loss in the last layer, the error of the weighted sum is at
    most

        Σ_i min_{j ∈ S} ‖g_i − g_j‖

    The picks reduce that bound greedily, as facility location with s_ij = d − ‖g_i − g_j‖ and d = 2·max ‖g‖
    (which affects only the first gain), and weight γ_j is the number of samples whose nearest pick is j.
    ``balanced=True`` does so in each class, as the paper does.

    Args:
        signals: residuals r = softmax − one-hot and features h, the last layer's input.
        budget: k, samples to keep.
        generator: breaks ties, and draws for the stochastic optimiser.
        already: int64 (m,), rows that count as picked before the first pick, in this order, with a share
            of the weights.
        neighbours: how many others, those of nearest gradients, can stand for a sample while picks are made,
            as in facility_location; None for all.
        optimizer: ``"lazy"`` and ``"naive"`` pick the same; ``"stochastic"`` looks at ⌈N/k · ln 100⌉ random
            samples for each pick; ``"approximate_lazy"`` accepts a gain of 0.9 of the highest bound.

    Returns:
        Selection in pick order; weights are cluster sizes, which add up to N; gains are what each pick takes
        off the bound.

    Raises:
        BadInput: an unknown optimiser, distances of more than 4 GiB (N > 32,768), or gradients so long that
            their distances add up to more than float32 holds.

    Cost:
        N²·(C + D)/2 multiplications, 4·N² bytes, and visits to some N·ln k rows of the distances. With
        ``neighbours``, N²·(C + D) multiplications, O(N·neighbours) memory, and N·k·(C + D) for the weights.

    References:
        Mirzasoleiman, Bilmes and Leskovec, Coresets for Data-efficient Training of Machine Learning Models,
        ICML 2020, equations 11 to 15, algorithm 1. Guo, Zhao and Bai, DeepCore, DEXA 2022.
        Upstream: DeepCore@74ec709 deepcore/methods/craig.py.

    Differences from upstream:
        Weights are the cluster sizes (upstream: plus 1). Gradients are per sample (upstream: divided by the
        size of their batch, so those of a class's last batch are larger). Gains count all samples (upstream
        unbalanced: hardly more than the first 256 rows, and similarities across classes are 0). Gradients are
        not written out. ``upstream=True`` replays lazy and naive greedy, the balanced code where all labels
        are the same or there are none (so with ``balanced=True``), else the unbalanced one; ``batch`` is the
        size of its batches.

    >>> residuals = np.array([[0.9, -0.9], [0.9, -0.9], [-0.2, 0.2]])
    >>> s = Signals(n=3, residuals=residuals, features=np.ones((3, 2)))
    >>> chosen = craig(s, 2, generator=np.random.default_rng(0))
    >>> sorted(chosen.indices.tolist()) in ([0, 2], [1, 2]), chosen.weights.tolist()
    (True, [2.0, 1.0])
    """
    check(optimizer, neighbours)
    ties = generator.random(signals.n)
    gradients = Gradients.of(signals.residuals, signals.features)
    reach = float(np.ldexp(gradients.reach, gradients.exponent))
    if reach * signals.n > float(np.finfo(np.float32).max):
        raise BadInput(
            f"features and residuals: gradients of length {reach / 2:.0e} add up to more than float32 holds.",
            remedy="divide the features by their largest value",
        )
    function: Function
    if neighbours is None:
        check_dense(signals.n, budget)
        function = FacilityLocation(dense(gradients))
    else:
        near = nearest(gradients, min(neighbours, signals.n - 1))
        function = SparseFacilityLocation(sparse_kernel(*near))
    picks, gains = greedy(function, budget, optimizer, ties, generator, already)
    standing = np.concatenate([already, picks])
    weights = np.bincount(nearest_pick(gradients, standing), minlength=len(standing))
    return Selection.of(picks, weights=weights[len(already) :], gains=gains / UNIT * reach)


def nearest_pick(gradients: Gradients, picks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the picks each sample is nearest to: itself for a pick; ties go to the first."""
    cluster = np.empty(len(gradients), np.int64)
    step = max(1, _TILE // len(picks))
    for rows in blocks(len(cluster), step):
        cluster[rows] = gradients.tile(rows, picks).argmax(1)
    cluster[picks] = np.arange(len(picks))
    return cluster
